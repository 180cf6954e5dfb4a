"""`plumbline predict`: images from files, judged here or by a running service.

Both ways give rows of the form of the service's answer, with `file` beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from model.engine_names import EngineName, Precision
from model.engines import load_engine
from model.errors import ImageError, ImageErrorCode, ServiceError
from model.images import Pixels, prepare
from model.store import ModelStore
from plumbline.client import Client, Prediction, Predictions
from service.predictor import Judgement, Predictor

BATCH = 32  # images
REQUEST_BYTES = 32 * 2**20  # half of what a service takes by default
TRIES = 5  # of a request that a busy service turns away
LONGEST_WAIT_SECONDS = 30

_IMAGE_CODES = frozenset(get_args(ImageErrorCode))


def predict_here(
    files: Sequence[Path],
    store: ModelStore,
    reference: str | None,
    *,
    model: str | None = None,
    engine: EngineName = "openvino",
    precision: Precision | None = None,
    alpha: float | None = None,
    coverage: float | None = None,
    augment: bool = False,
) -> list[dict[str, Any]]:
    """Judge files in this process; `reference` None takes the champion of `model`.

    `precision` and `alpha` None leave them to the version, as the service does; `augment` averages
    over several views of each image. With a `coverage` every good row has the `set` too. Raises
    `CoverageError` when the version cannot promise it.
    """
    version = store.find(reference) if reference else store.champion(model)
    bundle = store.load(version)
    loaded = load_engine(engine, bundle, threads=os.cpu_count() or 1, precision=precision)
    predictor = Predictor(bundle, loaded, stage=version.stage, alpha=alpha, augment=augment)
    least = None if coverage is None else predictor.least_probability(coverage)
    return [row for chunk in _chunks(files) for row in _judge(chunk, predictor, least)]


def predict_by_service(
    files: Sequence[Path], url: str, api_key: str | None, *, coverage: float | None = None
) -> list[dict[str, Any]]:
    """Send files to a running service. Raises `ServiceError` for what is no image's fault."""
    with Client(url, api_key=api_key) as client:
        return [row for chunk in _chunks(files) for row in _ask(client, chunk, coverage)]


def _ask(client: Client, files: Sequence[Path], coverage: float | None) -> list[dict[str, Any]]:
    """Rows for the files of one request; where it is refused for its images, one by one."""
    try:
        answer = _ask_patiently(client, [file.read_bytes() for file in files], coverage)
    except ServiceError as error:
        if error.code not in _IMAGE_CODES:
            raise
        if len(files) == 1:
            return [_failed_row(files[0], error.code, error.message)]
        return [row for file in files for row in _ask(client, [file], coverage)]
    return [
        _served_row(file, prediction)
        for file, prediction in zip(files, answer.predictions, strict=True)
    ]


def _ask_patiently(client: Client, images: Sequence[bytes], coverage: float | None) -> Predictions:
    """Ask again when the service is overloaded, as late as it says."""
    for _ in range(TRIES - 1):
        try:
            return client.predict(images, coverage=coverage)
        except ServiceError as error:
            if error.code != "overloaded":
                raise
            wait = 1 if error.retry_after_seconds is None else error.retry_after_seconds
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))
    return client.predict(images, coverage=coverage)


def _chunks(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """In order, each of at most BATCH files and REQUEST_BYTES; a larger file goes alone."""
    chunk: list[Path] = []
    room = REQUEST_BYTES
    for file in files:
        size = file.stat().st_size
        if chunk and (len(chunk) == BATCH or size > room):
            yield chunk
            chunk, room = [], REQUEST_BYTES
        chunk.append(file)
        room -= size
    if chunk:
        yield chunk


def _judge(
    files: Sequence[Path], predictor: Predictor, least_probability: float | None
) -> list[dict[str, Any]]:
    prepared = [_prepare(file, predictor) for file in files]
    good = [image for image in prepared if not isinstance(image, ImageError)]
    judgements = iter(predictor.predict(good) if good else [])
    return [
        _failed_row(file, image.code, str(image))
        if isinstance(image, ImageError)
        else _judged_row(file, next(judgements), predictor, least_probability)
        for file, image in zip(files, prepared, strict=True)
    ]


def _prepare(file: Path, predictor: Predictor) -> Pixels | ImageError:
    try:
        return prepare(file.read_bytes(), predictor.input)
    except ImageError as error:
        return error


def _failed_row(file: Path, code: str, message: str) -> dict[str, Any]:
    return {
        "file": str(file),
        "labels": [],
        "probabilities": {},
        "out_of_domain": None,
        "error": {"code": code, "message": message},
    }


def _judged_row(
    file: Path, judgement: Judgement, predictor: Predictor, least_probability: float | None
) -> dict[str, Any]:
    judged = judgement.as_answer(predictor.classes, least_probability)
    return {"file": str(file), **judged, "error": None}


def _served_row(file: Path, prediction: Prediction) -> dict[str, Any]:
    foreign, error = prediction.out_of_domain, prediction.error
    row: dict[str, Any] = {
        "file": str(file),
        "id": prediction.id,
        "labels": list(prediction.labels),
        "probabilities": prediction.probabilities,
        "out_of_domain": asdict(foreign) if foreign else None,
        "error": {"code": error[0], "message": error[1]} if error else None,
    }
    if prediction.prediction_set is not None:
        row["set"] = list(prediction.prediction_set)
    return row
