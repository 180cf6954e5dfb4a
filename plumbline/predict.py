"""`plumbline predict`: images from files, judged here or by a running service.

Both ways give rows of the form of the service's answer, with `file` beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.engines import load_engine
from model.errors import ImageError
from model.images import Pixels, prepare
from model.store import ModelStore
from plumbline.client import Client, Prediction
from service.predictor import Judgement, Predictor

BATCH = 32


def predict_here(
    files: Sequence[Path], store: ModelStore, reference: str | None
) -> list[dict[str, Any]]:
    """Judge files in this process; `reference` None takes the champion."""
    version = store.find(reference) if reference else store.champion()
    bundle = store.load(version)
    engine = load_engine("openvino", bundle, threads=os.cpu_count() or 1)
    predictor = Predictor(bundle, engine, stage=version.stage)
    return [row for chunk in _chunks(files) for row in _judge(chunk, predictor)]


def predict_by_service(
    files: Sequence[Path], url: str, api_key: str | None
) -> list[dict[str, Any]]:
    """Send files to a running service. Raises `ServiceError`."""
    rows = []
    with Client(url, api_key=api_key) as client:
        for chunk in _chunks(files):
            answer = client.predict([file.read_bytes() for file in chunk])
            rows += [
                _served_row(file, prediction)
                for file, prediction in zip(chunk, answer.predictions, strict=True)
            ]
    return rows


def _chunks(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]


def _judge(files: Sequence[Path], predictor: Predictor) -> list[dict[str, Any]]:
    prepared = [_prepare(file, predictor) for file in files]
    good = [image for image in prepared if not isinstance(image, ImageError)]
    judgements = iter(predictor.predict(good) if good else [])
    return [
        _failed_row(file, image)
        if isinstance(image, ImageError)
        else _judged_row(file, next(judgements), predictor)
        for file, image in zip(files, prepared, strict=True)
    ]


def _prepare(file: Path, predictor: Predictor) -> Pixels | ImageError:
    try:
        return prepare(file.read_bytes(), predictor.input)
    except ImageError as error:
        return error


def _failed_row(file: Path, error: ImageError) -> dict[str, Any]:
    return {
        "file": str(file),
        "labels": [],
        "probabilities": {},
        "out_of_domain": None,
        "error": {"code": error.code, "message": str(error)},
    }


def _judged_row(file: Path, judgement: Judgement, predictor: Predictor) -> dict[str, Any]:
    return {"file": str(file), **judgement.as_answer(predictor.classes), "error": None}


def _served_row(file: Path, prediction: Prediction) -> dict[str, Any]:
    foreign, error = prediction.out_of_domain, prediction.error
    return {
        "file": str(file),
        "id": prediction.id,
        "labels": list(prediction.labels),
        "probabilities": prediction.probabilities,
        "out_of_domain": asdict(foreign) if foreign else None,
        "error": {"code": error[0], "message": error[1]} if error else None,
    }
