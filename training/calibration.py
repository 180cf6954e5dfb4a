"""Logits -> probabilities that mean what they say, and the measures of how well they do.

Fit on validation, look at the result on test: a calibration measured on the rows it was fitted to
flatters itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

from model.decision import Calibration
from model.errors import DataError

Array = NDArray[Any]
Floats = NDArray[np.float64]

TEMPERATURE_RANGE = (0.05, 20.0)
MIN_SLOPE = 0.01  # a slope of zero or less would turn the ranking of a class round
LEAST_PER_SIDE = 10  # positives and negatives a class needs before it gets its own Platt fit
RELIABILITY_BINS = 15


def fit_temperature(logits: Array, targets: Array) -> Calibration:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017).

    `logits` N x C, `targets` class indices of length N. The targets are smoothed by 1 / (N + 2),
    as Platt does for two classes, so that a validation set without a single mistake does not
    drive the temperature to zero. Never changes which class is most probable.

    Raises DataError for shapes that do not fit, empty data, or logits that are not finite.

    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 1000)
    >>> round(fit_temperature(logits, np.array([0, 0, 1, 1] * 1000)).temperature, 1)
    3.6
    """
    values, wanted = checked_table(logits, targets)
    if wanted.ndim != 1:
        raise DataError(
            f"temperature needs class indices of shape N, got targets of shape {wanted.shape}; "
            "use fit_platt for multi-label targets"
        )
    rows = np.arange(len(values))
    smoothing = 1 / (len(values) + 2)

    def negative_log_likelihood(log_temperature: float) -> float:
        scores = log_softmax(values / np.exp(log_temperature), axis=1)
        right, uniform = scores[rows, wanted].mean(), scores.mean()
        return -float((1 - smoothing) * right + smoothing * uniform)

    found = minimize_scalar(
        negative_log_likelihood, bounds=np.log(TEMPERATURE_RANGE), method="bounded"
    )
    return Calibration(method="temperature", temperature=float(np.exp(found.x)))


def fit_platt(
    logits: Array, targets: Array, *, least_per_side: int = LEAST_PER_SIDE
) -> Calibration:
    """One sigmoid per class, sigmoid(slope * logit + intercept) (Platt 1999).

    `logits` and `targets` N x C, targets 0 or 1. A class with fewer than `least_per_side`
    positives or negatives borrows the sigmoid fitted to all cells together. Slopes stay positive,
    so the ranking within a class never changes.

    Raises DataError for shapes that do not fit, or targets that are all positive or all negative.
    """
    values, wanted = checked_table(logits, targets)
    if wanted.shape != values.shape:
        raise DataError(
            f"Platt scaling needs targets of the shape of the logits {values.shape}, "
            f"got {wanted.shape}"
        )
    if wanted.min() == wanted.max():
        raise DataError(
            f"Platt scaling needs positives and negatives; every target is {wanted.flat[0]}"
        )
    shared = _fit_sigmoid(values.ravel(), wanted.ravel())
    pairs = [
        _fit_sigmoid(values[:, index], wanted[:, index])
        if _has_enough(wanted[:, index], least_per_side)
        else shared
        for index in range(values.shape[1])
    ]
    return Calibration(
        method="platt",
        slopes=tuple(slope for slope, _ in pairs),
        intercepts=tuple(intercept for _, intercept in pairs),
    )


def _has_enough(column: Array, least: int) -> bool:
    positives = int(column.sum())
    return min(positives, len(column) - positives) >= least


def _fit_sigmoid(logits: Floats, targets: Array) -> tuple[float, float]:
    """Slope and intercept by maximum likelihood on Platt's smoothed targets."""
    positives = int(targets.sum())
    negatives = len(targets) - positives
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    smoothed = np.where(targets == 1, high, low)
    # Centred and scaled, so that one step size suits slope and intercept alike.
    centre, scale = float(logits.mean()), float(logits.std()) or 1.0
    scaled = (logits - centre) / scale

    def loss_and_gradient(parameters: Floats) -> tuple[float, Floats]:
        score = parameters[0] * scaled + parameters[1]
        loss = np.logaddexp(0, score) - smoothed * score
        residual = expit(score) - smoothed
        return float(loss.mean()), np.array([(residual * scaled).mean(), residual.mean()])

    found = minimize(
        loss_and_gradient,
        x0=np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(MIN_SLOPE * scale, None), (None, None)],
    )
    slope = float(found.x[0]) / scale
    return slope, float(found.x[1]) - slope * centre


