"""What to do where only the class mix changed: correct for it, and what that is to gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task, Thresholds
from monitoring.accuracy import NORMAL_95, cbpe, expected_labels
from monitoring.class_priors import Priors, corrected, odds_ratio, threshold_before
from monitoring.samples import FloatArray, Sample
from monitoring.truth import as_matrix

_DRAWS = 50


class Proposer:
    """Proposes against one reference."""

    def __init__(
        self,
        reference: Sample,
        classes: Sequence[str],
        thresholds: Thresholds,
        *,
        task: Task,
        exclusive: bool,
    ) -> None:
        """As for `PriorShift`."""
        self._reference = reference
        self._classes = tuple(classes)
        self._thresholds = thresholds.as_array(self._classes).astype(np.float64)
        self._task = task
        self._exclusive = exclusive
        self._true = (
            None if reference.targets is None else as_matrix(reference.targets, len(classes))
        )

    def propose(self, images: Sample, found: Priors, changed: NDArray[np.bool_]) -> dict[str, Any]:
        """As JSON values, for the shares that were found, of classes of which these `changed`, C.

        `factors` multiply probabilities, or odds where classes do not exclude each other;
        `thresholds` then do the same to uncorrected probabilities.
        """
        before = np.clip(self._reference.chances.mean(axis=0), 1e-9, 1 - 1e-9)
        # Never quite 0 or 1: a class that was not seen is not impossible.
        after = np.clip(found.shares, 0.5 / len(images), 1 - 0.5 / len(images))
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
        expected = self._expected(images, before, after, found.errors)
        return {
            "what": "prior-corrected probabilities" if self._exclusive else "adjusted thresholds",
            "factors": {name: float(its) for name, its in zip(self._classes, factors, strict=True)},
            "thresholds": thresholds,
            "expected": expected,
            "worthwhile": expected["gain_low"] > 0,
        }

    def _expected(
        self, images: Sample, before: FloatArray, after: FloatArray, errors: FloatArray
    ) -> dict[str, Any]:
        """Accuracy, or micro F1, under the new class mix: as it is and by the proposal."""
        if self._exclusive and self._true is not None and self._task == "single":
            return self._measured_on_reference(before, after, errors)
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

    def _measured_on_reference(
        self, before: FloatArray, after: FloatArray, errors: FloatArray
    ) -> dict[str, Any]:
        """On labelled images that the shares were not estimated from, weighted by class.

        Corrected by estimated shares and judged under the same estimates, a rule looks better than
        it is. How much by is found by estimating anew, with errors of that size, shares that are
        known: the mean is taken off the gain, and the spread goes into its interval.
        """
        was, will, deviations = self._gain_under(before, after, after)
        random = np.random.default_rng(0)
        flattery = []
        for _ in range(_DRAWS):
            drawn = np.clip(random.normal(after, errors), 1e-4, 1)
            drawn /= drawn.sum()
            seen = self._gain_under(before, drawn, drawn)
            true = self._gain_under(before, drawn, after)
            flattery.append((seen[1] - seen[0]) - (true[1] - true[0]))
        error = math.hypot(float(np.linalg.norm(deviations)), float(np.std(flattery)))
        assert self._true is not None
        return {
            **_gain(was, will - float(np.mean(flattery)), NORMAL_95 * error),
            "by": f"{int(self._true.any(axis=1).sum())} labelled reference images, weighted by"
            " class",
        }

    def _gain_under(
        self, before: FloatArray, rule: FloatArray, shares: FloatArray
    ) -> tuple[float, float, FloatArray]:
        """Accuracy under `shares`, as it is and by the correction to `rule`, C each.

        And what each reference image adds to the difference beyond its mean.
        """
        reference, true = self._reference, self._true
        assert true is not None
        chances = corrected(reference.chances, before, rule, exclusive=True)
        weights = true @ (shares / np.clip(true.mean(axis=0), 1e-9, 1))
        weights /= weights.sum()
        now, then = (
            (given == true).all(axis=1).astype(np.float64)
            for given in (reference.given, self._decide(chances))
        )
        was, will = float(weights @ now), float(weights @ then)
        return was, will, np.asarray(weights * (then - now - (will - was)))

    def _decide(self, chances: FloatArray) -> NDArray[np.bool_]:
        """Labels of probabilities, N x C each, as `model.decision.decide` gives them."""
        accepted = chances >= self._thresholds
        if self._task == "multi":
            return np.asarray(accepted)
        best = np.zeros(chances.shape, bool)
        best[np.arange(len(chances)), chances.argmax(axis=1)] = True
        return np.asarray(accepted & best)


def _gain(before: float, after: float, error: float) -> dict[str, float]:
    gain = after - before
    return {
        "before": before,
        "after": after,
        "gain": gain,
        "gain_low": gain - error,
        "gain_high": gain + error,
    }
