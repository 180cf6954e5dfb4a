"""What is recorded of a prediction."""

from __future__ import annotations

from datetime import UTC, datetime

from monitoring.records import Record
from service.batcher import Answer
from service.decoding import Admitted
from service.predictor import Judgement, Predictor


def make_record(
    prediction_id: str,
    image: Admitted,
    answer: Answer[Judgement],
    predictor: Predictor,
    client: str,
) -> Record:
    """The record of one prediction."""
    judgement = answer.result
    return Record(
        id=prediction_id,
        time=datetime.now(UTC),
        model=predictor.bundle.manifest.tag,
        stage=predictor.stage,
        client=client,
        image_sha256=image.sha256,
        perceptual_hash=image.properties.perceptual_hash,
        bytes=image.bytes,
        width=image.header.width,
        height=image.header.height,
        format=image.header.format,
        brightness=image.properties.brightness,
        contrast=image.properties.contrast,
        sharpness=image.properties.sharpness,
        logits=judgement.logits,
        labels=judgement.labels,
        confidence=judgement.confidence,
        outlier_score=judgement.score,
        p_value=judgement.p_value,
        flagged=judgement.flagged,
        components=judgement.components,
        decode_seconds=image.decode_seconds,
        queue_seconds=answer.queue_seconds,
        compute_seconds=answer.compute_seconds,
    )
