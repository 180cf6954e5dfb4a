"""From the signal to stop to the end of a worker, without a request lost on the way."""

from __future__ import annotations

import asyncio

# For what was given up to answer so.
_GIVE_UP_SECONDS = 1.0


class Lifecycle:
    """Where a worker stands.

    Serving; then *leaving*: not ready any more, but work is still taken while load balancers look
    elsewhere; then *refusing*: new work is turned away and what is inside is finished; then *over*:
    what is still inside is given up.
    """

    def __init__(self) -> None:
        self.is_leaving = self.is_refusing = self.is_over = False
        self._inside: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()

    def enter(self) -> asyncio.Task[object]:
        """The present task answers a request; what it gives is for `leave`."""
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        return task

    def leave(self, task: asyncio.Task[object]) -> None:
        """The request is answered."""
        self._inside.discard(task)
        if self.is_refusing and not self._inside:
            self._empty.set()

    async def end(self, *, grace_seconds: float, limit_seconds: float) -> None:
        """Go through all of it; returns when nothing is inside.

        What is inside `limit_seconds` after the grace is cancelled.
        """
        self.is_leaving = True
        await asyncio.sleep(grace_seconds)
        self.is_refusing = True
        if await self._is_empty_within(limit_seconds):
            return
        self.is_over = True
        for task in tuple(self._inside):
            task.cancel()
        await self._is_empty_within(_GIVE_UP_SECONDS)

    async def _is_empty_within(self, seconds: float) -> bool:
        if not self._inside:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
