"""The HTTP contract, version 1: routes, answers and errors."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import uuid_utils
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from model.conformal_sets import VALID, parse_coverage
from model.errors import CoverageError, ImageError
from model.images import Pixels
from monitoring.image_store import ImageStore, StoredImage
from monitoring.records import Record, RecordSink
from service import metrics
from service.admission import Admission, Admitted
from service.batcher import Answer, Batcher
from service.clients import Clients
from service.errors import RequestError, unavailable
from service.feedback import LIMIT_BODY_BYTES, FeedbackDesk, parse_feedback
from service.occupancy import Occupancy
from service.openapi import docs_page, openapi
from service.predictor import Judgement, Predictor
from service.rollout import Rollout
from service.settings import ServiceSettings

log = logging.getLogger("plumbline.http")

Outcome = dict[str, Any] | ImageError | RequestError  # a prediction object, or why there is none
PredictionBatcher = Batcher[Pixels, Judgement]


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A ready JSON answer."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    """`{"error": {"code", "message"}}` with the status of the code."""
    return json_response({"error": _error_object(error)}, error.status, error.headers)


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
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._rollout = rollout
        self._admission = admission
        self._batcher = batcher
        self._records = records
        self._images = images
        self._feedback = feedback
        self._openapi = openapi(settings)
        self._occupancy = Occupancy(
            most_images=settings.queue_images,
            most_bytes=settings.limit_bytes_in_flight,
            images_per_second=lambda: batcher.images_per_second,
        )
        self.draining = False
        self.judged = 0
        self.flagged = 0

    def app(self, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
        """The ASGI application; `lifespan` starts and stops what it needs."""
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
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
        app = Starlette(
            routes=[
                Route(path, _answering(path, handler), methods=[method])
                for method, path, handler in routes
            ],
            exception_handlers={HTTPException: _refuse_route},
            lifespan=lifespan,
        )
        app.router.redirect_slashes = False  # another path is not found, not guessed
        return app

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict: judge one image, or the parts of a multipart body."""
        started = time.perf_counter()
        client = self._clients.admit(request, "predict")
        predictor = self._predictor()
        least_probability = _least_probability(request, predictor)
        with self._occupancy.visit() as visit:
            visit.take_images(1)
            images = await self._admission.read_images(request, on_bytes=visit.take_bytes)
            visit.take_images(len(images) - 1)
            outcomes = await self._judge(images, predictor, client, least_probability)
        metrics.REQUEST_SECONDS.observe(time.perf_counter() - started)
        if not any(isinstance(outcome, dict) for outcome in outcomes):
            raise _as_request_error(outcomes[0])
        predictions = [
            outcome if isinstance(outcome, dict) else _failed_prediction(outcome)
            for outcome in outcomes
        ]
        return json_response({"model": _model_object(predictor), "predictions": predictions})

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
        """GET /readyz: a model is loaded and warm."""
        self._predictor()
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

    def _predictor(self) -> Predictor:
        if self.draining:
            raise unavailable("the service is stopping")
        if self._rollout.champion is None:
            raise unavailable("the service is starting: no model is loaded yet")
        return self._rollout.champion

    async def _judge(
        self,
        images: list[bytes],
        predictor: Predictor,
        client: str,
        least_probability: float | None,
    ) -> list[Outcome]:
        """One prediction object or error per image, in order; records what was predicted."""
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_seconds
        admitted = await self._admission.admit_all(images, predictor.input, deadline=deadline)
        good = [image for image in admitted if isinstance(image, Admitted)]
        answers = iter(
            await self._batcher.submit(
                predictor, [image.pixels for image in good], deadline=deadline
            )
        )
        outcomes: list[Outcome] = []
        for image, data in zip(admitted, images, strict=True):
            if isinstance(image, ImageError):
                metrics.IMAGES.labels(image.code).inc()
                outcomes.append(image)
                continue
            answer = next(answers)
            if isinstance(answer, Exception):
                metrics.IMAGES.labels("internal").inc()
                outcomes.append(RequestError("internal", "this image could not be judged"))
            else:
                outcomes.append(
                    self._prediction(image, data, answer, predictor, client, least_probability)
                )
        return outcomes

    def _prediction(
        self,
        image: Admitted,
        data: bytes,
        answer: Answer[Judgement],
        predictor: Predictor,
        client: str,
        least_probability: float | None,
    ) -> dict[str, Any]:
        prediction_id = str(uuid_utils.uuid7())
        flagged = answer.result.flagged
        if self._records is not None:
            self._records.offer(make_record(prediction_id, image, answer, predictor, client))
        if self._images is not None:
            self._images.offer(StoredImage(prediction_id, flagged, image.header.format, data))
        _count(image, answer)
        self.judged += 1
        self.flagged += flagged
        judged = answer.result.as_answer(predictor.classes, least_probability)
        return {"id": prediction_id, **judged, "error": None}


def _answering(
    route: str, handler: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Turn every exception of a handler into an answer: one that escapes would hang its client."""

    async def answer(request: Request) -> Response:
        try:
            response = await handler(request)
        except RequestError as error:
            response = error_response(error)
        except Exception:
            log.exception("%s %s failed", request.method, route)
            response = error_response(RequestError("internal", "an unexpected error; see the log"))
        metrics.REQUESTS.labels(route, str(response.status_code)).inc()
        return response

    return answer


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = RequestError(
            "method_not_allowed",
            f"{request.method} is not for this path; valid: {(error.headers or {}).get('Allow')}",
            dict(error.headers or {}),
        )
    else:
        refusal = RequestError("not_found", "there is no such path; GET /docs lists them")
    metrics.REQUESTS.labels("other", str(refusal.status)).inc()
    return error_response(refusal)


def _error_object(error: ImageError | RequestError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


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
        "error": _error_object(error),
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
        "engine": {"name": predictor.engine.name, "precision": predictor.engine.precision},
        "alpha": predictor.alpha,
        "outlier": manifest.outlier.model_dump(),
        "prediction_sets": None if sets is None else sets.model_dump(),
        "metrics": {name: metric.model_dump() for name, metric in manifest.metrics.items()},
    }


def _count(image: Admitted, answer: Answer[Judgement]) -> None:
    metrics.IMAGES.labels("ok").inc()
    metrics.STEP_SECONDS.labels("decode").observe(image.decode_seconds)
    metrics.STEP_SECONDS.labels("queue").observe(answer.queue_seconds)
    metrics.STEP_SECONDS.labels("compute").observe(answer.compute_seconds)
    if answer.result.flagged:
        metrics.FLAGGED.inc()
    for label in answer.result.labels:
        metrics.LABELS.labels(label).inc()


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
