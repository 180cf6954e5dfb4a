"""`plumbline predict`: images from files, judged here or by a running service.

Both ways give rows of the form of the service's answer, with `file` and `model` beside it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, get_args

from model.engine_names import EngineName, Precision
from model.engines import load_engine
from model.errors import ImageError, ImageErrorCode, PlumblineError, ServiceError
from model.images import Pixels, prepare
from model.store import ModelStore
from plumbline.client import AsyncClient, Prediction, Predictions, Retries
from plumbline.image_files import ImageFile, in_requests
from service.predictor import Judgement, Predictor

BATCH = 32  # images judged together, here
REQUEST_IMAGES = 16
REQUEST_BYTES = 16 * 2**20  # of image files
OVERHEAD_BYTES = 1_024  # of a part of a request, beside its image: generously
CONCURRENCY = 4  # requests in flight
RETRIES = 8  # of a request that a busy service turns away: about a minute in all

IMAGE_CODES = frozenset(get_args(ImageErrorCode))
UNREADABLE = "unreadable"  # the code of a file that cannot be read

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What the answer depends on, apart from the image."""

    name: str
    version: str
    alpha: float
    coverage: float | None = None
    augment: bool = False

    @property
    def model(self) -> dict[str, str]:
        """As it stands in a row."""
        return {"name": self.name, "version": self.version}


class Judge(Protocol):
    """Judges image files, here or far away."""

    question: Question
    most_images: int
    most_bytes: int
    concurrency: int

    async def judge(self, files: Sequence[ImageFile]) -> list[Row]:
        """A row for each file, in order; what is one image's fault is an error in its row."""


Judging = AbstractAsyncContextManager[Judge]
Keep = Callable[[Sequence[ImageFile], list[Row]], None]


def predict_all(files: Sequence[ImageFile], judging: Judging) -> list[Row]:
    """A row for each file, in order. Raises `ServiceError` for what is no image's fault."""
    rows: dict[ImageFile, Row] = {}

    async def run() -> None:
        async with judging as judge:
            await judge_all(
                judge, files, lambda some, theirs: rows.update(zip(some, theirs, strict=True))
            )

    asyncio.run(run())
    return [rows[file] for file in files]


async def judge_all(judge: Judge, files: Sequence[ImageFile], keep: Keep) -> None:
    """Judge files, some at a time; `keep` gets the rows of each time as they come.

    The first error ends it, when what is under way at that moment is done and kept.
    """
    left = in_requests(files, most_images=judge.most_images, most_bytes=judge.most_bytes)
    errors: list[Exception] = []

    async def work() -> None:
        while not errors and (some := next(left, None)) is not None:
            try:
                keep(some, await judge.judge(some))
            except (PlumblineError, OSError) as error:
                errors.append(error)

    await asyncio.gather(*(work() for _ in range(judge.concurrency)))
    if errors:
        raise errors[0]


@asynccontextmanager
async def judging_here(
    store: ModelStore,
    reference: str | None,
    *,
    model: str | None = None,
    engine: EngineName = "openvino",
    precision: Precision | None = None,
    alpha: float | None = None,
    coverage: float | None = None,
    augment: bool = False,
) -> AsyncIterator[Judge]:
    """A version in this process; `reference` None takes the champion of `model`.

    `precision` and `alpha` None leave them to the version, as the service does; `augment` averages
    over several views of each image. With a `coverage` every good row has the `set` too. Raises
    `CoverageError` when the version cannot promise it.
    """
    version = store.find(reference) if reference else store.champion(model)
    bundle = store.load(version)
    loaded = load_engine(engine, bundle, threads=os.cpu_count() or 1, precision=precision)
    predictor = Predictor(bundle, loaded, stage=version.stage, alpha=alpha, augment=augment)
    manifest = bundle.manifest
    question = Question(manifest.name, manifest.version, predictor.alpha, coverage, augment)
    yield LocalJudge(predictor, question)


class LocalJudge:
    """A version that is loaded here."""

    most_images = BATCH
    most_bytes = REQUEST_BYTES
    concurrency = 1

    def __init__(self, predictor: Predictor, question: Question) -> None:
        self._predictor = predictor
        self.question = question
        coverage = question.coverage
        self._least = None if coverage is None else predictor.least_probability(coverage)

    async def judge(self, files: Sequence[ImageFile]) -> list[Row]:
        """In a thread, so that Ctrl-C is heard."""
        return await asyncio.to_thread(self._judge, files)

    def _judge(self, files: Sequence[ImageFile]) -> list[Row]:
        prepared = [self._prepare(file) for file in files]
        good = [image for image in prepared if not isinstance(image, dict)]
        judgements = iter(self._predictor.predict(good) if good else [])
        return [
            image if isinstance(image, dict) else self._row(file, next(judgements))
            for file, image in zip(files, prepared, strict=True)
        ]

    def _prepare(self, file: ImageFile) -> Pixels | Row:
        try:
            return prepare(file.path.read_bytes(), self._predictor.input)
        except ImageError as error:
            return _failed_row(file, self.question, error.code, str(error))
        except OSError as error:
            return _unreadable_row(file, self.question, error)

    def _row(self, file: ImageFile, judgement: Judgement) -> Row:
        judged = judgement.as_answer(self._predictor.classes, self._least)
        return {"file": str(file.path), "model": self.question.model, **judged, "error": None}


