"""What every answer has in common: its form, its id, its count, and that there is one."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from model.errors import ImageError
from model.logs import FIELDS, REQUEST_ID
from service import metrics
from service.errors import ClientGoneError, RequestError, unavailable
from service.lifecycle import Lifecycle
from service.request_ids import RESPONSE_HEADER, request_id

log = logging.getLogger("plumbline.http")
access = logging.getLogger("plumbline.access")

Handler = Callable[[Request], Awaitable[Response]]

# In the scope of a request: its id, and the status that was sent where nobody waits for its answer.
ITS_ID, STATUS = "plumbline.request_id", "plumbline.status"


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A ready JSON answer."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    """`{"error": {"code", "message"}}` with the status of the code."""
    return json_response({"error": error_object(error)}, error.status, error.headers)


def error_object(error: ImageError | RequestError) -> dict[str, str]:
    """Code and message, as the contract writes them."""
    return {"code": error.code, "message": str(error)}


class Answers:
    """Makes handlers of requests into handlers that always answer."""

    def __init__(self, lifecycle: Lifecycle, *, access_log: bool) -> None:
        self._lifecycle = lifecycle
        self._access_log = access_log

    def of(self, route: str, handler: Handler) -> Handler:
        """The handler, with its answers counted for `route` and named by their request's id."""

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            its_id = request.scope.setdefault(ITS_ID, request_id(request.scope["headers"]))
            REQUEST_ID.set(its_id)
            response = await self._answer(route, handler, request)
            response.raw_headers.append((RESPONSE_HEADER, its_id.encode()))
            if self._lifecycle.is_leaving and response.status_code < 400:
                # The next one goes elsewhere. Not where the body may be unread: its rest would
                # meet a closed connection, and the answer be lost.
                response.headers["Connection"] = "close"
            status = request.scope.get(STATUS, response.status_code)
            metrics.REQUEST[route, status].inc()
            if self._access_log:
                log_access(request.method, route, status, time.perf_counter() - started)
            return response

        return answer

    async def refuse_route(self, request: Request, error: Exception) -> Response:
        """A path or a method that is not there: all of them are one route to metrics."""
        assert isinstance(error, HTTPException)
        refusal = _refusal_of_route(request.method, error)

        async def refuse(request: Request) -> NoReturn:
            raise refusal

        return await self.of("other", refuse)(request)

    async def _answer(self, route: str, handler: Handler, request: Request) -> Response:
        """Turn every exception into an answer: one that escapes would hang its client."""
        task = self._lifecycle.enter()
        try:
            return await handler(request)
        except RequestError as error:
            if error.shed is not None:
                metrics.SHED[error.shed].inc()
            return error_response(error)
        except ClientGoneError as gone:
            return Response(status_code=gone.status)  # which nobody hears
        except asyncio.CancelledError:
            if not self._lifecycle.is_over:
                raise
            task.uncancel()
            metrics.SHED["stopping"].inc()
            return error_response(unavailable("the service stopped before this was done"))
        except Exception:
            log.exception("%s %s failed", request.method, route)
            return error_response(RequestError("internal", "an unexpected error; see the log"))
        finally:
            self._lifecycle.leave(task)


def _refusal_of_route(method: str, error: HTTPException) -> RequestError:
    if error.status_code == 405:
        return RequestError(
            "method_not_allowed",
            f"{method} is not for this path; valid: {(error.headers or {}).get('Allow')}",
            dict(error.headers or {}),
        )
    return RequestError("not_found", "there is no such path; GET /docs lists them")


def log_access(method: str, route: str, status: int, seconds: float) -> None:
    """One line of the access log, for the request whose id is in force."""
    # The route, not the path: what clients put into paths and queries is theirs.
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
    message = "%s %s %d in %.1f ms"
    access.info(message, method, route, status, 1e3 * seconds, extra={FIELDS: fields})
