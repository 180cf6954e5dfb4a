"""The HTTP contract, version 1: routes, answers and errors."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uuid_utils
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Lifespan

from model.conformal_sets import VALID, parse_coverage
from model.errors import CoverageError, ImageError
from model.images import Pixels
from monitoring.image_store import ImageStore, StoredImage
from monitoring.records import RecordSink
from service import metrics
from service.admission import Admission
from service.answers import Answers, Handler, error_object, json_response
from service.attention import Attention
from service.batcher import Answer, Batcher
from service.clients import Clients
from service.decoding import Admitted
from service.early_refusal import EarlyRefusal
from service.errors import RequestError, unavailable
from service.feedback import LIMIT_BODY_BYTES, FeedbackDesk, parse_feedback
from service.front import Front
from service.lifecycle import Lifecycle
from service.native import CLASSIFY_ROUTE, NativeApi
from service.occupancy import Occupancy, Visit
from service.openapi import DEADLINE_HEADER, docs_page, openapi
from service.predictor import Judgement, Predictor
from service.recording import make_record
from service.rollout import Rollout
from service.settings import ServiceSettings

log = logging.getLogger("plumbline.http")

Outcome = dict[str, Any] | ImageError | RequestError  # a prediction object, or why there is none
PredictionBatcher = Batcher[Pixels, Judgement]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is settled of a request before its images are read."""

    request: Request
    client: str
    predictor: Predictor
    least_probability: float | None
    deadline: float | None  # that it names itself, by the event loop's clock
    visit: Visit


