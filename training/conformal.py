"""Prediction sets measured: what share of the true labels they hold, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.bundle import Metric, SetsMeasure, SetsSummary
from model.conformal_sets import ConformalSets, true_labels
from model.decision import FloatArray, Task
from training.metrics import bootstrap, share_of

COVERAGES = (0.8, 0.9, 0.95, 0.99)  # measured at the end of every training
PROMISES: dict[Task, str] = {
    "single": "of images that show one of the classes, the share whose set holds the true class"
    " is on average at least the coverage",
    "multi": "of an image that shows at least one of the classes, on average at least the coverage"
    " of its true labels are in its set",
}
_TOLD_AT = 0.9  # where the statement tells how far one calibration split may lie off


def summarise_sets(
    sets: ConformalSets,
    probabilities: FloatArray,
    targets: NDArray[Any],
    task: Task,
    measured_on: Literal["test", "validation"],
) -> SetsSummary:
    """Measure at each of COVERAGES that can be promised, on rows outside the calibration split."""
    measured = [
        measure_sets(sets, probabilities, targets, task, coverage)
        for coverage in COVERAGES
        if coverage <= sets.highest_coverage
    ]
    return SetsSummary(
        calibration_images=sets.image_count,
        highest_coverage=sets.highest_coverage,
        promise=PROMISES[task],
        statement=_statement(sets, task),
        measured_on=measured_on,
        measured=tuple(measured),
    )


def measure_sets(
    sets: ConformalSets,
    probabilities: FloatArray,
    targets: NDArray[Any],
    task: Task,
    coverage: float,
) -> SetsMeasure:
    """Of probabilities N x C and targets as for `ConformalSets.fit`; rows without a label aside.

    Intervals are 95 %: Wilson for shares of images, otherwise a seeded bootstrap over them. Raises
    `CoverageError`.
    """
    held, sizes = _held_and_sizes(sets.contains(probabilities, coverage), targets, task)
    realised = _mean(held) if task == "multi" else _share(held > 0)
    return SetsMeasure(
        coverage=coverage,
        images=len(held),
        realised=realised,
        mean_size=_mean(sizes),
        size_one=_share(sizes == 1) if task == "single" else None,
        empty=_share(sizes == 0),
    )


def coverage_by_class(
    sets: ConformalSets,
    probabilities: FloatArray,
    targets: NDArray[Any],
    classes: Sequence[str],
    task: Task,
    coverage: float,
) -> dict[str, Metric]:
    """Of the images that show a class, the share whose set holds it; classes without any aside.

    The promise is for all classes together, and a hard class is covered less. Raises
    `CoverageError`.
    """
    rows, columns = true_labels(targets, task)
    held = sets.contains(probabilities, coverage)[rows, columns]
    return {classes[index]: _share(held[columns == index]) for index in np.unique(columns)}


def _held_and_sizes(
    inside: NDArray[np.bool_], targets: NDArray[Any], task: Task
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each labelled row the share of its labels that its set holds, and the set's size."""
    rows, columns = true_labels(targets, task)
    labels = np.bincount(rows, minlength=len(inside))
    held = np.bincount(rows, inside[rows, columns], minlength=len(inside))
    labelled = labels > 0
    sizes = inside[labelled].sum(axis=1).astype(np.float64)
    return held[labelled] / labels[labelled], sizes


def _share(yes: NDArray[np.bool_]) -> Metric:
    if not len(yes):
        return Metric(value=None)
    return share_of(int(yes.sum()), len(yes))


def _mean(values: NDArray[np.float64]) -> Metric:
    if not len(values):
        return Metric(value=None)
    draws = bootstrap(lambda weights: weights @ values / len(values), len(values))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(value=float(values.mean()), low=float(low), high=float(high), count=len(values))


def _statement(sets: ConformalSets, task: Task) -> str:
    """What can be promised from so many images, and how far this one split may lie off."""
    count = sets.image_count
    if not count:
        return "No calibration image has a label, so no coverage can be promised."
    highest = sets.highest_coverage
    told = f"{count} calibration images with a label: up to {highest:g} can be asked for."
    if task == "multi" or highest < _TOLD_AT:
        return told
    low, high = _range_of_one_split(count, _TOLD_AT)
    return (
        f"{told} The promise is an average over calibration splits; 95 of 100 splits of this size"
        f" realise {low:.3f} to {high:.3f} at {_TOLD_AT:g}."
    )


def _range_of_one_split(count: int, coverage: float) -> tuple[float, float]:
    """Where the coverage that one calibration split of n images realises lies, 95 % of the time.

    It is Beta(n + 1 - k, k) distributed, with k = floor((1 - coverage)(n + 1)) and without ties
    (Vovk 2012, "Conditional validity of inductive conformal predictors").
    """
    from scipy.stats import beta

    k = math.floor((1 - Fraction(str(coverage))) * (count + 1))
    low, high = beta.ppf([0.025, 0.975], count + 1 - k, k)
    return float(low), float(high)
