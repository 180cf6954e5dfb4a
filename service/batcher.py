"""Batches without waiting, and without one item spoiling its neighbours.

One batch is in flight at a time. While it runs, arrivals queue; the next batch takes what has
come, in the order of `FairQueue`, so batches grow with the load and a lone request never waits.
How much may wait is bounded at the door (`Occupancy`), where it costs least to refuse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.errors import DropReason, deadline_exceeded
from service.fair_queue import FairQueue, Request

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("plumbline.batcher")


@dataclass(slots=True)
class _Pending(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[tuple[Result, float, float]]
    arrived: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A result with the seconds that its item waited and that its batch computed."""

    result: Result
    queue_seconds: float
    compute_seconds: float


class Batcher(Generic[Item, Result]):
    """Runs `run(key, items)` in one thread, on batches of items that share a key.

    The key is the loaded model: items that were prepared for one model never meet another.
    """

    def __init__(
        self,
        run: Callable[[Hashable, Sequence[Item]], Sequence[Result]],
        *,
        batch_images: Callable[[Hashable], int],
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_drop: Callable[[DropReason, int], None] = lambda reason, count: None,
        executor: Executor | None = None,
    ) -> None:
        """`batch_images` tells the most items of a batch for a key.

        `on_batch` hears of the size and seconds of every batch, `on_drop` of items that nobody
        waits for any more when their turn comes: they are not computed. `executor` runs one batch
        at a time; None: a thread of its own.
        """
        self._run = run
        self._batch_images = batch_images
        self._on_batch = on_batch
        self._on_drop = on_drop
        self._queue: FairQueue[_Pending[Item, Result]] = FairQueue()
        self._arrived = asyncio.Event()
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Start taking batches, in the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._take_batches())

    async def stop(self) -> None:
        """Stop after the batch in flight; what still waits is cancelled."""
        self._stopping = True
        self._arrived.set()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task])
        while (key := self._queue.group()) is not None:
            pending = self._queue.pop(key)
            assert pending is not None
            pending.answer.cancel()
        self._executor.shutdown()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    async def submit(
        self,
        key: Hashable,
        items: Sequence[Item],
        *,
        deadline: float,
        client: Hashable = None,
    ) -> list[Answer[Result] | Exception]:
        """Queue the items of one request and wait for all of them, in order.

        `deadline` is in seconds of the event loop's clock; `client` is who is to have no more than
        others. An item that fails gives its exception; its neighbours their results. Raises
        `RequestError` `deadline_exceeded` when time runs out; what had not begun is then not
        computed.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        pending = [
            _Pending[Item, Result](item, loop.create_future(), now, deadline) for item in items
        ]
        request = self._queue.put(key, client, pending)
        self._arrived.set()
        answers = [entry.answer for entry in pending]
        try:
            async with asyncio.timeout_at(deadline):
                gathered = await _all(answers)
        except TimeoutError:
            self._give_up(request, "deadline")
            raise deadline_exceeded() from None
        except asyncio.CancelledError:
            self._give_up(request, "client_gone")
            raise
        return [_unpack(answer) for answer in gathered]

    def _give_up(self, request: Request[_Pending[Item, Result]], reason: DropReason) -> None:
        """Make room at once: what nobody waits for any more is not in the way of others."""
        dropped = self._queue.drop(request)
        if dropped:
            self._on_drop(reason, dropped)

    async def _take_batches(self) -> None:
        while True:
            await self._arrived.wait()
            if self._stopping:
                return
            if not await self._run_batch():
                self._arrived.clear()

    async def _run_batch(self) -> bool:
        """Whether there was one; a method of its own, so that nothing of it outlives it."""
        key, batch = self._take()
        if not batch:
            return False
        loop = asyncio.get_running_loop()
        started = loop.time()
        items = [pending.item for pending in batch]
        outcomes = await loop.run_in_executor(self._executor, self._compute, key, items)
        seconds = loop.time() - started
        self._on_batch(len(batch), seconds)
        for pending, outcome in zip(batch, outcomes, strict=True):
            if pending.answer.done():
                continue
            if isinstance(outcome, Exception):
                pending.answer.set_exception(outcome)
            else:
                pending.answer.set_result((outcome, started - pending.arrived, seconds))
        return True

    def _take(self) -> tuple[Hashable, list[_Pending[Item, Result]]]:
        """Items of the key that has waited longest, less those that nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        batch: list[_Pending[Item, Result]] = []
        key: Hashable = None
        while not batch and (key := self._queue.group()) is not None:
            most = self._batch_images(key)
            while len(batch) < most and (first := self._queue.pop(key)) is not None:
                if first.deadline <= now:
                    self._on_drop("deadline", 1)
                elif first.answer.done():
                    self._on_drop("client_gone", 1)
                else:
                    batch.append(first)
        return key, batch

    def _compute(self, key: Hashable, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            results = self._run(key, items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(results)} results")
            return results
        except Exception as error:  # noqa: BLE001 - logged where the request's id is known
            if len(items) == 1:
                return [error]
        log.warning("a batch of %d failed as a whole; its items are run one by one", len(items))
        return [outcome for item in items for outcome in self._compute(key, [item])]


def _unpack(answer: tuple[Result, float, float] | BaseException) -> Answer[Result] | Exception:
    if isinstance(answer, Exception):
        return answer
    if isinstance(answer, BaseException):
        raise answer
    return Answer(*answer)


async def _all(answers: list[asyncio.Future[Any]]) -> list[Any]:
    """What each gave, or the exception that it gave; without the cost of gathering a single one."""
    if len(answers) != 1:
        return await asyncio.gather(*answers, return_exceptions=True)
    try:
        return [await answers[0]]
    except Exception as error:  # noqa: BLE001 (given back)
        return [error]
