"""Labels that are likely wrong, by what a model says that did not learn them.

Confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels"), by cleanlab. It needs probabilities out of sample: those of a model for a row that it was
fitted to repeat the row's own label. For rows to fit on, `held_out_probabilities` fits a linear
head on embeddings without the fifth of the rows that it is then asked about. The embedding itself
is that of the model: where its body was trained on these rows, and not only its head, it knows the
labels a little, and fewer errors are found.

cleanlab takes seconds to import, so that is left to when it is needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task

FOLDS = 5
_FILTER = "both"  # of cleanlab's ways the strictest: a weak model doubts a third of all otherwise
_MOST_ITERATIONS = 200
_INVERSE_PENALTY = 0.1  # of the linear head, on standardised features

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LabelError:
    """A row whose label is likely wrong.

    `suggested` are class indices, none for "none of the classes"; `score` is the probability that
    the model gives to the label as it stands (0 to 1; the lower, the likelier it is wrong), for
    several labels cleanlab's summary of them.
    """

    row: int
    suggested: tuple[int, ...]
    score: float


def find_label_errors(probabilities: Array, targets: Array, task: Task) -> list[LabelError]:
    """Rows whose labels are likely wrong, the likeliest first.

    `probabilities` N x C out of sample, `targets` N class indices, -1 for none (those rows are left
    out), or N x C of 0 and 1. What the model suggests differs from the label in every one.
    Where all labels are alike there is nothing to compare, and none is found: `can_be_judged`.
    """
    if not can_be_judged(targets):
        return []
    table = np.asarray(probabilities, np.float64)
    if task == "multi":
        return _of_several_labels(table, targets)
    rows = np.flatnonzero(targets >= 0)
    table, wanted = table[rows], np.asarray(targets[rows], np.int64)
    table = table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
    ranked = _ranked_of_one_label(wanted, table)
    best = table.argmax(axis=1)
    return [
        LabelError(int(rows[place]), (int(best[place]),), float(table[place, wanted[place]]))
        for place in ranked
        if best[place] != wanted[place]
    ]


def can_be_judged(targets: Array) -> bool:
    """Whether there are labels of more than one kind, which is what they are compared by.

    Of several labels: whether some label is on one row and not on another.
    """
    if targets.ndim == 2:
        return bool(_differing(targets).any())
    return len(np.unique(targets[targets >= 0])) > 1


def _differing(targets: Array) -> NDArray[np.bool_]:
    """Which columns of targets N x C hold both values, C."""
    wanted = np.asarray(targets) > 0
    return np.asarray(wanted.any(axis=0) & ~wanted.all(axis=0))


def _ranked_of_one_label(wanted: Array, table: Array) -> Array:
    """Doubtful rows, the likeliest to be wrong first; `wanted` N indices, `table` N x C."""
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings(action="ignore"):  # of classes with few rows, told elsewhere
        ranked = find_label_issues(
            wanted,
            table,
            filter_by=_FILTER,
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
    return np.asarray(ranked)


def _of_several_labels(table: Array, targets: Array) -> list[LabelError]:
    """By the columns that differ; `suggested` keeps what a row has of the others."""
    wanted = np.asarray(targets) > 0
    compared = np.flatnonzero(_differing(targets))
    ranked, scores = _ranked_of_several_labels(table[:, compared], wanted[:, compared])
    suggested = wanted.copy()
    suggested[:, compared] = table[:, compared] >= 0.5
    return [
        LabelError(int(row), tuple(np.flatnonzero(suggested[row]).tolist()), float(scores[row]))
        for row in ranked
        if (suggested[row] != wanted[row]).any()
    ]


def _ranked_of_several_labels(table: Array, wanted: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Doubtful rows, the likeliest first, and the score of every row, N; every column differs.

    cleanlab refuses a column of one value, and one column alone: that is a choice of two.
    """
    from cleanlab.multilabel_classification.filter import find_label_issues
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    if table.shape[1] == 1:
        chosen, both = wanted[:, 0].astype(np.int64), np.hstack([1 - table, table])
        return _ranked_of_one_label(chosen, both), both[np.arange(len(both)), chosen]
    labels = [np.flatnonzero(row).tolist() for row in wanted]
    with warnings.catch_warnings(action="ignore"):  # of classes with few rows, told elsewhere
        ranked = find_label_issues(
            labels,
            table,
            filter_by=_FILTER,
            return_indices_ranked_by="self_confidence",
            n_jobs=1,
        )
        scores = get_label_quality_scores(labels, table)
    return np.asarray(ranked), np.asarray(scores)


def held_out_probabilities(
    embedding: Floats, targets: Array, *, class_count: int, task: Task, seed: int
) -> Floats:
    """Probabilities N x C, each by a linear head fitted without its fold, on embeddings N x D.

    Single-label rows without a label (-1) are not fitted on. A class that a fold leaves no row of
    gets 0 there. Uncalibrated, but regularised.
    """
    folds = np.random.default_rng(seed).permutation(len(embedding)) % FOLDS
    found = np.zeros((len(embedding), class_count), np.float32)
    for fold in range(FOLDS):
        asked = folds == fold
        fit = ~asked if task == "multi" else ~asked & (targets >= 0)
        if not asked.any() or not fit.any():
            continue
        scaled = _standardised(embedding, embedding[fit])
        if task == "single":
            classes, given = _fitted(scaled[fit], targets[fit], scaled[asked])
            found[np.ix_(asked, classes)] = given
        else:
            for index in range(class_count):
                classes, given = _fitted(scaled[fit], targets[fit, index], scaled[asked])
                found[asked, index] = given[:, 1] if len(classes) == 2 else float(classes[0])
    return found


def _standardised(embedding: Floats, on: Floats) -> Floats:
    return np.asarray((embedding - on.mean(axis=0)) / (on.std(axis=0) + 1e-6), np.float32)


def _fitted(features: Floats, targets: Array, asked: Floats) -> tuple[Array, Floats]:
    """Classes K that were there to fit on, and probabilities M x K of the rows asked about."""
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(targets).astype(np.int64)
    if len(classes) == 1:
        return classes, np.ones((len(asked), 1), np.float32)
    head = LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings(action="ignore"):  # that the last digits are not settled
        head.fit(features, targets)
    return classes, np.asarray(head.predict_proba(asked), np.float32)
