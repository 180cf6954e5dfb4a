"""How good a model is, every headline with a 95 % confidence interval.

scikit-learn computes the metrics it has; what stands here is the interval around them, and the
rule that a figure which cannot be computed is null and says why (NaN never leaves this module).
scikit-learn and scipy.stats take seconds to import, so that is left to when they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import Metric
from model.decision import Task, Thresholds, decide
from model.errors import DataError
from training.calibration import (
    RELIABILITY_BINS,
    brier_by_row,
    brier_score,
    checked_table,
    expected_calibration_error,
    mass_bins,
    outcomes,
)

Array = NDArray[Any]
Floats = NDArray[np.float64]
Weights = NDArray[np.float32]  # B x N: how often each of N rows was drawn in each of B re-draws
Interval = list[float]

RESAMPLES = 500
NONE_COLUMN = "(none)"  # how the confusion matrix names "none of the classes"
_CHUNK = 50  # re-draws held in memory at once


def evaluate(
    probabilities: Array,
    targets: Array,
    *,
    classes: Sequence[str],
    thresholds: Thresholds,
    task: Task,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything known about one model on one split, ready for JSON.

    `probabilities` calibrated, N x C; `targets` class indices N (single) or 0/1 N x C (multi).
    Both tasks: `task`, `count`, `accuracy` (single) or `accuracy_multi` (multi: share of cells
    right at 0.5, as in fastai; it flatters, read F1 beside it), `macro_f1`, `ece`, `brier`,
    `none_rate` (share of rows left without a label), `intervals` {metric: [low, high]}, `reasons`
    {metric: why it is null}, `notes`, `confusion`, `per_class`. Single: `accuracy` counts a row
    left without a label as wrong, `accuracy_argmax` looks at the most probable class alone.
    Multi: `micro_f1`, `macro_f1_at_half`, `map` (mean average precision), `exact_match`.

    Intervals are 95 %: Wilson for shares, otherwise a seeded bootstrap over rows. Macro averages
    run over the classes that have rows; the others are named in `notes`.

    Raises DataError for shapes that do not fit, or no rows.
    """
    table, wanted = checked_table(probabilities, targets)
    if len(classes) != table.shape[1]:
        raise DataError(f"{table.shape[1]} columns of probabilities for {len(classes)} classes")
    if wanted.ndim != (1 if task == "single" else 2):
        raise DataError(f"task is {task!r} but the targets have shape {wanted.shape}")
    decided = _label_matrix(table, thresholds, classes, task)
    draw = _Bootstrap(len(table), resamples, seed)
    if task == "single":
        found = _single(table, wanted, decided, classes, draw, thresholds.value is not None)
    else:
        found = _multi(table, wanted, decided, classes, draw)
    empty = int((~decided.any(axis=1)).sum())
    _put(found, "none_rate", empty / len(table), wilson_interval(empty, len(table)))
    _put_calibration(found, table, wanted, draw)
    return found


