"""How fast work leaves a queue, for telling clients when to come back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

WINDOW_SECONDS = 5.0


class DrainRate:
    """Counts what is inside, and measures how fast it leaves.

    The rate is what left over the time in which anything was inside; both fade with that time, so
    that the last `WINDOW_SECONDS` of work count most and idle time not at all. A queue in which
    nothing moves gets slower while it stands.

    >>> now = 0.0
    >>> drain = DrainRate(clock=lambda: now)
    >>> drain.enter(30)
    >>> now = 2.0
    >>> drain.leave(10)
    >>> drain.per_second()
    5.0
    >>> drain.seconds_until_empty(longest=60)
    4
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._left = 0.0
        self._busy_seconds = 0.0
        self.inside = 0

    def enter(self, count: int) -> None:
        """So many are inside from now on."""
        self._pass_time()
        self.inside += count

    def leave(self, count: int) -> None:
        """So many are not any more."""
        self._pass_time()
        self.inside -= count
        self._left += count

    def give_up(self, count: int) -> None:
        """So many are not any more, and nothing was done for them: it tells nothing of the rate."""
        self._pass_time()
        self.inside -= count

    def per_second(self) -> float | None:
        """The rate; None until something has left."""
        self._pass_time()
        if not self._left or not self._busy_seconds:
            return None
        return self._left / self._busy_seconds

    def seconds_until_empty(self, *, longest: float) -> int:
        """Whole seconds in which what is inside will have left: 1 to `longest` rounded up.

        1 where nothing has left yet: by then there is a rate.
        """
        rate = self.per_second()
        seconds = 1.0 if rate is None else min(self.inside / rate, longest)
        return max(1, math.ceil(seconds))

    def _pass_time(self) -> None:
        now = self._clock()
        if self.inside:
            seconds = now - self._last
            kept = math.exp(-seconds / WINDOW_SECONDS)
            self._left *= kept
            self._busy_seconds = self._busy_seconds * kept + seconds
        self._last = now
