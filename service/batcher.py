"""Batches without waiting, and without one item spoiling its neighbours.

One batch is in flight at a time. While it runs, arrivals queue; the next batch takes what has
come, so batches grow with the load and a lone request never waits. The queue is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.drain_rate import DrainRate
from service.errors import DropReason, deadline_exceeded, overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger("plumbline.batcher")

_LONGEST_RETRY_SECONDS = 60.0


@dataclass(slots=True)
class _Pending(Generic[Item, Result]):
    key: Hashable
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
        batch_images: int,
        queue_images: int,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_drop: Callable[[DropReason, int], None] = lambda reason, count: None,
    ) -> None:
        """`on_batch` hears of the size and seconds of every batch, `on_drop` of items that nobody
        waits for any more when their turn comes: they are not computed.
        """
        self._run = run
        self._batch_images = batch_images
        self._queue_images = queue_images
        self._on_batch = on_batch
        self._on_drop = on_drop
        self._queue: deque[_Pending[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._drain = DrainRate()
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
        for pending in self._queue:
            pending.answer.cancel()
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._queue)

    def retry_after_seconds(self) -> int:
        """Whole seconds in which the present queue will have drained, at least 1."""
        return self._drain.seconds_until_empty(longest=_LONGEST_RETRY_SECONDS)

    def check_room(self, images: int) -> None:
        """Raise `RequestError` `overloaded` unless the queue has room for so many."""
        if len(self._queue) + images > self._queue_images:
            raise overloaded(
                f"{len(self._queue)} images are waiting and at most {self._queue_images} may",
                self.retry_after_seconds(),
            )

    async def submit(
        self, key: Hashable, items: Sequence[Item], *, deadline: float
    ) -> list[Answer[Result] | Exception]:
        """Queue the items of one request and wait for all of them, in order.

        `deadline` is in seconds of the event loop's clock. An item that fails gives its
        exception; its neighbours their results. Raises `RequestError` `overloaded` when the
        queue has no room for all of them (a request is never taken in part) and
        `deadline_exceeded` when time runs out; what had not begun is then not computed.
        """
        self.check_room(len(items))
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        pending = [
            _Pending[Item, Result](key, item, loop.create_future(), now, deadline) for item in items
        ]
        self._queue.extend(pending)
        self._drain.enter(len(items))
        self._arrived.set()
        answers = [entry.answer for entry in pending]
        try:
            async with asyncio.timeout_at(deadline):
                gathered = await asyncio.gather(*answers, return_exceptions=True)
        except TimeoutError:
            self._give_up(pending, "deadline")
            raise deadline_exceeded() from None
        except asyncio.CancelledError:
            self._give_up(pending, "client_gone")
            raise
        return [_unpack(answer) for answer in gathered]

    def _give_up(self, entries: Sequence[_Pending[Item, Result]], reason: DropReason) -> None:
        """Make room at once: what nobody waits for any more is not in the way of others."""
        given_up = {id(entry) for entry in entries}
        kept = [entry for entry in self._queue if id(entry) not in given_up]
        dropped = len(self._queue) - len(kept)
        if dropped:
            self._queue = deque(kept)
            self._drain.give_up(dropped)
            self._on_drop(reason, dropped)

    async def _take_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._stopping:
                return
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            started = time.perf_counter()
            outcomes = await loop.run_in_executor(self._thread, self._compute, batch)
            seconds = time.perf_counter() - started
            self._drain.leave(len(batch))
            self._on_batch(len(batch), seconds)
            for pending, outcome in zip(batch, outcomes, strict=True):
                if pending.answer.done():
                    continue
                if isinstance(outcome, Exception):
                    pending.answer.set_exception(outcome)
                else:
                    pending.answer.set_result((outcome, started - pending.arrived, seconds))

    def _take(self) -> list[_Pending[Item, Result]]:
        """The longest run of items with one key, less those that nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        batch: list[_Pending[Item, Result]] = []
        while self._queue and len(batch) < self._batch_images:
            first = self._queue[0]
            if first.deadline <= now or first.answer.done():
                self._queue.popleft()
                self._drain.give_up(1)
                self._on_drop("deadline" if first.deadline <= now else "client_gone", 1)
            elif batch and first.key != batch[0].key:
                break
            else:
                batch.append(self._queue.popleft())
        return batch

    def _compute(self, batch: Sequence[_Pending[Item, Result]]) -> Sequence[Result | Exception]:
        items = [pending.item for pending in batch]
        try:
            results = self._run(batch[0].key, items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(results)} results")
            return results
        except Exception as error:  # noqa: BLE001 - logged where the request's id is known
            if len(batch) == 1:
                return [error]
        log.warning("a batch of %d failed as a whole; its items are run one by one", len(batch))
        return [outcome for pending in batch for outcome in self._compute([pending])]


def _unpack(answer: tuple[Result, float, float] | BaseException) -> Answer[Result] | Exception:
    if isinstance(answer, Exception):
        return answer
    if isinstance(answer, BaseException):
        raise answer
    return Answer(*answer)