class Door:
    """The handlers of every route, over the parts of one worker."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        clients: Clients,
        rollout: Rollout,
        admission: Admission,
        batcher: PredictionBatcher,
        records: RecordSink | None,
        images: ImageStore | None,
        feedback: FeedbackDesk,
        native: NativeApi | None = None,
    ) -> None:
        """`native` is BentoML's face; None leaves it out."""
        self._settings = settings
        self._clients = clients
        self._rollout = rollout
        self._admission = admission
        self._batcher = batcher
        self._records = records
        self._images = images
        self._feedback = feedback
        self._native = native
        self._openapi = openapi(settings, native=native is not None)
        self._occupancy = Occupancy(
            most_images=settings.queue_images,
            most_bytes=settings.limit_bytes_in_flight,
            longest_seconds=settings.body_timeout_seconds + settings.deadline_seconds,
        )
        self.lifecycle = Lifecycle()
        self._answers = Answers(self.lifecycle, access_log=settings.access_log)
        self.early_refusal = EarlyRefusal(
            clients=clients, rollout=rollout, lifecycle=self.lifecycle, occupancy=self._occupancy
        )
        self.judged = 0
        self.flagged = 0

    def app(self, lifespan: Lifespan[Starlette] | None = None) -> ASGIApp:
        """The ASGI application; `lifespan` starts and stops what it needs."""
        routes: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/predict", self.predict),
            ("POST", "/v1/feedback", self.feedback),
            ("GET", "/v1/model", self.model),
            ("GET", "/livez", self.alive),
            ("GET", "/healthz", self.alive),
            ("GET", "/readyz", self.ready),
            ("GET", "/metrics", self.metrics),
            ("GET", "/docs", self.docs),
            ("GET", "/openapi.json", self.openapi_document),
            ("GET", "/", self.index),
        ]
        more: list[BaseRoute] = []
        if self._native is not None:
            routes.append(("POST", CLASSIFY_ROUTE, self.classify))
            more = self._native.routes(self._answers)
        handlers = {
            (method, path): self._answers.of(path, handler) for method, path, handler in routes
        }
        app = Starlette(
            routes=[
                *(
                    Route(path, handler, methods=[method])
                    for (method, path), handler in handlers.items()
                ),
                *more,
            ],
            exception_handlers={HTTPException: self._answers.refuse_route},
            lifespan=lifespan,
        )
        app.router.redirect_slashes = False  # another path is not found, not guessed
        return Front(handlers, app)

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict: judge one image, or the parts of a multipart body."""

        async def images_of(asked: _Asked) -> Response:
            images = await self._admission.read_images(
                request, deadline=asked.deadline, on_bytes=asked.visit.take_bytes
            )
            return json_response(await self._judge(asked, images))

        return await self._answer(request, images_of)

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify: BentoML's API method, on a JSON list of images as base64."""
        native = self._native
        assert native is not None  # else there is no such route

        async def call(asked: _Asked) -> Response:
            body = await self._admission.read_json(
                request, deadline=asked.deadline, on_bytes=asked.visit.take_bytes
            )
            return json_response(await native.classify(body, partial(self._judge, asked)))

        return await self._answer(request, call)

    async def _answer(
        self, request: Request, handle: Callable[[_Asked], Awaitable[Response]]
    ) -> Response:
        """What every request with images goes through, before and after what is its own."""
        started, loop = time.perf_counter(), asyncio.get_running_loop()
        arrived = loop.time()
        client = self._clients.admit(request, "predict")
        predictor = self._predictor()
        with self._occupancy.visit(client) as visit:
            visit.take_images(1)  # before what else may be wrong, as `EarlyRefusal`
            least_probability = _least_probability(request, predictor)
            seconds = _asked_seconds(request, self._settings.longest_deadline_seconds)
            deadline = None if seconds is None else arrived + seconds
            asked = _Asked(request, client, predictor, least_probability, deadline, visit)
            response = await handle(asked)
        metrics.REQUEST_SECONDS.observe(time.perf_counter() - started)
        return response

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback: keep what an image really shows."""
        client = self._clients.admit(request, "feedback")
        predictor = self._predictor()
        body = await self._admission.read_body(request, LIMIT_BODY_BYTES)
        # What was predicted shortly before a promotion is told shortly after it.
        prediction_id, labels = parse_feedback(body, self._rollout.classes)
        await self._feedback.store(prediction_id, client, labels, predictor.bundle.manifest.tag)
        metrics.FEEDBACK.inc()
        return json_response({"id": prediction_id, "labels": labels}, 202)

    async def model(self, request: Request) -> Response:
        """GET /v1/model: what is in force."""
        self._clients.admit(request, "predict")
        description = _model_description(self._predictor())
        return json_response({**description, "limits": self._settings.request_limits})

    async def alive(self, request: Request) -> Response:
        """GET /livez and /healthz: the process answers."""
        return json_response({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: a model is loaded and warm, and the worker is not about to stop."""
        if self.lifecycle.is_leaving:
            raise unavailable("the service is stopping")
        if self._rollout.champion is None:
            raise unavailable("the service is starting: no model is loaded yet")
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, of all workers."""
        self._clients.admit(request, "metrics")
        text = await asyncio.to_thread(metrics.exposition)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def docs(self, request: Request) -> Response:
        """GET /docs: this interface, for people."""
        return HTMLResponse(docs_page(self._openapi))

    async def openapi_document(self, request: Request) -> Response:
        """GET /openapi.json: this interface, for programs."""
        return json_response(self._openapi)

    async def index(self, request: Request) -> Response:
        """GET /: to the documentation."""
        return RedirectResponse("/docs")

    @property
    def images_inside(self) -> int:
        """Images of requests that are not yet answered."""
        return self._occupancy.images

    def _predictor(self) -> Predictor:
        """For new work."""
        if self.lifecycle.is_refusing:
            raise unavailable("the service is stopping", shed="stopping")
        if self._rollout.champion is None:
            message = "the service is starting: no model is loaded yet"
            raise unavailable(message, shed="starting")
        return self._rollout.champion

    async def _judge(self, asked: _Asked, images: Sequence[bytes | ImageError]) -> dict[str, Any]:
        """Decode and compute: the answer of a request.

        Raises `RequestError`, that of the first image where none could be judged.
        """
        asked.visit.take_images(len(images) - 1)
        deadline = asked.deadline
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._settings.deadline_seconds
        async with Attention(asked.request.receive):
            admitted = await self._admission.admit_all(
                images, asked.predictor.input, deadline=deadline, client=asked.client
            )
            pixels = [image.pixels for image in admitted if isinstance(image, Admitted)]
            answers = await self._batcher.submit(
                asked.predictor, pixels, deadline=deadline, client=asked.client
            )
        judged = time.perf_counter()
        try:
            outcomes = self._outcomes(asked, images, admitted, answers)
            return _answer_of(outcomes, asked.predictor)
        finally:
            metrics.STEP["respond"].observe(time.perf_counter() - judged)

    def _outcomes(
        self,
        asked: _Asked,
        images: Sequence[bytes | ImageError],
        admitted: list[Admitted | ImageError],
        answers: list[Answer[Judgement] | Exception],
    ) -> list[Outcome]:
        """One prediction object or error per image, in order; records what was predicted."""
        outcomes: list[Outcome] = []
        of_good_images = iter(answers)
        for image, data in zip(admitted, images, strict=True):
            if isinstance(image, ImageError):
                metrics.OUTCOME[image.code].inc()
                outcomes.append(image)
                continue
            answer = _checked(next(of_good_images))
            if isinstance(answer, Exception):
                log.error("an image could not be judged", exc_info=answer)
                metrics.OUTCOME["internal"].inc()
                outcomes.append(RequestError("internal", "this image could not be judged"))
            else:
                assert isinstance(data, bytes)  # else it was not admitted
                outcomes.append(self._prediction(asked, image, data, answer))
        return outcomes

    def _prediction(
        self, asked: _Asked, image: Admitted, data: bytes, answer: Answer[Judgement]
    ) -> dict[str, Any]:
        prediction_id = str(uuid_utils.uuid7())
        flagged = answer.result.flagged
        if self._records is not None and random.random() < self._settings.record_share:
            record = make_record(prediction_id, image, answer, asked.predictor, asked.client)
            self._records.offer(record)
        if self._images is not None:
            self._images.offer(StoredImage(prediction_id, flagged, image.header.format, data))
        _count(image, answer)
        self.judged += 1
        self.flagged += flagged
        judged = answer.result.as_answer(asked.predictor.classes, asked.least_probability)
        return {"id": prediction_id, **judged, "error": None}


def _checked(answer: Answer[Judgement] | Exception) -> Answer[Judgement] | Exception:
    """JSON has no NaN: it would take the neighbours' answers along."""
    if isinstance(answer, Exception) or answer.result.is_finite:
        return answer
    return ArithmeticError("the score or a probability is no finite number")