@dataclass(frozen=True)
class Reliability:
    """Points of a reliability diagram: bins of nearly equal mass, none of them empty.

    `confidence` is the mean stated probability of a bin, `frequency` how often it came true,
    `count` its number of rows (single) or cells (multi).
    """

    confidence: Floats
    frequency: Floats
    count: NDArray[np.int64]


def reliability(
    probabilities: Array, targets: Array, *, bins: int = RELIABILITY_BINS
) -> Reliability:
    """Stated probability against observed frequency, for a reliability diagram.

    Targets of shape N: the confidence of the most probable class against whether it is right.
    Targets of shape N x C: every cell's probability against whether the label is there.
    """
    stated, came_true = outcomes(probabilities, targets)
    index = mass_bins(stated, bins)
    count = np.bincount(index)
    return Reliability(
        confidence=np.bincount(index, stated) / count,
        frequency=np.bincount(index, came_true) / count,
        count=count,
    )


def expected_calibration_error(
    probabilities: Array, targets: Array, *, bins: int = RELIABILITY_BINS
) -> float:
    """Mean distance between stated and observed frequency over equal-mass bins (0 is perfect).

    Single or multi by the shape of the targets, see `reliability`. Equal mass, since equal-width
    bins leave most of them empty once a model is sure (Nixon et al. 2019). Not to be compared
    between sets of different size: noise adds to it, about sqrt(bins / N) / 2 at worst.

    >>> expected_calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0
    """
    points = reliability(probabilities, targets, bins=bins)
    share = points.count / points.count.sum()
    return float((share * np.abs(points.confidence - points.frequency)).sum())


def brier_score(probabilities: Array, targets: Array) -> float:
    """Mean squared distance between probabilities and outcome (Brier 1950); 0 is perfect.

    Single: summed over classes, 0 to 2. Multi: mean over cells, 0 to 1.
    """
    return float(brier_by_row(probabilities, targets).mean())


def brier_by_row(probabilities: Array, targets: Array) -> Floats:
    """The Brier score of each row, float64 of shape N."""
    stated, wanted = checked_table(probabilities, targets)
    if wanted.ndim == 2:
        return np.asarray(((stated - wanted) ** 2).mean(axis=1))
    outcome = np.zeros_like(stated)
    outcome[np.arange(len(stated)), wanted] = 1
    return np.asarray(((stated - outcome) ** 2).sum(axis=1))


def outcomes(probabilities: Array, targets: Array) -> tuple[Floats, Floats]:
    """Flat pairs of stated probability and outcome 0 or 1: N of them (single) or N * C (multi)."""
    stated, wanted = checked_table(probabilities, targets)
    if stated.min() < 0 or stated.max() > 1:
        raise DataError(
            f"probabilities must lie in 0 to 1, got {stated.min():g} to {stated.max():g}; "
            "are these logits?"
        )
    if wanted.ndim == 2:
        return stated.ravel(), wanted.ravel().astype(np.float64)
    best = stated.argmax(axis=1)
    return stated[np.arange(len(stated)), best], (best == wanted).astype(np.float64)


def mass_bins(stated: Floats, bins: int) -> NDArray[np.intp]:
    """Bin of each value, 0 to at most bins - 1, of nearly equal mass; ties share a bin."""
    if bins < 1:
        raise DataError(f"bins must be at least 1, got {bins}")
    edges = np.quantile(stated, np.linspace(0, 1, bins + 1)[1:-1], method="higher")
    raw = np.searchsorted(np.unique(edges), stated, side="right")
    _, dense = np.unique(raw, return_inverse=True)
    return np.asarray(dense)


def checked_table(values: Array, targets: Array) -> tuple[Floats, Array]:
    """Values as finite float64 N x C, targets as integers N or N x C that fit them."""
    table, wanted = np.asarray(values, np.float64), np.asarray(targets)
    if table.ndim != 2 or not table.size:
        raise DataError(f"expected a non-empty table of shape N x C, got shape {table.shape}")
    if wanted.shape not in ((len(table),), table.shape):
        raise DataError(
            f"targets of shape {wanted.shape} do not fit {table.shape}: "
            f"expected ({len(table)},) for single-label or {table.shape} for multi-label"
        )
    if not np.isfinite(table).all():
        raise DataError(f"{int((~np.isfinite(table)).sum())} values are not finite")
    highest = 1 if wanted.ndim == 2 else table.shape[1] - 1
    if wanted.min() < 0 or wanted.max() > highest:
        raise DataError(f"targets must lie in 0 to {highest}, got {wanted.min()} to {wanted.max()}")
    return table, wanted.astype(np.int64)
