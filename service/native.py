"""BentoML's own face of the service: what its client, its schema and its page ask for.

The method with `@bentoml.api` is the class's in `service.app`; here it is called, behind the same
door as every other request. Images come as base64 in JSON: BentoML's image and file types answer
500 to junk, have no limit, and fetch URLs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import pydantic
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from typing_extensions import TypedDict

from model.errors import ImageError
from service.answers import Answers, json_response
from service.errors import RequestError

if TYPE_CHECKING:
    from _bentoml_sdk.service import Service

CLASSIFY_ROUTE = "/v1/classify"
_PAGE = "/bentoml"
_COMMAS_BESIDE = 100  # for whatever else a body has

Judge = Callable[[Sequence[bytes | ImageError]], Awaitable[dict[str, Any]]]


class ModelName(TypedDict):
    """Which version answered."""

    name: str
    version: str
    stage: str


class OutOfDomain(TypedDict):
    """How foreign an image is: flagged where p_value <= alpha; score is higher the more foreign."""

    flagged: bool
    p_value: float
    score: float


class ErrorObject(TypedDict):
    """Why there is no prediction."""

    code: str
    message: str


class Prediction(TypedDict):
    """Of one image; labels are empty when none of the classes applies."""

    id: str | None
    labels: list[str]
    probabilities: dict[str, float]
    set: NotRequired[list[str]]
    out_of_domain: OutOfDomain | None
    error: ErrorObject | None


class Predictions(TypedDict):
    """In the order of the images."""

    model: ModelName
    predictions: list[Prediction]


def decode_base64(texts: Sequence[str]) -> list[bytes | ImageError]:
    """The bytes of each; one that is no base64 gives its error in its place.

    >>> [str(image) for image in decode_base64(["aGk=", "?"])]
    ["b'hi'", 'the image is no base64: Only base64 data is allowed']
    """
    images: list[bytes | ImageError] = []
    for text in texts:
        try:
            images.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            images.append(ImageError("undecodable", f"the image is no base64: {error}"))
    return images


class NativeApi:
    """Calls the service's API method, and shows its schema."""

    def __init__(self, service: Service[Any], *, limit_images: int) -> None:
        self._service = service
        self._classify = service.apis["classify"]
        self._limit_images = limit_images

    async def classify(self, body: bytes, judge: Judge) -> dict[str, Any]:
        """Raises `RequestError` for a body that is not the method's input."""
        # Base64 has no commas: so many of them are more images, and each would cost before it is
        # counted.
        if body.count(b",") > self._limit_images + _COMMAS_BESIDE:
            raise self._too_many("too many")
        try:
            # In a thread: a body may have many megabytes.
            given = await asyncio.to_thread(self._classify.input_spec.model_validate_json, body)
        except pydantic.ValidationError as error:
            raise _refusal(error) from None
        if not given.images:
            raise RequestError("empty", "images is empty; send 1 or more, each as base64")
        if len(given.images) > self._limit_images:
            raise self._too_many(str(len(given.images)))
        answer: dict[str, Any] = await self._classify.func(self._service.inner(judge), given.images)
        return answer

    def _too_many(self, count: str) -> RequestError:
        return RequestError(
            "too_large", f"{count} images, at most {self._limit_images}; send fewer at a time"
        )

    def routes(self, answers: Answers) -> list[BaseRoute]:
        """Of the schema that BentoML's client reads, and of the page with its files."""
        # Imported here: BentoML takes long, and only a worker needs it.
        from bentoml._internal import server

        assets = Path(server.__file__).parent / "static_content"
        handlers = {
            "/schema.json": self._schema,
            f"{_PAGE}/docs.json": self._openapi,
            f"{_PAGE}/": self._page,
        }
        return [
            *(
                Route(path, answers.of(path, handler), methods=["GET"])
                for path, handler in handlers.items()
            ),
            Mount(f"{_PAGE}/static_content", StaticFiles(directory=assets)),
        ]

    async def _schema(self, request: Request) -> Response:
        return json_response(self._service.schema())

    async def _openapi(self, request: Request) -> Response:
        return json_response(await asyncio.to_thread(lambda: self._service.openapi_spec.asdict()))

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_HTML)


def _refusal(error: pydantic.ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return RequestError("malformed", f"the body is no JSON: {first['msg']}")
    return RequestError(
        "invalid", f'{place or "the body"}: {first["msg"]}; valid is {{"images": [BASE64, ...]}}'
    )


# BentoML's own page loads a tracker from the web; its files do not.
_HTML = """<!doctype html><html lang=en><meta charset=utf-8><title>Plumbline on BentoML</title>
<link rel=stylesheet href=./static_content/swagger-ui.css>
<link rel=stylesheet href=./static_content/index.css>
<body><div id=swagger-ui></div>
<script src=./static_content/swagger-ui-bundle.js></script>
<script src=./static_content/swagger-ui-standalone-preset.js></script>
<script src=./static_content/swagger-initializer.js></script>
</html>
"""