def _answer_of(outcomes: list[Outcome], predictor: Predictor) -> dict[str, Any]:
    if not any(isinstance(outcome, dict) for outcome in outcomes):
        raise _as_request_error(outcomes[0])
    predictions = [
        outcome if isinstance(outcome, dict) else _failed_prediction(outcome)
        for outcome in outcomes
    ]
    return {"model": _model_object(predictor), "predictions": predictions}


def _as_request_error(error: Outcome) -> RequestError:
    if isinstance(error, ImageError):
        return RequestError(error.code, str(error))
    assert isinstance(error, RequestError)
    return error


def _failed_prediction(error: ImageError | RequestError) -> dict[str, Any]:
    return {
        "id": None,
        "labels": [],
        "probabilities": {},
        "out_of_domain": None,
        "error": error_object(error),
    }


def _least_probability(request: Request, predictor: Predictor) -> float | None:
    """Of a class in the prediction sets that the request asks for; None where it asks for none."""
    given = request.query_params.getlist("coverage")
    if not given:
        return None
    try:
        if len(given) > 1:
            raise CoverageError(f"coverage is given {len(given)} times; {VALID}, once")
        return predictor.least_probability(parse_coverage(given[0]))
    except CoverageError as error:
        raise RequestError("invalid", str(error)) from None


def _asked_seconds(request: Request, most_seconds: float) -> float | None:
    """The deadline that the request asks for, in seconds from its arrival; None where it does not.

    Raises `RequestError` `invalid`.
    """
    given = request.headers.getlist(DEADLINE_HEADER)
    if not given:
        return None
    most = round(1000 * most_seconds)
    text = ", ".join(given).strip()
    is_number = text.isascii() and text.isdecimal() and len(text) <= 9
    if not (is_number and 1 <= int(text) <= most):
        raise RequestError(
            "invalid",
            f"{DEADLINE_HEADER} is {text[:80]!r}; valid is a whole number of milliseconds, 1 to"
            f" {most}, once",
        )
    return int(text) / 1000


def _model_object(predictor: Predictor) -> dict[str, str]:
    manifest = predictor.bundle.manifest
    return {"name": manifest.name, "version": manifest.version, "stage": predictor.stage}


def _model_description(predictor: Predictor) -> dict[str, Any]:
    manifest = predictor.bundle.manifest
    sets = manifest.prediction_sets
    return {
        **_model_object(predictor),
        "task": manifest.task,
        "none_allowed": manifest.none_allowed,
        "classes": list(manifest.classes),
        "thresholds": manifest.thresholds.model_dump(),
        "input": {"size": manifest.input.size, "crop": manifest.input.crop},
        "architecture": manifest.architecture,
        "engine": {
            "name": predictor.engine.name,
            "precision": predictor.engine.precision,
            "batch_images": predictor.batch_images,
        },
        "alpha": predictor.alpha,
        "outlier": manifest.outlier.model_dump(),
        "prediction_sets": None if sets is None else sets.model_dump(),
        "metrics": {name: metric.model_dump() for name, metric in manifest.metrics.items()},
    }


def _count(image: Admitted, answer: Answer[Judgement]) -> None:
    judgement = answer.result
    metrics.OUTCOME["ok"].inc()
    metrics.STEP["decode"].observe(image.decode_seconds)
    metrics.STEP["queue"].observe(answer.queue_seconds)
    metrics.STEP["compute"].observe(answer.compute_seconds)
    metrics.CONFIDENCE.observe(judgement.confidence)
    metrics.P_VALUE.observe(judgement.p_value)
    if judgement.flagged:
        metrics.FLAGGED.inc()
    for label in judgement.labels:
        metrics.LABEL[label].inc()
    if not judgement.labels:
        metrics.UNLABELLED.inc()
