"""Accuracy without labels, with intervals, and when not to believe it.

- CBPE: the accuracy that the calibrated probabilities themselves expect (NannyML, "Confidence-
  Based Performance Estimation").
- ATC: the share of images surer than a threshold at which, on the reference, that share equals
  the accuracy (Garg et al. 2022, "Leveraging Unlabeled Data to Predict Out-of-Distribution
  Performance").

The 95 % intervals are for the accuracy on the very images of the window, as it would turn out were
they all labelled. They cover chance: which of the images are right, given their probabilities, and
how exactly a reference of that size knows its own accuracy. They do not cover probabilities that
are wrong under a shift, which no unlabelled image can show. Both estimates hold under mild change
and mislead under gross change: `why_invalid` says which it is.

An image of a single label that is answered as none of the classes counts as mistaken, as it is on
the reference, whose images are of the classes. Probabilities that sum to one over the classes
cannot tell the chance of none: where more is answered so than there, `why_undefined` says it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.decision import Task

FLAGGED_LIMIT_ALPHAS = 3  # a flagged share above this many alphas is gross change,
SIGNIFICANCE = 0.001  # unless chance would do it with more than this probability
NORMAL_95 = 1.959964  # standard errors to either side of a 95 % interval
LEAST_NONE_CHANGE = 0.02  # of the share answered as none: less moves the estimates by less

Interval = tuple[float, float]


def expected_labels(
    probabilities: NDArray[np.floating], accepted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What is expected of each image, N x 5, from calibrated probabilities and labels given, N x C.

    Right labels, labels given, labels expected; then the variances of the first and the third,
    each label being there or not independently of the image's others.
    """
    variances = probabilities * (1 - probabilities)
    parts = (probabilities * accepted, accepted, probabilities, variances * accepted, variances)
    return np.stack([part.sum(axis=1, dtype=np.float64) for part in parts], axis=1)


def cbpe(expected: NDArray[np.float64], task: Task) -> float | None:
    """Expected accuracy (single-label) or micro F1 (multi-label), of `expected_labels`.

    None without images, or where nothing is given and nothing expected.

    >>> chances = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> cbpe(expected_labels(chances, chances > 0.5), "single")
    0.75
    """
    right, given, all_expected = expected.sum(axis=0)[:3].tolist()
    if task == "single":
        return right / len(expected) if len(expected) else None
    return 2 * right / (given + all_expected) if given + all_expected else None


def cbpe_interval(
    expected: NDArray[np.float64], task: Task, reference_images: int
) -> Interval | None:
    """95 % interval of `cbpe`; None where that is.

    The number of right labels is Poisson-binomial with the images' own probabilities, so its
    variance is a plain sum (for micro F1 with the delta method). Their calibration was seen on
    images too, about as many as the reference has: their share of chance is added.
    """
    value = cbpe(expected, task)
    if value is None:
        return None
    _, given, all_expected, of_given, of_all = expected.sum(axis=0).tolist()
    if task == "single":
        variance = of_given / len(expected) ** 2
    else:
        # d F1 = sum of (2 given - F1) d label / (labels given + labels expected)
        variance = (4 * (1 - value) * of_given + value**2 * of_all) / (given + all_expected) ** 2
    variance *= 1 + len(expected) / max(1, reference_images)
    return _around(value, NORMAL_95 * math.sqrt(variance), NORMAL_95 * math.sqrt(variance))


@dataclass(frozen=True)
class AtcReference:
    """ATC's thresholds of confidence: at the reference's accuracy, and at the ends of its interval.

    A lower accuracy means a higher threshold, so `at_low` is at least `at_value`.
    """

    at_value: float
    at_low: float
    at_high: float

    @classmethod
    def of(
        cls, confidences: NDArray[np.floating], accuracy: float, low: float, high: float
    ) -> AtcReference:
        """From the reference's confidences, N, and its accuracy with a 95 % interval."""
        return cls(*(atc_threshold(confidences, its) for its in (accuracy, low, high)))


