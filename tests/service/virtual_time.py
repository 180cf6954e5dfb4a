"""An event loop whose clock jumps: hours pass in no time, and the same way every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Impatient(selectors.SelectSelector):
    """Whoever would wait for the next timer lets the clock jump to it instead."""

    jumped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.jumped += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and moves only when everything waits for it."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.jumped


class VirtualExecutor(Executor):
    """Runs calls in the loop's own thread; each takes `seconds(*arguments)` of virtual time."""

    def __init__(self, seconds: Callable[..., float]) -> None:
        self._seconds = seconds

    def submit(self, call: Callable[..., Result], /, *arguments: Any, **_: Any) -> Future[Result]:
        future: Future[Result] = Future()
        result = call(*arguments)
        loop = asyncio.get_running_loop()
        loop.call_later(self._seconds(*arguments), future.set_result, result)
        return future


def play(story: Coroutine[Any, Any, Result]) -> Result:
    """Run to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(story)
