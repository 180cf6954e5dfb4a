"""The first look at every request: its handler by one look into a table."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.answers import Handler


class Front:
    """Hands requests to their handlers by one look into a table; all else goes to Starlette.

    Handlers always answer, so that Starlette's layers, which turn exceptions into answers, would
    only cost time.
    """

    def __init__(self, handlers: dict[tuple[str, str], Handler], rest: ASGIApp) -> None:
        self._handlers = handlers
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's event, as ASGI has it."""
        if scope["type"] == "http":
            handler = self._handlers.get((scope["method"], scope["path"]))
            if handler is not None:
                response = await handler(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await self.rest(scope, receive, send)
