"""The door: what is checked before any image is decoded, cheap things first.

Reads the body under its byte and time limits, takes multipart apart, and hands the images to the
decoder, which checks type and size of each by its header.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from model.errors import ImageError
from model.images import InputSpec
from service.decoding import Admitted, Decoder
from service.errors import ClientGoneError, DropReason, RequestError, deadline_exceeded
from service.settings import MEBIBYTE, ServiceSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_PARSED_AT_ONCE_BYTES = MEBIBYTE  # a larger form would hold up the event loop
_PLAIN_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})

OnBytes = Callable[[int], None]
OnDrop = Callable[[DropReason, int], None]


def _uncounted(*_: object) -> None:
    """For callers that keep no count."""


class Admission:
    """Turns a request into images that are ready for the network.

    `on_drop` hears of images that are given up before they are decoded.
    """

    def __init__(self, settings: ServiceSettings, *, on_drop: OnDrop = _uncounted) -> None:
        self._settings = settings
        self._on_drop = on_drop
        self._decoder = Decoder(
            settings.image_limits,
            threads=settings.decode_threads,
            budget_bytes=settings.limit_decoded_bytes,
        )

    def close(self) -> None:
        """Stop the decoding threads."""
        self._decoder.close()

    async def read_images(
        self, request: Request, *, deadline: float | None = None, on_bytes: OnBytes = _uncounted
    ) -> list[bytes]:
        """Read the body: the images' bytes in order.

        `on_bytes` hears of every chunk before it is kept, and may refuse it. Raises
        `RequestError`, `deadline_exceeded` at `deadline` by the event loop's clock.
        """
        content_type, boundary = _content_type(request)
        if content_type == "multipart/form-data":
            limit = self._settings.limit_request_bytes
            body = await self.read_body(request, limit, deadline=deadline, on_bytes=on_bytes)
            most = self._settings.limit_parts
            if len(body) > _PARSED_AT_ONCE_BYTES:
                return await asyncio.to_thread(split_multipart, body, boundary, most)
            return split_multipart(body, boundary, most)
        if content_type not in _PLAIN_TYPES and not content_type.startswith("image/"):
            raise RequestError(
                "unsupported_type",
                f"the Content-Type is {content_type!r}; send image bytes as image/*,"
                " or multipart/form-data with parts named 'image'",
            )
        limit = self._settings.limit_part_bytes
        return [await self.read_body(request, limit, deadline=deadline, on_bytes=on_bytes)]

    async def read_json(
        self, request: Request, *, deadline: float | None = None, on_bytes: OnBytes = _uncounted
    ) -> bytes:
        """Read the body of a request that has to say that it is JSON; otherwise as `read_body`."""
        content_type, _ = _content_type(request)
        if content_type != "application/json":
            raise RequestError(
                "unsupported_type",
                f"the Content-Type is {content_type!r}; valid is only application/json",
            )
        limit = self._settings.limit_request_bytes
        return await self.read_body(request, limit, deadline=deadline, on_bytes=on_bytes)

    async def read_body(
        self,
        request: Request,
        limit: int,
        *,
        deadline: float | None = None,
        on_bytes: OnBytes = _uncounted,
    ) -> bytes:
        """Read a body of at most `limit` bytes, without reading the rest of a longer one.

        Raises `ClientGoneError` when the client hangs up before its end.
        """
        check_encoding(request)
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(int(declared), limit)
        given_up = asyncio.get_running_loop().time() + self._settings.body_timeout_seconds
        is_due_first = deadline is not None and deadline < given_up
        try:
            async with asyncio.timeout_at(deadline if is_due_first else given_up):
                return await _collect(request.stream(), limit, on_bytes)
        except TimeoutError:
            if is_due_first:
                self._on_drop("deadline", 1)
                raise deadline_exceeded({"Connection": "close"}) from None
            raise RequestError(
                "too_slow",
                f"the body did not arrive within {self._settings.body_timeout_seconds:g} seconds",
                {"Connection": "close"},
            ) from None
        except ClientDisconnect:
            raise ClientGoneError from None

    async def admit_all(
        self,
        images: Sequence[bytes | ImageError],
        spec: InputSpec,
        *,
        deadline: float,
        client: Hashable = None,
    ) -> list[Admitted | ImageError]:
        """Every image of a request, checked and decoded; a bad one gives its error in its place.

        Raises `RequestError` `deadline_exceeded` at `deadline`, by the event loop's clock. Then,
        and when it is cancelled, what has not begun is not decoded.
        """
        whole = [image for image in images if isinstance(image, bytes)]
        try:
            if asyncio.get_running_loop().time() >= deadline:
                raise TimeoutError  # not after a first step of the work
            async with asyncio.timeout_at(deadline):
                decoded = iter(await self._decoder.decode(whole, spec, client=client))
        except TimeoutError:
            self._on_drop("deadline", len(images))
            raise deadline_exceeded() from None
        except asyncio.CancelledError:
            self._on_drop("client_gone", len(images))
            raise
        return [next(decoded) if isinstance(image, bytes) else image for image in images]


def split_multipart(body: bytes, boundary: bytes | None, limit_parts: int) -> list[bytes]:
    """The parts named `image` of a multipart/form-data body, in order.

    Raises `RequestError`: `malformed` for broken framing, a body that ends before its last
    boundary, or parts of other names; `too_large` for too many parts; `empty` for none.
    """
    if not boundary:
        raise RequestError("malformed", "the multipart Content-Type names no boundary")
    parts = _Parts(limit_parts)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError("malformed", f"the multipart body is broken: {error}") from None
    if not parts.ended:
        raise RequestError("malformed", "the multipart body ends before its last boundary")
    if not parts.images:
        raise RequestError("empty", "the form has no part; send 1 or more parts named 'image'")
    return [bytes(image) for image in parts.images]


class _Parts:
    """Collects the parts that the streaming parser meets."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self.images: list[bytearray] = []
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if len(self.images) == self._limit:
            raise RequestError("too_large", f"more than {self._limit} parts; send fewer at a time")
        self._headers = {}
        self.images.append(bytearray())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if name != "image":
            raise RequestError("malformed", f"a part is named {name!r}; valid is only 'image'")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.images[-1] += data[start:end]

    def _end(self) -> None:
        self.ended = True


def check_encoding(request: Request) -> None:
    """Raise `RequestError` `unsupported_type` for a compressed body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(
            "unsupported_type", f"the Content-Encoding is {encoding!r}; valid is only identity"
        )


def _content_type(request: Request) -> tuple[str, bytes | None]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1").strip().lower(), options.get(b"boundary")


async def _collect(chunks: AsyncIterator[bytes], limit: int, on_bytes: OnBytes) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        on_bytes(len(chunk))
        if len(body) + len(chunk) > limit:
            raise _too_large(len(body) + len(chunk), limit)
        body += chunk
    return bytes(body)


def _too_large(given: int, limit: int) -> RequestError:
    # The rest of the body is not read, so the connection cannot be used again.
    return RequestError(
        "too_large",
        f"the body has {given} bytes or more; at most {limit} are taken",
        {"Connection": "close"},
    )
