"""A typed HTTP client of the service, for plain code and for asyncio.

    with Client("http://127.0.0.1:3000") as client:
        answer = client.predict(image)

    async with AsyncClient("http://127.0.0.1:3000") as client:
        answer = await client.predict(image)

Both have the same methods. What a method sends and how its answer is read is written once, as a
`_Call`; the two clients differ only in how they wait for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from model.errors import ServiceError as ServiceError

DEFAULT_URL = "http://127.0.0.1:3000"
TIMEOUT_SECONDS = 30.0
RETRIED = frozenset({429, 503})

_MOST_DOUBLINGS = 60  # more would leave the range of a float, and no backoff is that long


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


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a request that was turned away is sent again, and how late.

    Only 429 and 503: with these the service says that it did nothing with the request, and would
    take it later. Any other status would come again. A connection that fails is not tried again
    either: a service that is not there seldom comes within seconds, and one that went away in the
    middle may have judged and recorded the images already.

    The wait is what `Retry-After` says, at most `longest_seconds`, and on top of it a random time
    between 0 and a limit that doubles with every retry (full jitter), so that clients that were
    turned away together do not come back together.

    >>> patient = Retries(count=2, jitter=lambda: 1.0)
    >>> [patient.wait_seconds(tried, 429) for tried in range(3)]
    [0.5, 1.0, None]
    >>> patient.wait_seconds(0, 503, retry_after_seconds=7)
    7.5
    >>> patient.wait_seconds(0, 504) is None
    True
    """

    count: int = 4  # 0: never
    first_seconds: float = 0.5  # limit of the first random wait
    longest_seconds: float = 30.0  # of each part of a wait
    jitter: Callable[[], float] = random.random  # uniform between 0 and 1

    def wait_seconds(
        self, tried: int, status: int | None, retry_after_seconds: int | None = None
    ) -> float | None:
        """How long to wait after so many retries; None where the answer is final."""
        if status not in RETRIED or tried >= self.count:
            return None
        limit = self.first_seconds * 2.0 ** min(tried, _MOST_DOUBLINGS)
        told = min(self.longest_seconds, retry_after_seconds or 0)
        return told + min(self.longest_seconds, limit) * self.jitter()


NO_RETRIES = Retries(count=0)

Result = TypeVar("Result")
HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)


class Client:
    """Talks to a running service; several threads may share one.

    Use as a context manager, or call `close`. Raises `ServiceError` for every answer that is no
    success, and with code `unreachable` when there is none. `timeout_seconds` is for connecting
    and for each pause in what is sent and received, not for all tries together.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: Retries = Retries(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = _open(httpx.Client, url, api_key, timeout_seconds)
        self._retries = retries
        self._sleep = sleep

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

    def predict(
        self, images: bytes | Sequence[bytes], *, coverage: float | None = None
    ) -> Predictions:
        """Send 1 to 64 images in one request; a coverage asks for prediction sets beside.

        A coverage that the model cannot promise is a `ServiceError` with code `invalid`.
        """
        return self._send(_predict(images, coverage))

    def feedback(self, prediction_id: str, labels: Sequence[str]) -> None:
        """Say what the image of a prediction really shows."""
        self._send(_feedback(prediction_id, labels))

    def model(self) -> dict[str, Any]:
        """What is in force: classes, thresholds, input, limits, metrics."""
        return self._send(_MODEL)

    def is_ready(self) -> bool:
        """Whether a model is loaded and warm, at this moment: asked once."""
        try:
            return self._send(_READY, NO_RETRIES)
        except ServiceError:
            return False

    def _send(self, call: _Call[Result], retries: Retries | None = None) -> Result:
        retries, tried = retries or self._retries, 0
        while True:
            with _reaching(self._http):
                response = self._http.send(_request(self._http, call))
            wait = _wait_seconds(response, tried, retries)
            if wait is None:
                return _result(response, call)
            self._sleep(wait)
            tried += 1


class AsyncClient:
    """`Client` for asyncio: the same methods, to be awaited; use with `async with`.

    Many requests may be in flight at once. Cancelling a task that waits for one closes its
    connection.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: Retries = Retries(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = _open(httpx.AsyncClient, url, api_key, timeout_seconds)
        self._retries = retries
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self, images: bytes | Sequence[bytes], *, coverage: float | None = None
    ) -> Predictions:
        """As `Client.predict`."""
        return await self._send(_predict(images, coverage))

    async def feedback(self, prediction_id: str, labels: Sequence[str]) -> None:
        """As `Client.feedback`."""
        await self._send(_feedback(prediction_id, labels))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return await self._send(_MODEL)

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return await self._send(_READY, NO_RETRIES)
        except ServiceError:
            return False

    async def _send(self, call: _Call[Result], retries: Retries | None = None) -> Result:
        retries, tried = retries or self._retries, 0
        while True:
            with _reaching(self._http):
                response = await self._http.send(_request(self._http, call))
            wait = _wait_seconds(response, tried, retries)
            if wait is None:
                return _result(response, call)
            await self._sleep(wait)
            tried += 1


