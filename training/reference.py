"""What the monitor compares production with: streams, bin edges and records of the bundle."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import uuid_utils
from numpy.typing import NDArray

from model.bundle import Manifest
from model.decision import confidence, decide, predicted_class
from model.engines import Outputs
from model.images import ImageProperties, Pixels, properties
from monitoring.records import Record, write_records
from training.evaluate import Decider
from training.findings import Findings, Trained
from training.mapped import each_row

EVIDENCE_BINS = 64


def outlier_arrays(trained: Trained, findings: Findings) -> dict[str, NDArray[Any]]:
    """The score, and per evidence stream the sorted reference and bin edges.

    References come from the calibration split, edges from the fit split: a bag over edges from
    its own data would not be valid.
    """
    outputs = findings.outputs
    reference = _streams(findings.decider, outputs.calibration, trained.calibration.images)
    fit = _streams(findings.decider, outputs.fit, outputs.fit_rows.images)
    quantiles = np.linspace(0, 1, EVIDENCE_BINS + 1)[1:-1]
    arrays = findings.decider.outlier.to_arrays()
    for name, values in reference.items():
        arrays[f"reference.{name}"] = np.sort(values)
        if name != "predicted_class":  # its bins are the classes themselves
            arrays[f"edges.{name}"] = np.unique(np.quantile(fit[name], quantiles))
    return arrays


def _streams(decider: Decider, outputs: Outputs, images: Pixels) -> dict[str, NDArray[np.float32]]:
    """The seven evidence streams, N each; predicted_class is an index, C standing for none."""
    scores, components = decider.outlier.score(outputs.embedding, outputs.logits)
    chances = decider.probabilities(outputs)
    seen = [properties(image) for image in each_row(images)]
    streams = {
        "outlier_score": scores,
        "confidence": confidence(chances, decider.task),
        "component_0": components[:, 0],
        "component_1": components[:, 1],
        "brightness": np.array([its.brightness for its in seen]),
        "sharpness": np.array([its.sharpness for its in seen]),
        "predicted_class": predicted_class(
            chances, decider.thresholds, decider.classes, decider.task
        ),
    }
    return {name: np.asarray(values, np.float32) for name, values in streams.items()}


def write_reference(path: Path, manifest: Manifest, trained: Trained, findings: Findings) -> None:
    """The records of the calibration split, as the service would have written them."""
    records = prepared_records(
        findings.decider,
        findings.outputs.calibration,
        trained.calibration.images,
        model=manifest.tag,
        time=manifest.created,
        client="calibration",
    )
    write_records(path, records)


def prepared_records(
    decider: Decider, outputs: Outputs, images: Pixels, *, model: str, time: datetime, client: str
) -> list[Record]:
    """Records of prepared images, uint8 N x H x W x 3, by their outputs; `model` is a tag."""
    chances = decider.probabilities(outputs)
    scores, components = decider.outlier.score(outputs.embedding, outputs.logits)
    p_values = decider.outlier.p_value(scores)
    labels = decide(chances, decider.thresholds, decider.classes, decider.task)
    sure = confidence(chances, decider.task)
    records = []
    for row, image in enumerate(each_row(images)):
        seen: ImageProperties = properties(image)
        records.append(
            Record(
                id=str(uuid_utils.uuid7()),
                time=time,
                model=model,
                stage="registered",
                client=client,
                image_sha256=hashlib.sha256(image.tobytes()).hexdigest(),
                perceptual_hash=seen.perceptual_hash,
                bytes=image.nbytes,
                width=image.shape[1],
                height=image.shape[0],
                format="prepared",
                brightness=seen.brightness,
                contrast=seen.contrast,
                sharpness=seen.sharpness,
                logits=outputs.logits[row],
                labels=labels[row],
                confidence=float(sure[row]),
                outlier_score=float(scores[row]),
                p_value=float(p_values[row]),
                flagged=bool(p_values[row] <= decider.alpha),
                components=components[row],
            )
        )
    return records
