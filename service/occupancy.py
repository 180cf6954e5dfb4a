"""How much is inside the door: images and body bytes of every request not yet answered.

The bound of the queue is kept here, before a body is read, so that overload is refused at the
door and not after the work of reading and decoding.

One client cannot take all the room: beyond its first request it may hold at most `SHARE` times what
stays free (Choudhury and Hahne 1998, dynamic queue length thresholds). Alone it gets three quarters
of the room, one of two that both ask for more three sevenths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from service.drain_rate import DrainRate
from service.errors import RequestError, ShedReason, overloaded

SHARE = 3  # of the free room that one client may hold


@dataclass(slots=True)
class _Held:
    """By one client, or by one of its requests."""

    images: int = 0
    bytes: int = 0


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
        self._held: dict[Hashable, _Held] = {}
        self.bytes = 0

    @property
    def images(self) -> int:
        """Images inside."""
        return self._drain.inside

    def visit(self, client: Hashable = None) -> Visit:
        """One request; use as a context manager, which gives everything back at its end."""
        return Visit(self, client)

    @property
    def is_roomy(self) -> bool:
        """Whether any client's next image would be let in."""
        return (SHARE + 1) * (self.images + 1) <= SHARE * self._most_images

    def refusal(self, client: Hashable) -> RequestError | None:
        """Why the first image of a client's next request would not be let in, where it is so."""
        held = self._held.get(client) or _Held()
        most = self._most_images
        return self._refusal(held.images, 0, 1, self.images, most, "images", "queue_full")

    def take(
        self, client: Hashable, images: int, body_bytes: int, *, own: _Held | None = None
    ) -> None:
        """Raise `RequestError` `overloaded` unless there is room; else count it.

        `own` is what the same request has taken before.
        """
        held, own = self._held.get(client) or _Held(), own or _Held()
        for refusal in (
            self._refusal(
                *(held.images, own.images, images, self.images, self._most_images),
                *("images", "queue_full"),
            ),
            self._refusal(
                *(held.bytes, own.bytes, body_bytes, self.bytes, self._most_bytes),
                *("bytes", "memory_full"),
            ),
        ):
            if refusal is not None:
                raise refusal
        if images:
            self._drain.enter(images)
        self.bytes += body_bytes
        held.images += images
        held.bytes += body_bytes
        if images or body_bytes:
            self._held[client] = held

    def give_back(self, client: Hashable, images: int, body_bytes: int, *, answered: bool) -> None:
        """What a visit took; a refusal is no sign of how fast images are answered."""
        if answered:
            self._drain.leave(images)
        else:
            self._drain.give_up(images)
        self.bytes -= body_bytes
        held = self._held.get(client)
        if held is not None:
            held.images -= images
            held.bytes -= body_bytes
            if not held.images and not held.bytes:
                del self._held[client]

    def _refusal(
        self, held: int, own: int, more: int, inside: int, most: int, unit: str, full: ShedReason
    ) -> RequestError | None:
        """`held` by the client, `own` of them by this request, of those that are `inside`."""
        if not more:
            return None
        free = most - inside - more
        if free < 0:
            return self._overloaded(
                f"the service is full: it holds {inside} {unit}, at most {most}; try again later",
                full,
            )
        if held > own and held + more > SHARE * free:
            return self._overloaded(
                f"your share of the service is full: it holds {inside} {unit}, {held} of them"
                f" yours, at most {most}; try again later",
                "share_full",
            )
        return None

    def _overloaded(self, message: str, reason: ShedReason) -> RequestError:
        seconds = self._drain.seconds_until_empty(longest=self._longest_seconds)
        return overloaded(message, seconds, reason)


class Visit:
    """What one request has taken so far."""

    def __init__(self, occupancy: Occupancy, client: Hashable) -> None:
        self._occupancy = occupancy
        self._client = client
        self._own = _Held()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        own = self._own
        self._occupancy.give_back(self._client, own.images, own.bytes, answered=kind is None)

    def take_images(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(self._client, count, 0, own=self._own)
        self._own.images += count

    def take_bytes(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(self._client, 0, count, own=self._own)
        self._own.bytes += count
