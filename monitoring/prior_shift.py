"""Whether only the class mix changed, so that there is no need to train anew.

A pure prior shift is a change of how frequent the classes are while the images of each class stay
as they were. Then the network is as good as before, and only the class shares that its answers take
for granted are wrong: probabilities are multiplied by new share over old, or thresholds adjusted.

It is recognised where all of this holds, each a test at 1 % over all that it looks at (Bonferroni):

- a class is more or less frequent than in the reference, beyond chance and by at least
  `LEAST_CHANGE`, as `class_priors` estimates it by expectation and maximisation;
- the estimate by the confusion matrix, where the bundle holds true labels, agrees with that;
- reference images, weighted so that their classes come in the new shares, look like these images:
  outlier score, confidence, brightness, sharpness, the first components (Kolmogorov and Smirnov's
  test with weights) and the share flagged.

What a test does not see is not there by that: small changes within classes stay unseen in few
images. The tests take images as independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task, Thresholds
from monitoring.class_priors import (
    Priors,
    by_black_box,
    by_expectation_maximisation,
    image_weights,
)
from monitoring.prior_proposal import Proposer
from monitoring.samples import FloatArray, Sample
from monitoring.truth import as_matrix

LEAST_IMAGES = 200  # fewer say too little of what is unchanged
LEAST_CHANGE = 0.02  # of a class's share
SIGNIFICANCE = 0.01
COMPONENTS_TESTED = 8
_AGREEING = 0.02  # shares as near as this agree whatever their errors
_LEAST_EFFECTIVE = 50  # weighted reference images that can be compared with


class PriorShift:
    """Holds images against one reference."""

    def __init__(
        self,
        reference: Sample,
        classes: Sequence[str],
        thresholds: Thresholds,
        *,
        task: Task,
        exclusive: bool,
    ) -> None:
        """`exclusive`: of a softmax, whose probabilities sum to one."""
        self._reference = reference
        self._classes = tuple(classes)
        self._exclusive = exclusive
        self._true = (
            None if reference.targets is None else as_matrix(reference.targets, len(classes))
        )
        self._before = reference.chances.mean(axis=0)
        self._proposer = Proposer(reference, classes, thresholds, task=task, exclusive=exclusive)

    def explain(self, images: Sample) -> dict[str, Any]:
        """As JSON values; see docs/monitor.md. Without `classes` for too few images."""
        if len(images) < LEAST_IMAGES:
            return untold(len(images))
        found = by_expectation_maximisation(
            images.chances, self._before, len(self._reference), exclusive=self._exclusive
        )
        checked = self._black_box(images)
        changed = self._changed(found)
        agree = None if checked is None else _agree(found, checked)
        within = self._within_classes(images, found, changed)
        recognised = bool(changed.any()) and agree is not False and within == []
        return {
            "images": len(images),
            "recognised": recognised,
            "agree": agree,
            "within_classes": within,
            "classes": self._table(found, checked, changed),
            "proposal": self._proposer.propose(images, found, changed) if recognised else None,
            "sentence": self._sentence(changed, found, agree, within),
        }

    def _black_box(self, images: Sample) -> Priors | None:
        if self._true is None:
            return None
        return by_black_box(
            images.given, self._reference.given, self._true, exclusive=self._exclusive
        )

    def _changed(self, found: Priors) -> NDArray[np.bool_]:
        """Classes whose share is another beyond chance, C."""
        differences = np.abs(found.shares - self._before)
        limit = _normal_quantile(SIGNIFICANCE / len(self._classes)) * found.errors
        return np.asarray((differences > limit) & (differences >= LEAST_CHANGE))

    def _weights(self, found: Priors, changed: NDArray[np.bool_]) -> FloatArray:
        """Of the reference's images, N, so that its classes come in the shares found."""
        known, before = self._reference.chances, self._before
        if self._true is not None:
            known = self._true.astype(np.float64)
            before = known.mean(axis=0)
        return image_weights(known, before, found.shares, changed, exclusive=self._exclusive)

    def _within_classes(
        self, images: Sample, found: Priors, changed: NDArray[np.bool_]
    ) -> list[dict[str, Any]] | None:
        """What is different though classes are weighted alike; None where that cannot be told."""
        weights = self._weights(found, changed)
        effective = weights.sum() ** 2 / (weights**2).sum()
        if effective < _LEAST_EFFECTIVE:
            return None
        columns = dict(self._reference.numbers)
        seen = dict(images.numbers)
        for place in range(min(COMPONENTS_TESTED, images.components.shape[1])):
            columns[f"component_{place}"] = self._reference.components[:, place]
            seen[f"component_{place}"] = images.components[:, place]
        p_values = {
            name: weighted_kolmogorov_smirnov(values, weights, seen[name])
            for name, values in columns.items()
        }
        p_values["flagged"] = _more_flagged(self._reference.flagged, weights, images.flagged)
        adjusted = {name: min(1.0, its * len(p_values)) for name, its in p_values.items()}
        different = sorted((its, name) for name, its in adjusted.items() if its < SIGNIFICANCE)
        return [{"name": name, "p_value": p_value} for p_value, name in different]

    def _table(
        self, found: Priors, checked: Priors | None, changed: NDArray[np.bool_]
    ) -> list[dict[str, Any]]:
        """By class, those whose share changed most first."""
        order = np.argsort(-np.abs(found.shares - self._before), kind="stable")
        return [
            {
                "name": self._classes[place],
                "reference": float(self._before[place]),
                "share": float(found.shares[place]),
                "low": float(found.low[place]),
                "high": float(found.high[place]),
                "black_box": None if checked is None else _number(checked.shares[place]),
                "black_box_low": None if checked is None else _number(checked.low[place]),
                "black_box_high": None if checked is None else _number(checked.high[place]),
                "changed": bool(changed[place]),
            }
            for place in order.tolist()
        ]

    def _sentence(
        self,
        changed: NDArray[np.bool_],
        found: Priors,
        agree: bool | None,
        within: list[dict[str, Any]] | None,
    ) -> str:
        if not changed.any():
            return "The class mix is that of calibration, as far as can be told."
        order = np.argsort(-np.abs(found.shares - self._before), kind="stable")
        most = [place for place in order.tolist() if changed[place]][:3]
        mix = ", ".join(
            f"{self._classes[place]} {found.shares[place]:.0%} instead of {self._before[place]:.0%}"
            for place in most
        )
        if within is None:
            return (
                f"The class mix seems to have changed ({mix}), so far from calibration that"
                " whether the images within classes changed too cannot be told."
            )
        if within:
            names = ", ".join(its["name"].replace("_", " ") for its in within[:4])
            return f"More than the class mix changed: within classes, {names} did."
        if agree is False:
            return (
                f"The class mix seems to have changed ({mix}), but the two estimates of it do not"
                " agree: something else changed too."
            )
        unchecked = "" if agree else " One estimate only: this bundle has no true labels to check."
        return (
            f"The class mix alone explains what is seen: {mix}. Within classes nothing is seen to"
            f" have changed: adjust to it, rather than train anew.{unchecked}"
        )


