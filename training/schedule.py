"""Learning rate and momentum as pure functions of the step.

One cycle: the rate climbs to its peak and falls to almost nothing while momentum does the
opposite (Smith and Topin 2018, "Super-convergence"; cosine shape as in fastai and PyTorch).
"""

from __future__ import annotations

import math

START_DIVISOR = 25.0
END_DIVISOR = 1e4


def one_cycle(
    step: int,
    total_steps: int,
    peak: float,
    *,
    warmup_share: float = 0.25,
    start_divisor: float = START_DIVISOR,
    end_divisor: float = END_DIVISOR,
) -> float:
    """Learning rate at `step` of 0 .. total_steps - 1.

    Starts at peak / start_divisor, reaches peak after `warmup_share` of the steps, and ends at
    peak / start_divisor / end_divisor, as torch's OneCycleLR does.

    >>> [round(one_cycle(step, 9, 1.0, warmup_share=1 / 3), 3) for step in (0, 2, 8)]
    [0.04, 1.0, 0.0]
    """
    start = peak / start_divisor
    return _rise_and_fall(step, total_steps, warmup_share, start, peak, start / end_divisor)


def one_cycle_momentum(
    step: int,
    total_steps: int,
    *,
    warmup_share: float = 0.25,
    low: float = 0.85,
    high: float = 0.95,
) -> float:
    """Momentum at `step`: from high to low while the rate climbs, and back while it falls."""
    return _rise_and_fall(step, total_steps, warmup_share, high, low, high)


def discriminative_rates(lowest: float, highest: float, group_count: int) -> list[float]:
    """One rate per layer group, multiplied evenly from the first layers to the head.

    Early layers see edges and colours, which change little from task to task (Howard and
    Ruder 2018).

    >>> [round(rate, 6) for rate in discriminative_rates(1e-5, 1e-3, 3)]
    [1e-05, 0.0001, 0.001]
    """
    if group_count == 1:
        return [highest]
    ratio = (highest / lowest) ** (1 / (group_count - 1))
    return [lowest * ratio**group for group in range(group_count)]


def _rise_and_fall(
    step: int, total_steps: int, warmup_share: float, start: float, middle: float, end: float
) -> float:
    """Cosine from start to middle over the warm-up, then cosine from middle to end."""
    top = max(warmup_share * total_steps - 1, 0.0)
    if step <= top:
        return _cosine(start, middle, step / top if top else 1.0)
    return _cosine(middle, end, (step - top) / max(total_steps - 1 - top, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
