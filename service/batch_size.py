"""The batch size that pays: measured when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

SIZES = (1, 2, 4, 8, 16, 32, 64)
# One batch is in flight at a time, so whoever comes next waits for it.
LONGEST_SECONDS = 0.1
_RUNS = 2
_GOOD_ENOUGH = 0.97  # of the best pace: larger batches than needed only make others wait


def choose_batch_size(
    run: Callable[[int], object], *, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The smallest size at, or within 3 % of, the best pace; `run` computes a batch of a size.

    Sizes double until a batch would take longer than `LONGEST_SECONDS`, or two in a row are no
    faster. Every size runs once before it is timed, so whatever an engine prepares for a size
    is done then.

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
        latest = list(paces.values())[-3:]
        if 2 * seconds > LONGEST_SECONDS or (len(latest) == 3 and latest[0] >= max(latest[1:])):
            break
    best = max(paces.values())
    return next(size for size, pace in paces.items() if pace >= _GOOD_ENOUGH * best)


def _timed(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(size)
    return clock() - started
