"""How frequent each class is among unlabelled images, where only its frequency has changed.

Two ways, which rest on different things and so check each other:

- `by_expectation_maximisation` on calibrated probabilities (Saerens, Latinne and Decaestecker 2002,
  "Adjusting the Outputs of a Classifier to New a Priori Probabilities"): the maximum of the
  likelihood, so the sharper one, and wrong where the calibration is;
- `by_black_box`: what class frequencies give the predictions that were seen, by the confusion
  matrix of labelled reference images (Lipton, Wang and Smola 2018, "Detecting and Correcting for
  Label Shift with Black Box Predictors"). It needs their true labels, and no calibration.

Where the images within classes changed too, both are wrong. "Exclusive" classes are those of a
softmax: one of them, always. Others are estimated one by one, each against all else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.accuracy import NORMAL_95

FloatArray = NDArray[np.float64]

LEAST_OF_A_CLASS = 5  # reference images, under which its row of the confusion matrix says nothing
_LEAST_DISCRIMINATION = 0.1  # share of a class found, beyond the share of others taken for it
_STEPS = 500
_CLOSE = 1e-6


@dataclass(frozen=True)
class Priors:
    """Shares of the images by class with their standard errors, C each; NaN where not known."""

    shares: FloatArray
    errors: FloatArray

    @property
    def low(self) -> FloatArray:
        """Lower ends of 95 % intervals."""
        return np.clip(self.shares - NORMAL_95 * self.errors, 0, 1)

    @property
    def high(self) -> FloatArray:
        """Upper ends of 95 % intervals."""
        return np.clip(self.shares + NORMAL_95 * self.errors, 0, 1)


def by_expectation_maximisation(
    chances: FloatArray, reference: FloatArray, reference_images: int, *, exclusive: bool
) -> Priors:
    """From calibrated probabilities N x C and the shares C that they were calibrated under.

    Errors are those of the likelihood (inverse of its information), and of a reference of so many
    images. Where `reference` is the mean of the probabilities on the reference itself, that is
    found unchanged, exactly.
    """
    known = np.clip(reference, 0.5 / max(1, reference_images), 1)
    ratios = chances / known
    others = None if exclusive else (1 - chances) / np.clip(1 - known, 1e-9, 1)
    shares = known / known.sum() if exclusive else known
    for _ in range(_STEPS):
        before = shares
        shares = (shares * ratios / _density(ratios, others, shares)).mean(axis=0)
        if np.abs(shares - before).max() < _CLOSE:
            break
    scores = (ratios if others is None else ratios - others) / _density(ratios, others, shares)
    variances = _variances(scores, exclusive=exclusive)
    variances += shares**2 * (1 - known) / (known * max(1, reference_images))
    return Priors(shares, np.sqrt(np.maximum(variances, 0)))


def _density(ratios: FloatArray, others: FloatArray | None, shares: FloatArray) -> FloatArray:
    """Of each image under such shares, relative to the reference: N x 1, or N x C one by one."""
    if others is None:
        found = (ratios @ shares)[:, None]
    else:
        found = ratios * shares + others * (1 - shares)
    return np.maximum(found, np.finfo(np.float64).tiny)


def _variances(scores: FloatArray, *, exclusive: bool) -> FloatArray:
    """Of shares, C, from the derivatives of each image's log-likelihood by them, N x C."""
    if not exclusive:
        return np.asarray(1 / np.maximum((scores**2).sum(axis=0), 1e-12))
    basis = _sum_to_nothing(scores.shape[1])  # shares move without their sum changing
    information = basis.T @ (scores.T @ scores) @ basis
    return np.asarray(np.diag(basis @ np.linalg.pinv(information, hermitian=True) @ basis.T)).copy()


def by_black_box(
    given: NDArray[np.bool_],
    reference_given: NDArray[np.bool_],
    reference_true: NDArray[np.bool_],
    *,
    exclusive: bool,
) -> Priors | None:
    """From labels given to images N x C, and given to and true of reference images R x C.

    None where the reference has too few images of one of exclusive classes; of others the class
    alone is NaN. Errors are those of both counts.
    """
    if not exclusive:
        return _one_by_one(given, reference_given, reference_true)
    labelled = reference_true.any(axis=1)
    counts = reference_true[labelled].sum(axis=0)
    if counts.min() < LEAST_OF_A_CLASS:
        return None
    true = reference_true[labelled].astype(np.float64)
    confusion = _with_none(reference_given[labelled]).T @ true / counts  # of a class, each answer
    answers = _with_none(given).mean(axis=0)
    weights = 1 / np.maximum(answers, 1 / len(given))
    shares = _least_squares(confusion, answers, weights)
    basis = _sum_to_nothing(len(shares))
    inner = confusion @ basis
    solve = basis @ np.linalg.pinv(inner.T @ (weights[:, None] * inner)) @ (inner.T * weights)
    noise = (np.diag(answers) - np.outer(answers, answers)) / len(given)
    for share, row, count in zip(shares, confusion.T, counts, strict=True):
        noise += share**2 * (np.diag(row) - np.outer(row, row)) / count
    return Priors(shares, np.sqrt(np.maximum(np.diag(solve @ noise @ solve.T), 0)))


