"""A threshold and the evidence for it: what is kept in the manifest and drawn in the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Thresholds
from training.class_thresholds import ClassThreshold


@dataclass(frozen=True)
class TargetEvidence:
    """How well a target of precision or recall is met, at the threshold in force.

    `measured` is what validation shows, `assured` the lower end of its one-sided 95 % interval,
    `left_out` the mean on rows left out of the re-draws; None where undefined. `best_assured` is
    the most that any threshold assures that does not say yes to anything, at `best_at`.
    """

    of: str
    least: float
    reached: bool
    measured: float | None
    assured: float
    left_out: float | None
    best_assured: float
    best_at: float


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, the evidence for it, and whether the evidence is good.

    `grid`, `curve` and `smoothed` are the drawn curve of what `curve_name` says: F1 by threshold,
    mean cost, or for "none" the share of rightly answered images that keep their label. `spread`
    is the standard deviation of the chosen threshold over the bootstrap, `interval` its 2.5 % and
    97.5 % points. `wiggle` is the part of `total_variation` that one rise and one fall do not
    explain; with a target both are of the thresholds that meet it. `score_left_out` is the mean
    of the curve on rows left out of the re-draws, each at the threshold of its re-draw.
    `score_interval` and `score_left_out_interval` are the 2.5 % and 97.5 % points of the two over
    the re-draws, the former at `value` throughout; for "none" the former is Wilson's.
    `belongs_at` is where the threshold of a calibrated model belongs, by `belongs_by`; there is
    such a rule for F-beta and for costs in the same ratio for all classes.
    """

    objective: str
    value: float
    trusted: bool
    sentence: str
    grid: tuple[float, ...]
    curve: tuple[float, ...]
    smoothed: tuple[float, ...]
    score: float  # of the curve at `value`
    score_at_half: float
    spread: float
    interval: tuple[float, float]
    total_variation: float
    wiggle: float
    plateau: tuple[float, float] | None = None
    half_best_f1: float | None = None
    refused_all_positive: bool = False
    curve_name: str = "share keeping its label"
    lower_is_better: bool = False
    score_left_out: float | None = None
    belongs_at: float | None = None
    belongs_by: str | None = None
    target: TargetEvidence | None = None
    per_class: tuple[ClassThreshold, ...] = ()
    score_interval: tuple[float, float] | None = None
    score_left_out_interval: tuple[float, float] | None = None

    @property
    def plateau_width(self) -> float | None:
        """Width of the plateau in units of probability, None where there is none."""
        return None if self.plateau is None else round(self.plateau[1] - self.plateau[0], 4)

    def to_thresholds(self) -> Thresholds:
        """The part that decides, for the bundle."""
        own = {each.name: each.value for each in self.per_class if each.is_own}
        return Thresholds(objective=self.objective, value=self.value, per_class=own)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready, for the manifest; figures to four digits but `value` exact."""
        plain: dict[str, Any] = {name: _rounded(value) for name, value in asdict(self).items()}
        return {**plain, "value": self.value, "plateau_width": self.plateau_width}


def verdict(trusted: bool) -> str:
    """How a sentence on a threshold begins."""
    return "Can be trusted:" if trusted else "To be taken with care:"


def interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def mean_of_known(values: NDArray[np.float64]) -> float | None:
    """Of those that are defined; None where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def interval_of_known(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The same of those that are defined; None where none is."""
    known = values[~np.isnan(values)]
    return interval(known) if known.size else None


def plain(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Floats of Python's own, none of them a negative zero."""
    return tuple(float(value) + 0.0 for value in values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, tuple) else value