def atc_threshold(confidences: NDArray[np.floating], accuracy: float) -> float:
    """The confidence that a share `accuracy` of the reference exceeds."""
    return float(np.quantile(confidences, 1 - accuracy))


def atc(confidences: NDArray[np.floating], threshold: float) -> float | None:
    """The share of images surer than the threshold; None without images."""
    return float((confidences > threshold).mean()) if len(confidences) else None


def atc_interval(
    confidences: NDArray[np.floating], reference: AtcReference, right: NDArray[np.floating]
) -> Interval | None:
    """95 % interval of `atc` for a single label; None without images.

    `right`, N, are the chances that the images' labels are right. ATC is off by the images that
    are right though not sure less those sure though not right, which balance on the reference and
    elsewhere but for chance: the variance of that is the sum of both. What the reference's own
    accuracy leaves open is what the share moves between its two thresholds.
    """
    value = atc(confidences, reference.at_value)
    if value is None:
        return None
    misses = np.where(confidences > reference.at_value, 1 - right, right)
    chance = NORMAL_95 * math.sqrt(float(misses.sum())) / len(confidences)
    below = value - float((confidences > reference.at_low).mean())
    above = float((confidences > reference.at_high).mean()) - value
    return _around(value, math.hypot(chance, below), math.hypot(chance, above))


def why_invalid(flagged: int, images: int, alpha: float, drift: str | None = None) -> str | None:
    """Why the estimates are not to be believed, in words; None where they are.

    `drift` is the stream of an alarm that nobody has reset.
    """
    if not images:
        return "no images have been recorded yet"
    reasons = []
    if drift is not None:
        reasons.append(
            f"the domain has drifted ({drift.replace('_', ' ')}), and probabilities calibrated"
            " before may not hold"
        )
    if not believable(flagged, images, alpha):
        reasons.append(
            f"{flagged} of the last {images} images are flagged as out of domain,"
            f" {flagged / images:.1%} where {alpha:.2g} is usual: more than"
            f" {FLAGGED_LIMIT_ALPHAS} times that is gross change (one-sided binomial test,"
            f" p < {SIGNIFICANCE:g})"
        )
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class NoneAnswers:
    """How many of so many images were answered as none of the classes."""

    none: int
    images: int

    @property
    def share(self) -> float:
        """0 without images."""
        return self.none / max(1, self.images)

    def exceeds(self, reference: NoneAnswers) -> bool:
        """Whether it is a larger share than there, noticeably and beyond both 95 % intervals."""
        low, _ = wilson_interval(self.none, self.images)
        _, high = wilson_interval(reference.none, reference.images)
        return low > high and self.share - reference.share >= LEAST_NONE_CHANGE


def why_undefined(last: NoneAnswers, reference: NoneAnswers) -> str | None:
    """Why the model defines no accuracy on the last images, in words; None where it does.

    `reference` is of images that are known to be of the classes.

    >>> why_undefined(NoneAnswers(20, 1_000), NoneAnswers(60, 3_000)) is None
    True
    """
    if not last.exceeds(reference):
        return None
    return (
        f"{last.none} of the last {last.images} images are answered as none of the classes,"
        f" {last.share:.1%} where {reference.share:.1%} of calibration images are: whether these"
        " are of a class that was missed or rightly of none, no probability of the model tells"
    )


def believable(flagged: int, images: int, alpha: float) -> bool:
    """Whether so many flagged images speak for mild change at most (one-sided binomial test)."""
    if not images:
        return False
    most = min(1.0, FLAGGED_LIMIT_ALPHAS * alpha)
    return _chance_of_at_least(flagged, images, most) >= SIGNIFICANCE


def wilson_interval(successes: float, trials: float) -> Interval:
    """95 % interval of a share (Wilson 1927); sound near 0 and 1. Trials may be effective ones.

    >>> [round(bound, 3) for bound in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    if trials <= 0:
        return 0.0, 1.0
    share, square = successes / trials, NORMAL_95**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return _around(middle, half, half)


def _around(value: float, below: float, above: float) -> Interval:
    return max(0.0, value - below), min(1.0, value + above)


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
