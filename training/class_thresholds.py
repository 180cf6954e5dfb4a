"""Which classes get a threshold of their own, and why the others do not.

The best threshold of a class on some dozens of positives is mostly luck: measured on five
re-splits of multi-label emoji, test macro F1 was 0.680 with one threshold for all, and 0.647 with
each class at its own best. So a class has to earn it. On every re-draw of the rows its threshold
is chosen anew, and compared with the global one on the rows that were left out; it is kept only
where that gain is above zero in 95 % of the re-draws, and where all that are kept are better
together, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.objectives import Counts, Objective, Target
from training.tables import some
from training.threshold_search import (
    GRID,
    CountTable,
    Plateau,
    find_plateau,
    redraw,
    says_yes_to_anything,
)

Floats = NDArray[np.float64]

LEAST_CLASS_POSITIVES = 30  # validation rows of a class before it is considered, and as many others
GAIN_QUANTILE = 0.05  # the point of the gain over the re-draws that must lie above zero
_NO_GAIN = 1e-9  # below this a gain is rounding

GLOBAL, OWN = 0, 1  # columns


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of one class, and how it came about.

    `value` is in force; `tried` the one of its own that was considered, None where there was
    none. `gain` is the mean over re-draws of what the objective gained on the rows left out,
    `gain_interval` its 5 % and 95 % points; for costs what was saved per image, with a target
    what was gained of the measure it leaves free, or of its own where the class misses it.
    """

    name: str
    value: float
    is_own: bool
    reason: str
    positives: int
    negatives: int
    tried: float | None = None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None


def tune_class_thresholds(
    objective: Objective,
    counts: CountTable,
    classes: Sequence[str],
    *,
    at: int,
    bootstrap: int,
    seed: int,
) -> tuple[ClassThreshold, ...]:
    """What every class got; `at` is the index of the global threshold in the grid."""
    whole = counts.whole()
    looked_at = [_look(objective, whole, name, index, at) for index, name in enumerate(classes)]
    tried = {
        index: round(each.tried * 100) - 1
        for index, each in enumerate(looked_at)
        if each.tried is not None
    }
    if not tried:
        return tuple(looked_at)
    left_out = _left_out(objective, counts, list(tried), at, bootstrap, seed)
    for index in tried:
        is_short = _misses_target(objective, whole.of_class(index), at)
        looked_at[index] = _judge(objective, looked_at[index], index, left_out, is_short)
    kept = {index: column for index, column in tried.items() if looked_at[index].is_own}
    doubt = _doubt_together(objective, whole, kept, at, left_out)
    if doubt:
        for index in kept:
            looked_at[index] = _global(looked_at[index], GRID[at], doubt)
    return tuple(looked_at)


def no_class_thresholds(
    counts: CountTable, classes: Sequence[str], *, at: int, reason: str
) -> tuple[ClassThreshold, ...]:
    """The global threshold for every class."""
    whole = counts.whole()
    return tuple(_start(whole, name, index, at, reason) for index, name in enumerate(classes))


def class_sentence(each: Sequence[ClassThreshold]) -> str:
    """Which classes have a threshold of their own, and which have too few rows for one."""
    own = [f"{its.name} {its.value:.2f}" for its in each if its.is_own]
    said = f"Classes with a threshold of their own: {some(own)}." if own else ""
    for count, words in (("positives", "a positive"), ("negatives", "a negative")):
        without = [its.name for its in each if not getattr(its, count)]
        if without:
            said += f" Without {words} on validation: {some(without)}."
    few = [its.name for its in each if 0 < _fewer(its) < LEAST_CLASS_POSITIVES]
    if few:
        said += (
            f" With fewer than {LEAST_CLASS_POSITIVES} positives or negatives the global"
            f" threshold holds for {some(few)}."
        )
    return said.strip()


def _fewer(each: ClassThreshold) -> int:
    return min(each.positives, each.negatives)


def _look(objective: Objective, whole: Counts, name: str, index: int, at: int) -> ClassThreshold:
    """A class with the threshold of its own that is worth a try, or why none is."""
    start = _start(whole, name, index, at, "")
    fewer, which = min((start.positives, "positives"), (start.negatives, "negatives"))
    if fewer < LEAST_CLASS_POSITIVES:
        count = f"no {which}" if not fewer else f"{fewer} {which}"
        needs = f"{LEAST_CLASS_POSITIVES} are needed for a threshold of its own"
        return replace(start, reason=f"{count} on validation, and {needs}")
    own = _own_plateau(objective, whole, index, at)
    if own.unreachable:
        reason = f"{objective.name} cannot be assured for this class at any threshold"
        return replace(start, reason=reason)
    if own.refused:
        return replace(start, reason="its own would be where nearly everything is called positive")
    if own.index == at:
        return replace(start, reason="its own would be the same")
    return replace(start, tried=float(GRID[own.index]))


