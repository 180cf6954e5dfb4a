"""How much is inside the door: images and body bytes of every request not yet answered.

The bound of the queue is kept here, before a body is read, so that overload is refused at the
door and not after the work of reading and decoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.drain_rate import DrainRate
from service.errors import RequestError, ShedReason, overloaded


class Occupancy:
    """Counts what is inside one worker, and refuses what does not fit.

    `Retry-After` tells when what is inside will have left, as fast as images leave at the time;
    at most `longest_seconds`, by which most of it was given up anyway.
    """

    def __init__(
        self,
        *,
        most_images: int,
        most_bytes: int,
        longest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_images = most_images
        self._most_bytes = most_bytes
        self._longest_seconds = longest_seconds
        self._drain = DrainRate(clock=clock)
        self.bytes = 0

    @property
    def images(self) -> int:
        """Images inside."""
        return self._drain.inside

    def visit(self) -> Visit:
        """One request; use as a context manager, which gives everything back at its end."""
        return Visit(self)

    def take(self, images: int, body_bytes: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room; else count it."""
        if self.images + images > self._most_images:
            raise self._overloaded(
                f"{self.images} images are inside and at most {self._most_images}", "queue_full"
            )
        if self.bytes + body_bytes > self._most_bytes:
            raise self._overloaded(f"{self.bytes} bytes, at most {self._most_bytes}", "memory_full")
        if images:
            self._drain.enter(images)
        self.bytes += body_bytes

    def give_back(self, images: int, body_bytes: int, *, answered: bool) -> None:
        """What a visit took; a refusal is no sign of how fast images are answered."""
        if answered:
            self._drain.leave(images)
        else:
            self._drain.give_up(images)
        self.bytes -= body_bytes

    def _overloaded(self, full: str, reason: ShedReason) -> RequestError:
        seconds = self._drain.seconds_until_empty(longest=self._longest_seconds)
        return overloaded(f"the service is full: it holds {full}; try again later", seconds, reason)


class Visit:
    """What one request has taken so far."""

    def __init__(self, occupancy: Occupancy) -> None:
        self._occupancy = occupancy
        self._images = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._occupancy.give_back(self._images, self._bytes, answered=kind is None)

    def take_images(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(count, 0)
        self._images += count

    def take_bytes(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(0, count)
        self._bytes += count
