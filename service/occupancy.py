"""How much is inside the door: images and body bytes of every request not yet answered.

The bound of the queue is kept here, before a body is read, so that overload is refused at the
door and not after the work of reading and decoding.

One client cannot take all the room: beyond its first request it may hold at most `SHARE` times what
stays free (Choudhury and Hahne 1998, dynamic queue length thresholds). Alone it gets three quarters
of the room, one of two that both ask for more three sevenths.

What is held against a request depends on what it asks for. Its first image is let in by the number
of the client's requests, the further ones of a form by the number of its images: so a client's own
forms do not keep its single images out. Both are bounded by the room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from service.drain_rate import DrainRate
from service.errors import RequestError, ShedReason, overloaded

SHARE = 3  # of the free room that one client may hold


@dataclass(slots=True)
class _Held:
    """By one client, or by one of its requests."""

    requests: int = 0  # that hold an image
    images: int = 0
    bytes: int = 0


class _Room(NamedTuple):
    """For images or for bytes."""

    inside: int
    most: int
    unit: str
    full: ShedReason

    def __str__(self) -> str:
        return f"it holds {self.inside} {self.unit}, at most {self.most}"


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
        """Whether the first image of any client's next request would be let in.

        As if every image were a request of that client: no more can be held against it.
        """
        return (SHARE + 1) * (self.images + 1) <= SHARE * self._most_images

    def refusal(self, client: Hashable) -> RequestError | None:
        """Why the first image of a client's next request would not be let in, where it is so."""
        held = self._held.get(client) or _Held()
        return self._refusal_of_images(held, _Held(), 1)

    def take(self, client: Hashable, images: int, body_bytes: int, own: _Held) -> None:
        """Raise `RequestError` `overloaded` unless there is room; else count it.

        `own` is what the same request has taken before; it is counted there too.
        """
        held = self._held.get(client) or _Held()
        refusal = self._refusal_of_images(held, own, images) or self._refusal(
            _Room(self.bytes, self._most_bytes, "bytes", "memory_full"),
            *(held.bytes, own.bytes, body_bytes, "bytes"),
        )
        if refusal is not None:
            raise refusal
        if not (images or body_bytes):
            return
        if images:
            self._drain.enter(images)
        self.bytes += body_bytes
        requests = int(own.requests == 0 and images > 0)
        for count in (held, own):
            count.requests += requests
            count.images += images
            count.bytes += body_bytes
        self._held[client] = held

    def give_back(self, client: Hashable, own: _Held, *, answered: bool) -> None:
        """What a visit took; a refusal is no sign of how fast images are answered."""
        if answered:
            self._drain.leave(own.images)
        else:
            self._drain.give_up(own.images)
        self.bytes -= own.bytes
        held = self._held.get(client)
        if held is not None:
            held.requests -= own.requests
            held.images -= own.images
            held.bytes -= own.bytes
            if not held.images and not held.bytes:
                del self._held[client]

    def _refusal_of_images(self, held: _Held, own: _Held, images: int) -> RequestError | None:
        """The first of a request is weighed as one request of its client's, the rest as images."""
        first = int(images > 0 and not own.requests)
        inside, most = self.images, self._most_images
        return self._refusal(
            _Room(inside, most, "images", "queue_full"),
            *(held.requests, own.requests, first, "requests"),
        ) or self._refusal(
            _Room(inside + first, most, "images", "queue_full"),
            *(held.images + first, own.images + first, images - first, "images"),
        )

    def _refusal(
        self, room: _Room, held: int, own: int, more: int, counted: str
    ) -> RequestError | None:
        """`held` by the client, `own` of them by this request: what is `counted` of its share."""
        if not more:
            return None
        free = room.most - room.inside - more
        if free < 0:
            return self._overloaded(f"the service is full: {room}; try again later", room.full)
        if held > own and held + more > SHARE * free:
            return self._overloaded(
                f"your share of the service is full: {room}, and {held} {counted} are yours;"
                " try again later",
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
        self._occupancy.give_back(self._client, self._own, answered=kind is None)

    def take_images(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(self._client, count, 0, self._own)

    def take_bytes(self, count: int) -> None:
        """Raise `RequestError` `overloaded` unless there is room for so many more."""
        self._occupancy.take(self._client, 0, count, self._own)
