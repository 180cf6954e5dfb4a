"""Whether the client is still there: what nobody waits for is not worth computing."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from service.errors import ClientGoneError


class Attention:
    """While a client waits: `async with Attention(request.receive)`, once its body was read.

    When the client hangs up, the work inside is cancelled and `ClientGoneError` raised, as
    `asyncio.timeout` does it at a time.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._work, self._cancels_before = task, task.cancelling()
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listening.cancel()
        work = self._work
        # The task keeps its cancellation, and that a way back to here: a circle in every request.
        del self._listening, self._work
        if not self._is_gone:
            return
        is_ours = work.uncancel() <= self._cancels_before
        if is_ours and kind is asyncio.CancelledError:
            raise ClientGoneError from None

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._work.cancel()