def has_label(targets: NDArray[Any], task: Task) -> NDArray[np.bool_]:
    """Which rows are images of the classes: all, but of single-label those of target -1.

    >>> has_label(np.array([0, -1, 2]), "single").tolist()
    [True, False, True]
    """
    return targets >= 0 if task == "single" else np.ones(len(targets), bool)


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share (Wilson 1927); sound also near 0 and 1 and for few trials.

    >>> [round(bound, 3) for bound in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def share_of(successes: int, trials: int) -> Metric:
    """A share with its 95 % interval.

    >>> share_of(9, 10).value, share_of(9, 10).count
    (0.9, 10)
    """
    low, high = wilson_interval(successes, trials)
    return Metric(value=successes / trials, low=low, high=high, count=trials)


def auroc_interval(auroc: float, foreign: int, domestic: int) -> Interval:
    """95 % interval of an AUROC of so many images on either side (Hanley and McNeil 1982).

    >>> [round(end, 3) for end in auroc_interval(0.9, 500, 200)]
    [0.878, 0.922]
    """
    both, one = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (
        auroc * (1 - auroc) + (foreign - 1) * (both - auroc**2) + (domestic - 1) * (one - auroc**2)
    ) / (foreign * domestic)
    spread = 1.959964 * math.sqrt(max(variance, 0.0))
    return [max(0.0, auroc - spread), min(1.0, auroc + spread)]


def bootstrap(
    statistic: Callable[[Weights], Floats], rows: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """`statistic` on re-drawn rows, its results stacked along the first axis.

    The statistic takes weights B x N and gives B values (or B x anything): most metrics are then
    one matrix product for many re-draws.
    """
    rng = np.random.default_rng(seed)
    results = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(size)]
        results.append(statistic(np.array(weights, np.float32)))
    return np.concatenate(results)


def f1_from_counts(true_positives: Array, predicted: Array, actual: Array) -> Floats:
    """F1 of each cell of counts; NaN where there is no actual positive (recall is undefined)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = 2 * true_positives / (predicted + actual)
    return np.where(actual > 0, scores, np.nan)


def mean_of_present(scores: Floats) -> Floats:
    """Mean over the last axis of the entries that are not NaN; NaN where there are none."""
    present = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, scores, 0).sum(axis=-1) / present.sum(axis=-1))


class _Bootstrap:
    """Intervals from the same re-drawn rows for every metric of one evaluation."""

    def __init__(self, rows: int, resamples: int, seed: int) -> None:
        self.rows, self.resamples, self.seed = rows, resamples, seed

    def interval(self, statistic: Callable[[Weights], Floats]) -> Interval | None:
        """2.5 % and 97.5 % points of the statistic over the re-draws."""
        draws = bootstrap(statistic, self.rows, resamples=self.resamples, seed=self.seed)
        draws = draws[np.isfinite(draws)]
        if not draws.size:
            return None
        low, high = np.quantile(draws, [0.025, 0.975])
        return [float(low), float(high)]


def _single(
    table: Floats,
    wanted: Array,
    decided: Array,
    classes: Sequence[str],
    draw: _Bootstrap,
    may_say_none: bool,
) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    size, rows = len(classes), len(table)
    answer = np.where(decided.any(axis=1), decided.argmax(axis=1), size)  # size: none
    counts = np.bincount(wanted * (size + 1) + answer, minlength=size * (size + 1))
    counts = counts.reshape(size, size + 1)
    actual, predicted = counts.sum(axis=1), counts.sum(axis=0)[:size]
    right = np.diagonal(counts)
    found = _frame("single", rows, classes, actual)
    hits, best = int(right.sum()), int((table.argmax(axis=1) == wanted).sum())
    _put(found, "accuracy", hits / rows, wilson_interval(hits, rows))
    _put(found, "accuracy_argmax", best / rows, wilson_interval(best, rows))

    # Macro F1 depends on the rows by the counts alone, so the bootstrap re-draws those.
    rng = np.random.default_rng(draw.seed)
    drawn = rng.multinomial(rows, counts.ravel() / rows, size=draw.resamples)
    drawn = drawn.reshape(-1, size, size + 1)
    spread = mean_of_present(
        f1_from_counts(
            np.diagonal(drawn, axis1=1, axis2=2), drawn.sum(axis=1)[:, :size], drawn.sum(axis=2)
        )
    )
    low, high = np.quantile(spread, [0.025, 0.975])
    present = np.flatnonzero(actual)
    macro = f1_score(wanted, answer, labels=present, average="macro", zero_division=0)
    _put(found, "macro_f1", macro, [float(low), float(high)])
    columns = [*classes, NONE_COLUMN] if may_say_none else list(classes)
    found["confusion"] = {
        "rows": list(classes),
        "columns": columns,
        "counts": counts[:, : len(columns)].tolist(),
    }
    found["per_class"] = _per_class(classes, right, predicted, actual)
    return found


def _multi(
    table: Floats, wanted: Array, decided: Array, classes: Sequence[str], draw: _Bootstrap
) -> dict[str, Any]:
    from sklearn.metrics import f1_score, multilabel_confusion_matrix

    actual, at_half = wanted.sum(axis=0), table >= 0.5
    found = _frame("multi", len(table), classes, actual)
    found["confusion"] = {
        "rows": list(classes),
        "layout": "[[true negatives, false positives], [false negatives, true positives]]",
        "counts": multilabel_confusion_matrix(wanted, decided).tolist(),
    }
    right = (decided & (wanted == 1)).sum(axis=0)
    found["per_class"] = _per_class(classes, right, decided.sum(axis=0), actual)

    cells_right = (at_half == wanted).mean(axis=1)
    _put(found, "accuracy_multi", cells_right.mean(), draw.interval(_weighted_mean(cells_right)))
    exact = int((decided == wanted).all(axis=1).sum())
    _put(found, "exact_match", exact / len(table), wilson_interval(exact, len(table)))

    present = np.flatnonzero(actual)
    if not present.size:
        for name in ("macro_f1", "micro_f1", "macro_f1_at_half", "map"):
            _put(found, name, None, None, reason="no row carries any label")
        return found
    for name, chosen, average in (
        ("macro_f1", decided, "macro"),
        ("macro_f1_at_half", at_half, "macro"),
        ("micro_f1", decided, "micro"),
    ):
        labels = present if average == "macro" else None
        value = f1_score(
            wanted, chosen.astype(int), labels=labels, average=average, zero_division=0
        )
        _put(found, name, value, draw.interval(_weighted_f1(chosen, wanted, average)))
    _put_average_precision(found, table, wanted, classes, present, draw)
    return found


def _put_average_precision(
    found: dict[str, Any],
    table: Floats,
    wanted: Array,
    classes: Sequence[str],
    present: Array,
    draw: _Bootstrap,
) -> None:
    from sklearn.metrics import average_precision_score

    each = average_precision_score(wanted[:, present], table[:, present], average=None)
    each = np.atleast_1d(each)
    for index, value in zip(present, each, strict=True):
        found["per_class"][classes[index]]["average_precision"] = float(value)
    columns = [_weighted_average_precision(table[:, i], wanted[:, i]) for i in present]

    def mean(weights: Weights) -> Floats:
        return mean_of_present(np.stack([column(weights) for column in columns], axis=1))

    _put(found, "map", each.mean(), draw.interval(mean))


def _weighted_mean(values: Floats) -> Callable[[Weights], Floats]:
    return lambda weights: weights @ values / len(values)


def _weighted_f1(chosen: Array, wanted: Array, average: str) -> Callable[[Weights], Floats]:
    predicted, actual = chosen.astype(np.float32), wanted.astype(np.float32)

    def score(weights: Weights) -> Floats:
        counts = [weights @ cells for cells in (predicted * actual, predicted, actual)]
        if average == "micro":
            return f1_from_counts(*(count.sum(axis=1) for count in counts))
        return mean_of_present(f1_from_counts(*counts))

    return score


def _weighted_average_precision(scores: Floats, wanted: Array) -> Callable[[Weights], Floats]:
    """scikit-learn's average precision of one class for many re-draws, sorted only once."""
    order = np.argsort(-scores, kind="stable")
    hits = np.flatnonzero(wanted[order])
    # Rows of equal score are one step of the curve, which rises only at steps that hold a hit.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    steps = np.unique(ends[np.searchsorted(ends, hits)])
    hits_so_far = np.searchsorted(hits, steps, side="right")

    def score(weights: Weights) -> Floats:
        drawn = weights[:, order]
        taken = drawn.cumsum(axis=1)[:, steps]  # whole numbers: exact in float32 below 2 ** 24
        found = drawn[:, hits].cumsum(axis=1)[:, hits_so_far - 1]
        gained = np.diff(found, axis=1, prepend=0)
        with np.errstate(invalid="ignore"):
            precision = np.where(taken > 0, found / taken, 0)
            area = (gained * precision).sum(axis=1, dtype=np.float64) / found[:, -1]
        return np.where(found[:, -1] > 0, area, np.nan)

    return score


def _put_calibration(found: dict[str, Any], table: Floats, wanted: Array, draw: _Bootstrap) -> None:
    each = brier_by_row(table, wanted)
    _put(found, "brier", brier_score(table, wanted), draw.interval(_weighted_mean(each)))
    value = expected_calibration_error(table, wanted)
    interval = draw.interval(weighted_calibration_error(table, wanted))
    _put(found, "ece", value, None if interval is None else mirrored(value, interval))


def mirrored(error: float, interval: Sequence[float]) -> Interval:
    """The basic bootstrap interval of a calibration error, from points of its re-draws.

    Re-drawing adds noise, and noise raises this error: it is mirrored back.
    """
    low, high = interval
    return [max(0.0, min(error, 2 * error - high)), max(error, 2 * error - low)]


def weighted_calibration_error(probabilities: Array, targets: Array) -> Callable[[Weights], Floats]:
    """The expected calibration error for many re-draws, in the bins of the rows as they are."""
    stated, came_true = outcomes(probabilities, targets)
    count = len(probabilities)
    residual = np.zeros((count, RELIABILITY_BINS))  # N x bins: what each row adds to a bin
    rows = np.repeat(np.arange(count), len(stated) // count)
    np.add.at(residual, (rows, mass_bins(stated, RELIABILITY_BINS)), stated - came_true)

    def error(weights: Weights) -> Floats:
        return np.asarray(np.abs(weights @ residual).sum(axis=1) / len(stated))

    return error


def _per_class(
    classes: Sequence[str], right: Array, predicted: Array, actual: Array
) -> dict[str, dict[str, Any]]:
    return {
        name: _one_class(int(right[index]), int(predicted[index]), int(actual[index]))
        for index, name in enumerate(classes)
    }


def _one_class(right: int, predicted: int, actual: int) -> dict[str, Any]:
    missing = [
        *(["no rows of this class: recall and F1 are undefined"] if not actual else []),
        *(["never answered: precision is undefined"] if not predicted else []),
    ]
    return {
        "support": actual,
        "answered": predicted,
        "precision": right / predicted if predicted else None,
        "precision_interval": wilson_interval(right, predicted) if predicted else None,
        "recall": right / actual if actual else None,
        "recall_interval": wilson_interval(right, actual) if actual else None,
        "f1": 2 * right / (predicted + actual) if actual else None,
        "reason": "; ".join(missing) or None,
    }


def _frame(task: Task, rows: int, classes: Sequence[str], actual: Array) -> dict[str, Any]:
    absent = [name for name, count in zip(classes, actual, strict=True) if not count]
    notes = [f"no rows, left out of macro averages: {', '.join(absent)}"] if absent else []
    return {"task": task, "count": rows, "notes": notes, "intervals": {}, "reasons": {}}


def _put(
    found: dict[str, Any],
    name: str,
    value: float | None,
    interval: Interval | None,
    *,
    reason: str | None = None,
) -> None:
    found[name] = None if value is None else float(value)
    if interval is not None:
        found["intervals"][name] = interval
    if reason is not None:
        found["reasons"][name] = reason


def _label_matrix(
    table: Floats, thresholds: Thresholds, classes: Sequence[str], task: Task
) -> NDArray[np.bool_]:
    """The labels given, as a table N x C, by the very function that serves them."""
    position = {name: index for index, name in enumerate(classes)}
    if len(position) != len(classes):
        raise DataError(f"class names must differ, got {list(classes)}")
    chosen = np.zeros(table.shape, bool)
    labels = decide(table.astype(np.float32), thresholds, classes, task)
    for row, names in enumerate(labels):
        chosen[row, [position[name] for name in names]] = True
    return chosen
