"""The batch size that pays: measured when a model is loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("plumbline.batch_size")

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
    until a batch would take longer than `LONGEST_SECONDS`, two in a row are clearly slower than the
    best so far, or one cannot be computed, as for want of memory. Every size runs once before it is
    timed, so whatever an engine prepares for a size is done then. Raises what one image alone
    raises.

    >>> now = [0.0]
    >>> def run(size):
    ...     now[0] += 0.005 + 0.001 * size  # a batch costs something of its own
    >>> choose_batch_size(run, clock=lambda: now[0])
    64
    """
    paces: dict[int, float] = {}
    slower = 0  # in a row
    for size in SIZES:
        try:
            run(size)
            seconds = min(_timed(run, size, clock) for _ in range(_RUNS))
        except Exception as error:
            if size == 1:
                raise
            log.warning("batches of %d cannot be computed: %s", size, error)
            break
        paces[size] = size / max(seconds, 1e-9)
        slower = slower + 1 if paces[size] < _GOOD_ENOUGH * max(paces.values()) else 0
        if 2 * seconds > LONGEST_SECONDS or slower == 2:
            break
    enough = _GOOD_ENOUGH * max(paces.values())
    return max(size for size, pace in paces.items() if pace >= enough)


def _timed(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(size)
    return clock() - started
