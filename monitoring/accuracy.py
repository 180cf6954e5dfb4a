"""Accuracy without labels, and when not to believe it.

- CBPE: the accuracy that the calibrated probabilities themselves expect (NannyML, "Confidence-
  Based Performance Estimation").
- ATC: the share of images surer than a threshold at which, on the reference, that share equals
  the accuracy (Garg et al. 2022, "Leveraging Unlabeled Data to Predict Out-of-Distribution
  Performance").

Both hold under mild change and mislead under gross change: `believable` says which it is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model.decision import Task

FLAGGED_LIMIT_ALPHAS = 3  # a flagged share above this many alphas is gross change,
SIGNIFICANCE = 0.001  # unless chance would do it with more than this probability


def expected_labels(
    probabilities: NDArray[np.floating], accepted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Per image: expected right labels, labels given, labels expected (N x 3).

    Takes calibrated probabilities and the labels that were given, both N x C.
    """
    parts = (probabilities * accepted, accepted, probabilities)
    return np.stack([part.sum(axis=1, dtype=np.float64) for part in parts], axis=1)


def cbpe(expected: NDArray[np.float64], task: Task) -> float | None:
    """Expected accuracy (single-label) or micro F1 (multi-label), of `expected_labels`.

    None without images, or where nothing is given and nothing expected.

    >>> chances = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> cbpe(expected_labels(chances, chances > 0.5), "single")
    0.75
    """
    right, given, all_expected = expected.sum(axis=0).tolist()
    if task == "single":
        return right / len(expected) if len(expected) else None
    return 2 * right / (given + all_expected) if given + all_expected else None


def atc_threshold(confidences: NDArray[np.floating], accuracy: float) -> float:
    """The confidence that a share `accuracy` of the reference exceeds."""
    return float(np.quantile(confidences, 1 - accuracy))


def atc(confidences: NDArray[np.floating], threshold: float) -> float | None:
    """The share of images surer than the threshold; None without images."""
    return float((confidences > threshold).mean()) if len(confidences) else None


def believable(flagged: int, images: int, alpha: float) -> bool:
    """Whether so many flagged images speak for mild change at most (one-sided binomial test)."""
    if not images:
        return False
    most = min(1.0, FLAGGED_LIMIT_ALPHAS * alpha)
    return _chance_of_at_least(flagged, images, most) >= SIGNIFICANCE


def _chance_of_at_least(successes: int, trials: int, probability: float) -> float:
    """Upper tail of the binomial distribution.

    >>> round(_chance_of_at_least(3, 10, 0.03), 6)
    0.002765
    """
    if successes == 0 or probability >= 1:
        return 1.0
    lost, won = math.log1p(-probability), math.log(probability)
    return math.fsum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(count + 1)
            - math.lgamma(trials - count + 1)
            + count * won
            + (trials - count) * lost
        )
        for count in range(successes, trials + 1)
    )
