"""Images of requests become pixels: in threads, in a fair order, under a budget of bytes.

Threads take one image after the other in the order of `FairQueue`, so a form of many large images
does not hold up a single small one. A request is told once, when all of its images are done: waking
threads costs as much as decoding a small image.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from model.errors import ImageError
from model.formats import Format, Header
from model.images import ImageProperties, InputSpec, Pixels, check, prepare_checked, properties
from model.limits import ImageLimits
from service.fair_queue import FairQueue

# Pillow's conversions (alpha, 16 bits) hold several copies at once.
_BYTES_A_PIXEL: dict[Format, int] = {"jpeg": 4, "png": 16, "webp": 16}
_IMAGES = "images"  # the one group of the queue


@dataclass(frozen=True, slots=True)
class Admitted:
    """An image that passed the door, prepared for the network."""

    pixels: Pixels
    header: Header
    properties: ImageProperties
    sha256: str
    bytes: int
    decode_seconds: float


class ByteBudget:
    """Lets at most `limit` bytes of decoded images exist at a time; other threads wait their turn.

    >>> budget = ByteBudget(100)
    >>> with budget.holding(250) as taken:
    ...     taken
    100
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._turn = threading.Lock()  # one waits for room; the others, for it
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[int]:
        """Wait for room; an amount over the whole limit counts as the limit."""
        amount = min(amount, self._limit)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self._limit)
            self._used += amount
        try:
            yield amount
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


@dataclass(slots=True, eq=False)
class _Asked:
    """The images of one request, and what has become of them so far."""

    images: Sequence[bytes]
    spec: InputSpec
    outcomes: list[Admitted | Exception | None]
    left: int
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Admitted | Exception | None]]


class Decoder:
    """Checks and decodes images in threads of its own, which `close` stops."""

    def __init__(self, limits: ImageLimits, *, threads: int, budget_bytes: int) -> None:
        self._limits = limits
        self._budget = ByteBudget(budget_bytes)
        self._changed = threading.Condition()
        self._queue: FairQueue[tuple[_Asked, int]] = FairQueue()
        self._stopping = False
        names = [f"decode_{number}" for number in range(threads)]
        self._threads = [
            threading.Thread(target=self._work, name=name, daemon=True) for name in names
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads after the images in hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    async def decode(
        self, images: Sequence[bytes], spec: InputSpec, *, client: Hashable = None
    ) -> list[Admitted | ImageError]:
        """The images in order; one that is refused gives its error.

        When this is cancelled, what has not begun is not decoded.
        """
        if not images:
            return []
        loop = asyncio.get_running_loop()
        count = len(images)
        asked = _Asked(images, spec, [None] * count, count, loop, loop.create_future())
        with self._changed:
            entries = ((asked, place) for place in range(count))
            waiting = self._queue.put(_IMAGES, client, entries)
            self._changed.notify(min(count, len(self._threads)))
        try:
            outcomes = await asked.done
        except asyncio.CancelledError:
            with self._changed:
                self._queue.drop(waiting)
            raise
        return [_known(outcome) for outcome in outcomes]

    def _work(self) -> None:
        while self._decode_next():
            pass

    def _decode_next(self) -> bool:
        """A method of its own, so that a thread that waits keeps hold of no request."""
        taken = self._next()
        if taken is None:
            return False
        asked, place = taken
        try:
            outcome: Admitted | Exception = self._decode(asked.images[place], asked.spec)
        except Exception as error:  # noqa: BLE001 (raised where the request is answered)
            outcome = error
        with self._changed:
            asked.outcomes[place] = outcome
            asked.left -= 1
            is_done = not asked.left
        if is_done:
            asked.loop.call_soon_threadsafe(_tell, asked)
        return True

    def _next(self) -> tuple[_Asked, int] | None:
        with self._changed:
            while True:
                if self._stopping:
                    return None
                if (taken := self._queue.pop(_IMAGES)) is not None:
                    return taken
                self._changed.wait()

    def _decode(self, data: bytes, spec: InputSpec) -> Admitted:
        started = time.perf_counter()
        header = check(data, self._limits)
        needed = header.width * header.height * _BYTES_A_PIXEL[header.format]
        with self._budget.holding(needed):
            pixels = prepare_checked(data, header, spec)
        seconds = time.perf_counter() - started
        sha256 = hashlib.sha256(data).hexdigest()
        return Admitted(pixels, header, properties(pixels), sha256, len(data), seconds)


def _tell(asked: _Asked) -> None:
    if not asked.done.done():
        asked.done.set_result(asked.outcomes)


def _known(outcome: Admitted | Exception | None) -> Admitted | ImageError:
    if isinstance(outcome, Admitted | ImageError):
        return outcome
    assert outcome is not None  # since all are done
    raise outcome