def _least_squares(confusion: FloatArray, answers: FloatArray, weights: FloatArray) -> FloatArray:
    """Shares, none negative, whose answers are nearest to those seen."""
    from scipy.optimize import nnls

    root = np.sqrt(weights)
    sure = 1e3 * root.max()  # that they sum to one
    matrix = np.vstack([root[:, None] * confusion, np.full(confusion.shape[1], sure)])
    shares, _ = nnls(matrix, np.append(root * answers, sure))
    return np.asarray(shares / shares.sum(), np.float64)


def _one_by_one(
    given: NDArray[np.bool_], reference_given: NDArray[np.bool_], reference_true: NDArray[np.bool_]
) -> Priors:
    seen = given.mean(axis=0)
    with_it, without = reference_true.sum(axis=0), (~reference_true).sum(axis=0)
    found = (reference_given & reference_true).sum(axis=0) / np.maximum(1, with_it)
    false = (reference_given & ~reference_true).sum(axis=0) / np.maximum(1, without)
    gap = found - false
    enough = (np.minimum(with_it, without) >= LEAST_OF_A_CLASS) & (gap >= _LEAST_DISCRIMINATION)
    gap = np.where(enough, gap, np.nan)
    shares = np.clip((seen - false) / gap, 0, 1)
    variance = (
        seen * (1 - seen) / len(given)
        + shares**2 * found * (1 - found) / np.maximum(1, with_it)
        + (1 - shares) ** 2 * false * (1 - false) / np.maximum(1, without)
    )
    return Priors(shares, np.sqrt(variance) / gap)


def _with_none(given: NDArray[np.bool_]) -> FloatArray:
    """One more column, for no label at all."""
    return np.column_stack([given, ~given.any(axis=1)]).astype(np.float64)


def _sum_to_nothing(classes: int) -> FloatArray:
    """An orthonormal basis, C x (C - 1), of the changes that leave a sum as it is."""
    full: NDArray[Any] = np.linalg.svd(np.ones((1, classes)))[2]
    return np.asarray(full[1:].T, np.float64)


def corrected(
    chances: FloatArray, before: FloatArray, after: FloatArray, *, exclusive: bool
) -> FloatArray:
    """Probabilities N x C as they are where the classes' shares, C, are other ones.

    Exclusive: p times after / before, brought to sum one again. Others: their odds times the odds
    of after over those of before.

    >>> chances, half = np.array([[0.5, 0.5]]), np.array([0.5, 0.5])
    >>> corrected(chances, half, np.array([0.75, 0.25]), exclusive=True).tolist()
    [[0.75, 0.25]]
    """
    if exclusive:
        found = chances * (after / before)
        return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-300))
    ratio = odds_ratio(before, after)
    return np.asarray(chances * ratio / (chances * ratio + 1 - chances))


def image_weights(
    known: FloatArray,
    before: FloatArray,
    after: FloatArray,
    changed: NDArray[np.bool_],
    *,
    exclusive: bool,
) -> FloatArray:
    """Weights of images, N, by which classes of shares `before` come in shares `after`, C each.

    `known` are true labels N x C of 0 and 1, or probabilities. Of classes that are not exclusive
    those that `changed` are taken as independent of each other. An image that shows none of
    exclusive classes keeps its weight.
    """
    before = np.clip(before, 1e-9, 1 - 1e-9)
    if exclusive:
        return np.asarray(known @ (after / before) + 1 - known.sum(axis=1).clip(0, 1))
    factors = known * (after / before) + (1 - known) * ((1 - after) / (1 - before))
    return np.asarray(np.where(changed, factors, 1.0).prod(axis=1))


def odds_ratio(before: FloatArray, after: FloatArray) -> FloatArray:
    """Of shares, each C and strictly between 0 and 1."""
    return np.asarray(after / (1 - after) * (1 - before) / before)


def threshold_before(threshold: float, ratio: float) -> float:
    """The threshold on uncorrected probabilities that equals `threshold` on corrected ones.

    >>> threshold_before(0.5, 3.0)
    0.25
    """
    if threshold in (0.0, 1.0) or not math.isfinite(ratio):
        return threshold
    odds = threshold / (1 - threshold) / ratio
    return odds / (1 + odds)
