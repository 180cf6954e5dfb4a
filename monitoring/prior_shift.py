"""Whether only the class mix changed, and what to do then instead of training anew.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task, Thresholds
from monitoring.accuracy import NORMAL_95, cbpe, expected_labels
from monitoring.class_priors import (
    FloatArray,
    Priors,
    by_black_box,
    by_expectation_maximisation,
    corrected,
    image_weights,
    odds_ratio,
    threshold_before,
)
from monitoring.truth import as_matrix

LEAST_IMAGES = 200  # fewer say too little of what is unchanged
LEAST_CHANGE = 0.02  # of a class's share
SIGNIFICANCE = 0.01
COMPONENTS_TESTED = 8
_AGREEING = 0.02  # shares as near as this agree whatever their errors
_LEAST_EFFECTIVE = 50  # weighted reference images that can be compared with


@dataclass(frozen=True)
class Sample:
    """Images, all arrays of length N.

    `chances` are calibrated probabilities N x C, `given` the labels given N x C, `numbers` by name,
    `components` N x P. `targets`, of a reference, are class indices N (-1: none of them) or N x C
    of 0 and 1; None where they are not known.
    """

    chances: FloatArray
    given: NDArray[np.bool_]
    numbers: Mapping[str, FloatArray]
    components: FloatArray
    flagged: NDArray[np.bool_]
    targets: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.chances)

    def rows(self, rows: slice | NDArray[np.integer]) -> Sample:
        """Some of them, as arrays of their own: a few keep nothing of the others alive."""
        return Sample(
            self.chances[rows].copy(),
            self.given[rows].copy(),
            {name: values[rows].copy() for name, values in self.numbers.items()},
            self.components[rows].copy(),
            self.flagged[rows].copy(),
            None if self.targets is None else self.targets[rows].copy(),
        )

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """One after the other; true labels are not kept."""
        return cls(
            np.concatenate([its.chances for its in parts]),
            np.concatenate([its.given for its in parts]),
            {
                name: np.concatenate([its.numbers[name] for its in parts])
                for name in parts[0].numbers
            },
            np.concatenate([its.components for its in parts]),
            np.concatenate([its.flagged for its in parts]),
        )


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
        self._thresholds = thresholds.as_array(self._classes).astype(np.float64)
        self._task = task
        self._exclusive = exclusive
        self._true = (
            None if reference.targets is None else as_matrix(reference.targets, len(classes))
        )
        self._before = reference.chances.mean(axis=0)

    def explain(self, images: Sample) -> dict[str, Any]:
        """As JSON values; `{"images", "recognised", "sentence"}` alone for too few images."""
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
        # Never quite 0 or 1: a class that was not seen is not impossible.
        after = np.clip(found.shares, 0.5 / len(images), 1 - 0.5 / len(images))
        return {
            "images": len(images),
            "recognised": recognised,
            "agree": agree,
            "within_classes": within,
            "classes": self._table(found, checked, changed),
            "proposal": self._propose(images, after, changed) if recognised else None,
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

    # What to do

    def _propose(
        self, images: Sample, after: FloatArray, changed: NDArray[np.bool_]
    ) -> dict[str, Any]:
        before = np.clip(self._before, 1e-9, 1 - 1e-9)
        if self._exclusive:
            after = after / after.sum()
            factors = after / before
            thresholds = {}
        else:
            after = np.where(changed, after, before)
            factors = odds_ratio(before, after)
            thresholds = {
                self._classes[place]: {
                    "now": float(self._thresholds[place]),
                    "adjusted": threshold_before(
                        float(self._thresholds[place]), float(factors[place])
                    ),
                }
                for place in np.flatnonzero(changed).tolist()
            }
        expected = self._expected(images, before, after)
        return {
            "what": "prior-corrected probabilities" if self._exclusive else "adjusted thresholds",
            "factors": {name: float(its) for name, its in zip(self._classes, factors, strict=True)},
            "thresholds": thresholds,
            "expected": expected,
            "worthwhile": expected["gain_low"] > 0,
        }

    def _expected(self, images: Sample, before: FloatArray, after: FloatArray) -> dict[str, Any]:
        """Accuracy, or micro F1, under the new class mix: as it is and by the proposal."""
        if self._exclusive and self._true is not None and self._task == "single":
            return self._measured_on_reference(before, after)
        chances = corrected(images.chances, before, after, exclusive=self._exclusive)
        now, then = (
            expected_labels(chances, given) for given in (images.given, self._decide(chances))
        )
        was, will = cbpe(now, self._task) or 0.0, cbpe(then, self._task) or 0.0
        # Of a ratio for several labels, so only nearly that of the mean.
        gains = then[:, 0] - now[:, 0]
        error = NORMAL_95 * float(gains.std()) / math.sqrt(len(gains))
        return {
            **_gain(was, will, error),
            "by": "the corrected probabilities of these images, which favour the proposal",
        }

    def _measured_on_reference(self, before: FloatArray, after: FloatArray) -> dict[str, Any]:
        reference, true = self._reference, self._true
        assert true is not None
        chances = corrected(reference.chances, before, after, exclusive=True)
        weights = true @ (after / np.clip(true.mean(axis=0), 1e-9, 1))
        now, then = (
            (given == true).all(axis=1).astype(np.float64)
            for given in (reference.given, self._decide(chances))
        )
        was, will = (float(weights @ its / weights.sum()) for its in (now, then))
        deviations = weights * (then - now - (will - was))
        error = NORMAL_95 * math.sqrt(float((deviations**2).sum())) / float(weights.sum())
        return {
            **_gain(was, will, error),
            "by": f"{int(true.any(axis=1).sum())} labelled reference images, weighted by class",
        }

    def _decide(self, chances: FloatArray) -> NDArray[np.bool_]:
        """Labels of probabilities, N x C each, as `model.decision.decide` gives them."""
        accepted = chances >= self._thresholds
        if self._task == "multi":
            return np.asarray(accepted)
        best = np.zeros(chances.shape, bool)
        best[np.arange(len(chances)), chances.argmax(axis=1)] = True
        return np.asarray(accepted & best)

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


def _gain(before: float, after: float, error: float) -> dict[str, float]:
    gain = after - before
    return {
        "before": before,
        "after": after,
        "gain": gain,
        "gain_low": gain - error,
        "gain_high": gain + error,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def untold(images: int, why: str | None = None) -> dict[str, Any]:
    """What there is to say where nothing can be said, by default because the images are few."""
    few = f"{images} images are too few to tell the class mix from; {LEAST_IMAGES} are enough."
    return {"images": images, "recognised": False, "sentence": why or few}