@asynccontextmanager
async def judging_by_service(
    url: str,
    api_key: str | None,
    *,
    coverage: float | None = None,
    concurrency: int = CONCURRENCY,
    retries: int = RETRIES,
) -> AsyncIterator[Judge]:
    """A running service, which is asked first for its model and its limits.

    Raises `ServiceError` where it cannot be reached, or refuses for what is no image's fault.
    """
    async with AsyncClient(url, api_key=api_key, retries=Retries(count=retries)) as client:
        described = await client.model()
        try:
            question = Question(
                described["name"], described["version"], described["alpha"], coverage
            )
        except KeyError as error:
            raise ServiceError("unreachable", f"{url} tells no {error} of its model") from error
        yield ServiceJudge(client, question, described.get("limits") or {}, concurrency)


class ServiceJudge:
    """A service, within the limits that it tells; an older one tells none."""

    def __init__(
        self, client: AsyncClient, question: Question, limits: dict[str, int], concurrency: int
    ) -> None:
        self._client = client
        self.question = question
        self.concurrency = concurrency
        self.most_images = min(REQUEST_IMAGES, limits.get("parts", REQUEST_IMAGES))
        overhead = OVERHEAD_BYTES * self.most_images
        whole = limits.get("request_bytes", REQUEST_BYTES + overhead)
        self.most_bytes = min(REQUEST_BYTES, max(whole - overhead, 1))
        self._image_bytes = limits.get("part_bytes")

    async def judge(self, files: Sequence[ImageFile]) -> list[Row]:
        """In one request; where the service refuses all its images, in one for each."""
        found = await asyncio.to_thread(self._read, files)
        images = {file: image for file, image in found.items() if isinstance(image, bytes)}
        judged = await self._ask(images)
        refused = {file: row for file, row in found.items() if isinstance(row, dict)}
        rows = {**judged, **refused}
        return [rows[file] for file in files]

    def _read(self, files: Sequence[ImageFile]) -> dict[ImageFile, bytes | Row]:
        return {file: self._read_one(file) for file in files}

    def _read_one(self, file: ImageFile) -> bytes | Row:
        if self._image_bytes is not None and file.bytes > self._image_bytes:
            told = f"{file.bytes} bytes; the service takes at most {self._image_bytes}"
            return _failed_row(file, self.question, "too_large", told)
        try:
            return file.path.read_bytes()
        except OSError as error:
            return _unreadable_row(file, self.question, error)

    async def _ask(self, images: dict[ImageFile, bytes]) -> dict[ImageFile, Row]:
        if not images:
            return {}
        try:
            answer = await self._client.predict(
                list(images.values()), coverage=self.question.coverage
            )
        except ServiceError as error:
            # One image that the network fails on fails its whole request where all others are bad.
            if error.code not in (*IMAGE_CODES, "internal"):
                raise
            if len(images) > 1:
                return await self._ask_one_by_one(images)
            (file,) = images
            return {file: _failed_row(file, self.question, error.code, error.message)}
        return _served_rows(list(images), answer)

    async def _ask_one_by_one(self, images: dict[ImageFile, bytes]) -> dict[ImageFile, Row]:
        rows: dict[ImageFile, Row] = {}
        for file, image in images.items():
            rows |= await self._ask({file: image})
        return rows


def _failed_row(file: ImageFile, question: Question, code: str, message: str) -> Row:
    return {
        "file": str(file.path),
        "model": question.model,
        "labels": [],
        "probabilities": {},
        "out_of_domain": None,
        "error": {"code": code, "message": message},
    }


def _unreadable_row(file: ImageFile, question: Question, error: OSError) -> Row:
    return _failed_row(file, question, UNREADABLE, error.strerror or str(error))


def _served_rows(files: Sequence[ImageFile], answer: Predictions) -> dict[ImageFile, Row]:
    model = {"name": answer.model.name, "version": answer.model.version}
    return {
        file: _served_row(file, model, prediction)
        for file, prediction in zip(files, answer.predictions, strict=True)
    }


def _served_row(file: ImageFile, model: dict[str, str], prediction: Prediction) -> Row:
    foreign, error = prediction.out_of_domain, prediction.error
    row: Row = {
        "file": str(file.path),
        "model": model,
        "id": prediction.id,
        "labels": list(prediction.labels),
        "probabilities": prediction.probabilities,
        "out_of_domain": asdict(foreign) if foreign else None,
        "error": {"code": error[0], "message": error[1]} if error else None,
    }
    if prediction.prediction_set is not None:
        row["set"] = list(prediction.prediction_set)
    return row
