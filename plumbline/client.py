"""A typed HTTP client of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from model.errors import ServiceError


@dataclass(frozen=True)
class OutOfDomain:
    """Whether an image is foreign to the model; `score` is higher for more foreign images."""

    flagged: bool
    p_value: float
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the service said of one image; `error` is (code, message) where it said nothing.

    `prediction_set` is there where a coverage was asked for, the most probable class first; it is
    empty when no class is probable enough for that coverage.
    """

    id: str | None
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    out_of_domain: OutOfDomain | None
    error: tuple[str, str] | None
    prediction_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelName:
    """Which model answered."""

    name: str
    version: str
    stage: str


@dataclass(frozen=True)
class Predictions:
    """The answer to one request, in the order sent."""

    model: ModelName
    predictions: tuple[Prediction, ...]


class Client:
    """Talks to a running service.

    Use as a context manager, or call `close`. Raises `ServiceError` for every answer that is no
    success, and with code `unreachable` when there is none.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds)
        except httpx.InvalidURL as error:
            raise ServiceError("unreachable", f"{url!r} is no URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, images: Sequence[bytes], *, coverage: float | None = None) -> Predictions:
        """Send 1 to 64 images in one request; a coverage asks for prediction sets beside.

        A coverage that the model cannot promise is a `ServiceError` with code `invalid`.
        """
        files = [("image", (f"{index}", image)) for index, image in enumerate(images)]
        query = {} if coverage is None else {"coverage": str(coverage)}
        answer = self._call("POST", "/v1/predict", files=files, params=query)
        predictions = tuple(_prediction(row) for row in answer["predictions"])
        if coverage is not None:
            self._check_sets(predictions)
        return Predictions(ModelName(**answer["model"]), predictions)

    def _check_sets(self, predictions: Sequence[Prediction]) -> None:
        """A service older than prediction sets does not look at the coverage."""
        if any(its.error is None and its.prediction_set is None for its in predictions):
            raise ServiceError(
                "unsupported",
                f"{self._http.base_url} knows no prediction sets; it needs a newer Plumbline",
            )

    def feedback(self, prediction_id: str, labels: Sequence[str]) -> None:
        """Say what the image of a prediction really shows."""
        self._call("POST", "/v1/feedback", json={"id": prediction_id, "labels": list(labels)})

    def model(self) -> dict[str, Any]:
        """What is in force: classes, thresholds, input, metrics."""
        return self._call("GET", "/v1/model")

    def is_ready(self) -> bool:
        """Whether a model is loaded and warm."""
        try:
            self._call("GET", "/readyz")
        except ServiceError:
            return False
        return True

    def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError("unreachable", f"{self._http.base_url}: {error}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServiceError(
                "unreachable",
                f"{self._http.base_url} is no Plumbline service",
                response.status_code,
            )
        if response.is_success:
            return answer
        error_object = answer.get("error")
        if not isinstance(error_object, dict):
            error_object = {}
        raise ServiceError(
            str(error_object.get("code", "unreachable")),
            str(error_object.get("message", response.reason_phrase)),
            response.status_code,
            _whole_seconds(response.headers.get("Retry-After")),
        )


def _whole_seconds(header: str | None) -> int | None:
    """Retry-After in seconds; its other form, a date, counts as none."""
    return int(header) if header and header.isascii() and header.isdigit() else None


def _prediction(row: dict[str, Any]) -> Prediction:
    foreign, error = row["out_of_domain"], row["error"]
    return Prediction(
        id=row["id"],
        labels=tuple(row["labels"]),
        probabilities=row["probabilities"],
        out_of_domain=OutOfDomain(**foreign) if foreign else None,
        error=(error["code"], error["message"]) if error else None,
        prediction_set=tuple(row["set"]) if "set" in row else None,
    )