@dataclass(frozen=True)
class _Call(Generic[Result]):
    """One kind of request: what is sent, and how the JSON of a success is read."""

    method: str
    path: str
    read: Callable[[dict[str, Any]], Result]
    content: dict[str, Any] = field(default_factory=dict)


_MODEL: _Call[dict[str, Any]] = _Call("GET", "/v1/model", lambda answer: answer)
_READY: _Call[bool] = _Call("GET", "/readyz", lambda answer: True)


def _predict(images: bytes | Sequence[bytes], coverage: float | None) -> _Call[Predictions]:
    sent = [images] if isinstance(images, bytes) else images
    files = [("image", (f"{index}", image)) for index, image in enumerate(sent)]
    query = {} if coverage is None else {"coverage": str(coverage)}

    def read(answer: dict[str, Any]) -> Predictions:
        predictions = tuple(_prediction(row) for row in answer["predictions"])
        if len(predictions) != len(sent):
            raise ValueError(f"{len(predictions)} predictions for {len(sent)} images")
        if coverage is not None:
            _check_sets(predictions)
        model = answer["model"]
        return Predictions(ModelName(model["name"], model["version"], model["stage"]), predictions)

    return _Call("POST", "/v1/predict", read, {"files": files, "params": query})


def _check_sets(predictions: Sequence[Prediction]) -> None:
    """A service older than prediction sets does not look at the coverage."""
    if any(its.error is None and its.prediction_set is None for its in predictions):
        raise ServiceError(
            "unsupported", "the service knows no prediction sets; it needs a newer Plumbline"
        )


def _prediction(row: dict[str, Any]) -> Prediction:
    foreign, error = row["out_of_domain"], row["error"]
    return Prediction(
        id=row["id"],
        labels=tuple(row["labels"]),
        probabilities=row["probabilities"],
        out_of_domain=OutOfDomain(foreign["flagged"], foreign["p_value"], foreign["score"])
        if foreign
        else None,
        error=(error["code"], error["message"]) if error else None,
        prediction_set=tuple(row["set"]) if "set" in row else None,
    )


def _feedback(prediction_id: str, labels: Sequence[str]) -> _Call[None]:
    content = {"id": prediction_id, "labels": list(labels)}
    return _Call("POST", "/v1/feedback", lambda answer: None, {"json": content})


def _open(
    kind: type[HttpClient], url: str, api_key: str | None, timeout_seconds: float
) -> HttpClient:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return kind(
            base_url=url, headers=headers, timeout=httpx.Timeout(timeout_seconds, pool=None)
        )
    except httpx.InvalidURL as error:
        raise ServiceError("unreachable", f"{url!r} is no URL: {error}") from error


def _request(http: httpx.Client | httpx.AsyncClient, call: _Call[Result]) -> httpx.Request:
    return http.build_request(call.method, call.path, **call.content)


@contextmanager
def _reaching(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    """Where no answer comes, whatever the reason: `unreachable`."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        raise ServiceError("unreachable", f"{http.base_url}: {why}") from error


def _wait_seconds(response: httpx.Response, tried: int, retries: Retries) -> float | None:
    return retries.wait_seconds(tried, response.status_code, _retry_after_seconds(response))


def _retry_after_seconds(response: httpx.Response) -> int | None:
    """Retry-After in seconds; its other form, a date, counts as none."""
    header = response.headers.get("Retry-After")
    # A number of ten digits is too long to wait for as well, and more may be too many to read.
    return int(header[:10]) if header and header.isascii() and header.isdigit() else None


def _result(response: httpx.Response, call: _Call[Result]) -> Result:
    """What the answer says. Raises `ServiceError`."""
    if not response.is_success:
        raise _refusal(response)
    try:
        return call.read(_json_object(response))
    except (LookupError, TypeError, ValueError) as error:
        raise _no_plumbline(response) from error


# What a proxy's status means for the request, as the service itself would name it.
_CODES_OF_PROXIES = {401: "unauthorized", 403: "forbidden", 413: "too_large"}


def _refusal(response: httpx.Response) -> ServiceError:
    """What the service says is wrong; or that something in front of it answered instead."""
    status, retry_after_seconds = response.status_code, _retry_after_seconds(response)
    try:
        error = response.json()["error"]
        return ServiceError(str(error["code"]), str(error["message"]), status, retry_after_seconds)
    except (ValueError, LookupError, TypeError):
        code = _CODES_OF_PROXIES.get(status, "unreachable")
        message = (
            f"{response.url} answered {response.reason_phrase or 'so'}, but not as a Plumbline"
            " service does: it is a proxy before it, or another program"
        )
        return ServiceError(code, message, status, retry_after_seconds)


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _no_plumbline(response)
    return answer


def _no_plumbline(response: httpx.Response) -> ServiceError:
    return ServiceError(
        "unreachable",
        f"{response.url} is no Plumbline service, or of another version: it answered otherwise"
        " than one does",
        response.status_code,
        _retry_after_seconds(response),
    )
