"""The batch size that pays: measured when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

SIZES = (1, 2, 4, 8, 16, 32, 64)
# One batch is in flight at a time, so whoever comes next waits for it.
LONGEST_SECONDS = 0.1
_RUNS = 2
_GOOD_ENOUGH = 0.97  # of the best pace; timings differ by as much


def choose_batch_size(
    run: Callable[[int], object], *, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The largest size at, or within 3 % of, the best pace; `run` computes a batch of a size.

    The largest, since every batch costs the service something that is not timed here. Sizes double
    until a batch would take longer than `LONGEST_SECONDS`, or one is clearly slower than the best
    so far. Every size runs once before it is timed, so whatever an engine prepares for a size is
    done then.

    >>> now = [0.0]
    >>> def run(size):
    ...     now[0] += 0.005 + 0.001 * size  # a batch costs something of its own
    >>> choose_batch_size(run, clock=lambda: now[0])
    64
    """
    paces: dict[int, float] = {}
    for size in SIZES:
        run(size)
        seconds = min(_timed(run, size, clock) for _ in range(_RUNS))
        paces[size] = size / max(seconds, 1e-9)
        enough = _GOOD_ENOUGH * max(paces.values())
        if 2 * seconds > LONGEST_SECONDS or paces[size] < enough:
            break
    return max(size for size, pace in paces.items() if pace >= enough)


def _timed(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(size)
    return clock() - started
