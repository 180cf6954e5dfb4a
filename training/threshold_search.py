"""The search of a threshold: count at every one of a grid, smooth, take the plateau's middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from training.metrics import Weights, bootstrap, mean_of_present
from training.objectives import FALLBACK, Counts, Objective, Target

Array = NDArray[Any]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

GRID = np.arange(1, 100) / 100  # thresholds tried
SMOOTHING = 7  # grid points under the moving average
PLATEAU_DEPTH = 0.01  # how far the plateau may lie below the smoothed top, in F1 (Objective.scale)
ALL_POSITIVE_RATE = 0.9  # mean false-positive rate from which a threshold says yes to anything


class CountTable:
    """Counts at every threshold of the grid, for rows of any weight."""

    def __init__(self, table: Floats, wanted: Array) -> None:
        self.rows, self.classes = table.shape
        # How many thresholds of the grid each cell reaches; float32 as in `decide`.
        reached = np.searchsorted(GRID.astype(np.float32), table.astype(np.float32), side="right")
        self.bins = len(GRID) + 1
        self.between = int(((reached > 0) & (reached < len(GRID))).sum())  # cells inside the grid
        self.cell = (reached + np.arange(self.classes) * self.bins).ravel()
        self.wanted = wanted.ravel().astype(np.float64)

    def whole(self) -> Counts:
        """Every row once."""
        return self.at(np.ones(self.rows))

    def at(self, weights: Floats) -> Counts:
        """Each row as often as `weights` says."""
        each = np.repeat(weights, self.classes)
        answered = self._tail(each)
        true = self._tail(each * self.wanted)
        positives = true[:, :1]
        return Counts(true[:, 1:], answered[:, 1:], positives, answered[:, :1] - positives)

    def _tail(self, cells: Floats) -> Floats:
        counts = np.bincount(self.cell, cells, minlength=self.classes * self.bins)
        return counts.reshape(self.classes, self.bins)[:, ::-1].cumsum(axis=1)[:, ::-1]


@dataclass(frozen=True)
class Plateau:
    """Where a curve is as good as at its top, as indices into the grid, and the curve.

    `allowed` marks thresholds that meet the target. `unreachable`: none does. `refused`: the top
    lies where nearly everything is called positive.
    """

    curve: Floats
    smoothed: Floats
    allowed: Flags
    low: int
    high: int
    fallback: int
    refused: bool = False

    @property
    def unreachable(self) -> bool:
        """No threshold meets the target."""
        return not self.allowed.any()

    @property
    def found(self) -> bool:
        """There is a threshold to take."""
        return not (self.refused or self.unreachable)

    @property
    def index(self) -> int:
        """The middle of the plateau, else the fallback."""
        return (self.low + self.high) // 2 if self.found else self.fallback


def find_plateau(objective: Objective, counts: Counts, forbidden: Flags) -> Plateau:
    """The plateau around the top of the smoothed curve, outside what is forbidden.

    A target must be met at the threshold itself and on the smoothed curve: one lucky threshold
    among others that miss it does not count.
    """
    curve = np.nan_to_num(objective.score(counts))
    smoothed = smooth(curve)
    allowed = _meets_target(objective, counts)
    top = int(np.where(allowed, smoothed, -np.inf).argmax())
    depth = PLATEAU_DEPTH * objective.scale(counts)
    level = (smoothed >= smoothed[top] - depth) & allowed & ~forbidden
    low = high = top
    while low > 0 and level[low - 1]:
        low -= 1
    while high < len(level) - 1 and level[high + 1]:
        high += 1
    return Plateau(
        curve=curve,
        smoothed=smoothed,
        allowed=allowed,
        low=low,
        high=high,
        fallback=fallback_index(objective, forbidden),
        refused=bool(allowed[top] and forbidden[top]),
    )


def _meets_target(objective: Objective, counts: Counts) -> Flags:
    if not isinstance(objective, Target):
        return np.ones(counts.true.shape[1], bool)
    assured = objective.assured(counts)
    return np.asarray(np.minimum(assured, smooth(assured)) >= objective.least)


def smooth(curve: Floats) -> Floats:
    """The moving average over the grid."""
    return np.asarray(uniform_filter1d(curve, SMOOTHING, mode="nearest"))


def says_yes_to_anything(counts: Counts) -> Flags:
    """Thresholds at which the classes are called positive on nearly all of their negatives."""
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = (counts.answered - counts.true) / counts.negatives
    rate = np.where(counts.negatives > 0, wrong, np.nan)
    return np.asarray(np.nan_to_num(mean_of_present(rate.T)) >= ALL_POSITIVE_RATE)


def fallback_index(objective: Objective, forbidden: Flags) -> int:
    """The objective's own fallback, or 0.5 where that one would say yes to anything."""
    own = nearest(objective.fallback)
    return nearest(FALLBACK) if forbidden[own] else own


def nearest(threshold: float) -> int:
    """Index of the threshold of the grid that is nearest."""
    return int(np.abs(GRID - threshold).argmin())


def redraw(look: Callable[[Floats, Floats], Array], rows: int, resamples: int, seed: int) -> Floats:
    """What `look(drawn, left out)` gives for the weights of re-drawn rows, B x anything.

    `drawn` says how often each row was drawn, `left out` is 1 for the rows that were not.
    """
    if resamples < 2:
        raise ValueError(f"bootstrap must be at least 2, got {resamples}")

    def values(weights: Weights) -> Floats:
        looks = [look(row.astype(np.float64), (row == 0).astype(np.float64)) for row in weights]
        return np.array(looks)

    return bootstrap(values, rows, resamples=resamples, seed=seed)