def weighted_kolmogorov_smirnov(
    reference: FloatArray, weights: FloatArray, images: FloatArray
) -> float:
    """P-value of the largest distance of two distribution functions, the first one weighted.

    The reference counts as its effective number of images, (sum of weights)^2 / sum of squares.
    """
    from scipy.special import kolmogorov

    places = np.concatenate([reference, images])
    order = np.argsort(reference, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(weights[order])]) / weights.sum()
    expected = summed[np.searchsorted(reference[order], places, side="right")]
    seen = np.searchsorted(np.sort(images), places, side="right") / len(images)
    effective = weights.sum() ** 2 / (weights**2).sum()
    size = effective * len(images) / (effective + len(images))
    return float(kolmogorov(np.abs(expected - seen).max() * math.sqrt(size)))


def _more_flagged(
    reference: NDArray[np.bool_], weights: FloatArray, images: NDArray[np.bool_]
) -> float:
    """Chance of so many flagged images, where they are flagged as the weighted reference is."""
    from scipy.stats import binomtest

    # One more of each kind: a reference without flagged images does not make one impossible.
    share = float((weights[reference].sum() + weights.mean()) / (weights.sum() + weights.mean()))
    found = binomtest(int(images.sum()), len(images), min(1.0, share), alternative="greater")
    return float(found.pvalue)


def _agree(one: Priors, other: Priors) -> bool:
    """Whether both may be of the same shares; the second one's errors are the larger ones."""
    known = np.isfinite(other.shares)
    limit = _normal_quantile(SIGNIFICANCE / max(1, int(known.sum()))) * other.errors[known]
    apart = np.abs(one.shares - other.shares)[known]
    return bool((apart <= np.maximum(limit, _AGREEING)).all())


def _normal_quantile(chance: float) -> float:
    """Standard errors that a normal value is further from its mean with this chance, two-sided."""
    from scipy.special import ndtri

    return float(ndtri(1 - chance / 2))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def untold(images: int, why: str | None = None) -> dict[str, Any]:
    """What there is to say where nothing can be said, by default because the images are few."""
    few = f"{images} images are too few to tell the class mix from; {LEAST_IMAGES} are enough."
    return {
        "images": images,
        "recognised": False,
        "agree": None,
        "within_classes": None,
        "classes": [],
        "proposal": None,
        "sentence": why or few,
    }