def _start(whole: Counts, name: str, index: int, at: int, reason: str) -> ClassThreshold:
    positives, negatives = int(whole.positives[index, 0]), int(whole.negatives[index, 0])
    return ClassThreshold(name, float(GRID[at]), False, reason, positives, negatives)


def _own_plateau(objective: Objective, counts: Counts, index: int, at: int) -> Plateau:
    forbidden = says_yes_to_anything(counts.of_class(index))
    view = objective.counts_for_class(counts, index, at)
    return find_plateau(objective.for_class(index), view, forbidden)


def _left_out(
    objective: Objective,
    counts: CountTable,
    indices: Sequence[int],
    at: int,
    bootstrap: int,
    seed: int,
) -> list[Counts]:
    """For each re-draw the counts on the rows left out: at the global threshold, and at the own.

    A class that has no threshold of its own in some re-draw stays there at the global one.
    """

    def look(drawn: Floats, rest: Floats) -> Floats:
        in_bag, out = counts.at(drawn), counts.at(rest)
        columns = np.full((counts.classes, 2), at)
        for index in indices:
            own = _own_plateau(objective, in_bag, index, at)
            columns[index, OWN] = own.index if own.found else at
        rows = np.arange(counts.classes)[:, None]
        taken = out.true[rows, columns], out.answered[rows, columns]
        return np.hstack([*taken, out.positives, out.negatives])

    drawn = redraw(look, counts.rows, bootstrap, seed)
    return [Counts(each[:, :2], each[:, 2:4], each[:, 4:5], each[:, 5:]) for each in drawn]


def _judge(
    objective: Objective,
    each: ClassThreshold,
    index: int,
    left_out: Sequence[Counts],
    is_short: bool,
) -> ClassThreshold:
    """Whether a class keeps the threshold it tried.

    `is_short`: it misses the target at the global threshold, and is judged by that measure.
    """
    assert each.tried is not None
    its = objective.for_class(index)
    views = [objective.counts_for_class(out, index, GLOBAL) for out in left_out]
    measure = its.measured if is_short and isinstance(its, Target) else its.score
    gains = np.array([_gain(measure(view)) for view in views])
    low, high = (float(point) for point in np.quantile(gains, [GAIN_QUANTILE, 1 - GAIN_QUANTILE]))
    judged = replace(each, gain=float(gains.mean()), gain_interval=(low, high))
    of = f" of {its.of if is_short else its.curve_name}" if isinstance(its, Target) else ""
    span = (
        f"a gain{of} of {judged.gain:.3g} on the rows left out, {_percent(1 - 2 * GAIN_QUANTILE)}"
        f" of it {low:.3g} to {high:.3g}"
    )
    if low <= _NO_GAIN:
        return replace(judged, reason=f"{each.tried:.2f} is not surely better: {span}")
    if isinstance(its, Target):
        reached = np.mean([np.nan_to_num(its.measured(view))[OWN] for view in views])
        if reached < its.least:
            missed = f"{its.name} was missed on the rows left out ({reached:.3f})"
            return replace(judged, reason=f"{each.tried:.2f} gives {span}, but {missed}")
    return replace(judged, value=each.tried, is_own=True, reason=span)


def _misses_target(objective: Objective, counts: Counts, at: int) -> bool:
    if not isinstance(objective, Target):
        return False
    return bool(np.nan_to_num(objective.measured(counts))[at] < objective.least)


def _gain(scores: Floats) -> float:
    known = np.nan_to_num(scores)
    return float(known[OWN] - known[GLOBAL])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _doubt_together(
    objective: Objective,
    whole: Counts,
    kept: dict[int, int],
    at: int,
    left_out: Sequence[Counts],
) -> str | None:
    """Why thresholds that are better one by one are not so together; None where they are."""
    if not kept:
        return None
    if isinstance(objective, Target):
        met = objective.assured(_moved(whole, kept, at)) >= objective.least
        if met[GLOBAL] and not met[OWN]:
            return f"better by itself, but all labels together would then miss {objective.name}"
        return None
    own = dict.fromkeys(kept, OWN)
    gains = [_gain(objective.score(_moved(out, own, GLOBAL))) for out in left_out]
    if np.quantile(gains, GAIN_QUANTILE) <= _NO_GAIN:
        return "better by itself, but with the other classes' own thresholds not surely so"
    return None


def _moved(counts: Counts, kept: dict[int, int], at: int) -> Counts:
    """Two columns: every class at the global threshold; those kept at their own."""
    columns = np.full((len(counts.true), 2), at)
    for index, column in kept.items():
        columns[index, OWN] = column
    rows = np.arange(len(counts.true))[:, None]
    taken = counts.true[rows, columns], counts.answered[rows, columns]
    return Counts(*taken, counts.positives, counts.negatives)


def _global(each: ClassThreshold, value: float, reason: str) -> ClassThreshold:
    return replace(each, value=float(value), is_own=False, reason=reason)
