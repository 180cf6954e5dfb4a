"""The batch size that pays: measured when a model of a new kind is loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("plumbline.batch_size")

SIZES = (1, 2, 4, 8, 16, 32, 64)
# One batch is in flight at a time, so whoever comes next waits for it.
LONGEST_SECONDS = 0.1
_ROUNDS = 4
_GOOD_ENOUGH = 0.97  # of the best pace; timings differ by as much
_CLEARLY_SLOWER = 0.8
# What a batch costs the service beside its network: hand-overs between the event loop and the
# thread that computes. In batches of two an image took 0.3 ms more of the event loop than of eight.
_BATCH_SECONDS = 0.0008


def choose_batch_size(
    run: Callable[[int], object], *, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The largest size at, or within 3 % of, the best pace; `run` computes a batch of a size.

    Sizes double until a batch would take longer than `LONGEST_SECONDS`, two in a row are clearly
    slower than the best so far, or one cannot be computed, as for want of memory. Every size runs
    once before it is timed, so whatever an engine prepares for a size is done then. All are timed
    in turns, and the shortest time counts: what else a machine does for a moment chooses nothing.
    Raises what one image alone raises.

    >>> now = [0.0]
    >>> def run(size):
    ...     now[0] += 0.005 + 0.001 * size  # a batch costs something of its own
    >>> choose_batch_size(run, clock=lambda: now[0])
    64
    """
    seconds = _sizes_that_can_be_used(run, clock)
    for _ in range(_ROUNDS - 1):
        for size, shortest in seconds.items():
            seconds[size] = min(shortest, _timed(run, size, clock))
    paces = {size: size / (its + _BATCH_SECONDS) for size, its in seconds.items()}
    enough = _GOOD_ENOUGH * max(paces.values())
    return max(size for size, pace in paces.items() if pace >= enough)


def take_over(run: Callable[[int], object], measured: int) -> int:
    """The size that was measured of a network like this one, once it has run.

    Every size up to it runs once, untimed: beside the load of a model that serves, timings would
    take long and say little. It is the largest that could be computed, as for want of memory
    while two models are loaded. Raises what one image alone raises.

    >>> ran = []
    >>> take_over(ran.append, 8), ran
    (8, [1, 2, 4, 8])
    """
    largest = 1
    for size in SIZES:
        if size > measured or not _can_be_computed(run, size):
            break
        largest = size
    return largest


def _sizes_that_can_be_used(
    run: Callable[[int], object], clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds of a batch by its size, timed once."""
    found: dict[int, float] = {}
    best, slower = 0.0, 0  # slower in a row
    for size in SIZES:
        if not _can_be_computed(run, size):
            break
        found[size] = seconds = _timed(run, size, clock)
        pace = size / max(seconds, 1e-9)
        best = max(best, pace)
        slower = slower + 1 if pace < _CLEARLY_SLOWER * best else 0
        if 2 * seconds > LONGEST_SECONDS or slower == 2:
            break
    return found


def _can_be_computed(run: Callable[[int], object], size: int) -> bool:
    try:
        run(size)
    except Exception as error:
        if size == 1:
            raise
        log.warning("batches of %d cannot be computed: %s", size, error)
        return False
    return True


def _timed(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    started = clock()
    run(size)
    return clock() - started
