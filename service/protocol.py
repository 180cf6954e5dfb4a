"""Bounds on what comes before a request is known: its head, and what nobody reads of its body.

uvicorn has none: it keeps the headers of whoever connects, before any key is checked.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.events import TimerHandle
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, cast

import httptools
from typing_extensions import override
from uvicorn.config import HTTP_PROTOCOLS, Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from model.logs import REQUEST_ID
from service import metrics
from service.answers import ITS_ID, STATUS, error_response, log_access
from service.errors import Code, RequestError
from service.request_ids import RESPONSE_HEADER, request_id

LIMIT_HEAD_BYTES = 2**16

# Of method, URL, headers and address of a request.
Refusal = Callable[
    [bytes, bytes, Sequence[tuple[bytes, bytes]], tuple[str, int] | None], RequestError | None
]


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a head that is bounded in bytes and seconds.

    Over `LIMIT_HEAD_BYTES` in URL and headers, or in trailers, is 431. A head that is not whole
    `timeout_seconds` after the connection was made, or after the first byte of a later request, is
    408, or nothing where not a byte came. A body that nobody reads, since its request is answered,
    may come in as late as that. What is no HTTP is 400. All of these close the connection, and what
    they answer has an error object, an id and a count as every other answer has.

    What `refusal` tells of a head is answered there and then, and its body goes unread. A wish to
    go on in another protocol is not heard.
    """

    timeout_seconds = 10.0
    refusal: ClassVar[Refusal | None] = None
    logs_answers: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_head = True
        self._former_headers = self.headers  # of the request before this one
        self._is_refused = False  # the request that is coming in, by its head
        self._begun: float | None = None  # the request that is coming in; None between two
        self._raw_bytes = 0  # since the last that were body: of a head, or of trailers
        self._timer: TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begun = self.loop.time()
        # One timer a connection, not one a request: it looks again when the next may be due.
        self._timer = self.loop.call_later(self.timeout_seconds, self._look)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._begun is None:
            self._begun = self.loop.time()
        self._raw_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            self._refuse(_too_large() if self._raw_bytes > LIMIT_HEAD_BYTES else _no_http())
            return
        if self._raw_bytes > LIMIT_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def _feed(self, data: memoryview) -> None:
        """To the parser, which stops at a head that asks for another protocol.

        Then it takes whatever follows for that, the body of this request too. RFC 9110 7.8 lets a
        server ignore such a wish: a new parser reads the head again without it, and goes on.
        """
        while len(data):
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
                method = self.parser.get_method()
                if method == b"CONNECT":
                    self._refuse(_no_tunnel())
                    return
                version = b"HTTP/%s\r\n" % self.parser.get_http_version().encode()
                first = b" ".join((method, self.url, version))
                others = [its for its in self.headers if its[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as before
                self.parser.feed_data(first + _lines(others) + b"\r\n")

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._begun is None:  # behind another, in what came in with its end
            self._begun = self.loop.time()
            self._raw_bytes = 1
            self._unset_keepalive_if_required()

    @override
    def on_headers_complete(self) -> None:
        # What came in with the end of the head may be body: only then is it worth counting.
        if self._raw_bytes > LIMIT_HEAD_BYTES and self._head_bytes() > LIMIT_HEAD_BYTES:
            raise _HeadTooLargeError  # the parser stops, and a refusal is sent below
        self._raw_bytes = 0
        if self.parser.should_upgrade():
            return
        self._is_refused = self._refuse_by_head()
        if not self._is_refused:
            super().on_headers_complete()  # raises for a URL that is none: the head is not over
        self._in_head = False

    @override
    def on_body(self, body: bytes) -> None:
        self._raw_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._raw_bytes = 0
        self._in_head = True
        self._former_headers = self.headers
        self._begun = None
        if not self._is_refused:
            super().on_message_complete()
        self._is_refused = False
        if not self._is_answering:  # its answer went before its end
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse_by_head(self) -> bool:
        """Whether it was: only where the connection can go on after a plain answer."""
        refusal, parser = type(self).refusal, self.parser
        if refusal is None or self._is_answering or self.flow.write_paused:
            return False
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return False
        if self.expect_100_continue:
            return False
        error = refusal(parser.get_method(), self.url, self.headers, self.client)
        if error is None:
            return False
        self._write(error, request_id(self.headers))
        self.server_state.total_requests += 1
        return True

    def _write(self, error: RequestError, its_id: str) -> None:
        head, body = _head_and_body(error.code, str(error), tuple(error.headers.items()))
        own = [(RESPONSE_HEADER, its_id.encode())]
        more = _lines([*self.server_state.default_headers, *own])
        self.transport.write(b"".join((head, more, b"\r\n", body)))

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _look(self) -> None:
        """Close what is overdue, or look again when it may be."""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        begun = self._begun
        if begun is None or self._is_answering:  # a request that is worked on has its own limits
            begun = now
        due = begun + self.timeout_seconds
        if now < due:
            self._timer = self.loop.call_at(due, self._look)
        elif self._in_head and self._raw_bytes:
            self._refuse(_too_slow(self.timeout_seconds))
        else:
            self.transport.close()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_unanswered(self) -> bool:
        if self._in_head:  # the present cycle is of the request before it
            return not self._is_answering
        return self._is_answering and not self.cycle.response_started

    def _refuse(self, error: RequestError) -> None:
        """Say so where the client would take it for the answer to this request, and close."""
        if self._is_unanswered:
            self._tell(error)
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _tell(self, error: RequestError) -> None:
        """Answer, count, and log where answers are."""
        if self._is_answering:  # it counts and logs this, in the place of what it would have said
            scope = cast(dict[str, Any], self.cycle.scope)
            scope[STATUS] = error.status
            self._write(error, scope.setdefault(ITS_ID, request_id(self.headers)))
            return
        of_former = self.headers is self._former_headers
        its_id = request_id([] if of_former else self.headers)
        metrics.REQUEST["other", error.status].inc()
        self._write(error, its_id)
        if self.logs_answers:
            seconds = 0.0 if self._begun is None else self.loop.time() - self._begun
            token = REQUEST_ID.set(its_id)
            log_access("-", "other", error.status, seconds)  # the method may not be known
            REQUEST_ID.reset(token)


def put_in_force(
    timeout_seconds: float, refusal: Refusal | None = None, *, access_log: bool = False
) -> None:
    """For the server that this process is about to start.

    BentoML makes its configuration and asks nobody, so uvicorn's defaults are what can be set.
    """
    BoundedProtocol.timeout_seconds = timeout_seconds
    BoundedProtocol.logs_answers = access_log
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
    # By default it believes X-Forwarded-For of whoever asks from this machine, and a client would
    # have as many names as it likes. Who has set it knows a proxy to trust.
    trusted = os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    # Whose request a proxy passes on is found out behind the protocol.
    BoundedProtocol.refusal = None if trusted else refusal


class _HeadTooLargeError(Exception):
    pass


def _no_http() -> RequestError:
    return RequestError(
        "malformed",
        "this is no HTTP version 1: its first line, a header or the framing of its body is broken",
        {"Connection": "close"},
    )


def _no_tunnel() -> RequestError:
    headers = {"Allow": "GET, POST", "Connection": "close"}
    return RequestError("method_not_allowed", "CONNECT is not for this service", headers)


def _too_large() -> RequestError:
    return RequestError(
        "head_too_large",
        f"URL and headers have more than {LIMIT_HEAD_BYTES} bytes",
        {"Connection": "close"},
    )


def _too_slow(seconds: float) -> RequestError:
    return RequestError(
        "too_slow",
        f"the head of the request did not arrive within {seconds:g} seconds",
        {"Connection": "close"},
    )


@lru_cache(1024)  # one refusal is much like another
def _head_and_body(
    code: Code, message: str, headers: tuple[tuple[str, str], ...]
) -> tuple[bytes, bytes]:
    """The head lacks its last, empty line."""
    error = RequestError(code, message, dict(headers))
    response = error_response(error)
    return STATUS_LINE[error.status] + _lines(response.raw_headers), bytes(response.body)


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join([part for name, value in headers for part in (name, b": ", value, b"\r\n")])
