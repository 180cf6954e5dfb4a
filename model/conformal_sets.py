"""Prediction sets at a stated coverage: every class that is probable enough. numpy only.

Of an image that shows at least one of the classes, on average at least `coverage` of its true
labels are in its set. For a single label that is the chance that the true class is in the set.
The average is over images like those of the calibration split and over calibration splits; it
holds for any model and any number of calibration images. Nothing is promised for an image that
shows none of the classes.

A set holds the classes whose probability reaches one threshold. The threshold is the highest at
which the calibration images, and a new one at its worst, keep the promise: conformal risk control
(Angelopoulos et al. 2024) of the share of true labels missed. With one label per image it is split
conformal prediction with the score 1 - p (Sadinle et al. 2019), the one with the smallest sets on
average. It needs no random numbers, so an image gets the same set each time; adaptive sets
(Romano et al. 2020) follow hard images better, but are larger, and without random numbers several
times as large.

An empty set means that no class is probable enough for this coverage. A coverage under the share
of images that the model gets right cannot be met otherwise: it is the least sure images that are
left without a set. A higher coverage gives them one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.bundle import CONFORMAL_SETS, Bundle
from model.decision import FloatArray, Task
from model.errors import CoverageError

VALID = "valid is a number between 0 and 1, such as 0.9"

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", re.ASCII | re.IGNORECASE)
_MILLION = 1_000_000


@dataclass(frozen=True)
class ConformalSets:
    """What the calibration split says of sets.

    `scores` (float32, M, sorted) are the probabilities that the calibration images gave to their
    true labels, one per image and label. `shares` (float64, M) is what missing that label costs:
    1 / number of the image's labels. `images` (int64, 1) is n, the number of images with a label.
    """

    scores: FloatArray
    shares: NDArray[np.float64]
    images: NDArray[np.int64]

    @classmethod
    def fit(cls, probabilities: FloatArray, targets: NDArray[Any], task: Task) -> Self:
        """From calibrated probabilities N x C and targets of the calibration split.

        Targets are class indices N, -1 for no label, or N x C of 0 and 1. Rows without a label
        do not count.
        """
        rows, columns = true_labels(targets, task)
        order = np.argsort(probabilities[rows, columns], kind="stable")
        labels = np.bincount(rows, minlength=len(targets))
        return cls(
            scores=probabilities[rows, columns][order].astype(np.float32),
            shares=1 / labels[rows][order],
            images=np.array([np.count_nonzero(labels)], np.int64),
        )

    @property
    def image_count(self) -> int:
        """n, the number of calibration images with a label."""
        return int(self.images[0])

    @property
    def highest_coverage(self) -> float:
        """The highest that can be promised, n / (n + 1), rounded down to six decimals."""
        return self.image_count * _MILLION // (self.image_count + 1) / _MILLION

    def threshold(self, coverage: float) -> float:
        """The least probability of a class in the set.

        Raises `CoverageError` for what is not between 0 and 1, and for more than n / (n + 1).

        >>> nine = ConformalSets.fit(np.eye(10)[:9] * 0.9, np.arange(9), "single")
        >>> round(nine.threshold(0.9), 6)
        0.9
        >>> nine.threshold(0.95)
        Traceback (most recent call last):
        model.errors.CoverageError: a coverage of 0.95 cannot be promised from 9 calibration \
images with a label; at most 0.9 can. More of them allow more, or ask for less
        """
        # As a fraction of what was typed: in binary 1 - 0.9 is less than a tenth.
        missed = 1 - Fraction(str(check_coverage(coverage)))
        count = self.image_count
        # The new image may cost 1 at worst; what is left may be missed on the n that are known.
        allowed = missed * (count + 1) - 1
        if allowed < 0:
            raise CoverageError(self._too_high(coverage))
        last = np.searchsorted(self._missed_below, float(allowed), side="right") - 1
        return float(self.scores[last])

    def _too_high(self, coverage: float) -> str:
        if not self.image_count:
            return "no coverage can be promised: no calibration image has a label. Train with some"
        return (
            f"a coverage of {coverage} cannot be promised from {self.image_count} calibration"
            f" images with a label; at most {self.highest_coverage:g} can. More of them allow"
            " more, or ask for less"
        )

    @cached_property
    def _missed_below(self) -> NDArray[np.float64]:
        """Per score, what is missed in all of the images with the threshold at that score (M)."""
        before = np.concatenate([[0.0], np.cumsum(self.shares)])
        return np.asarray(before[np.searchsorted(self.scores, self.scores, side="left")])

    def contains(self, probabilities: FloatArray, coverage: float) -> NDArray[np.bool_]:
        """Whether each class is in the set of each row (N x C). Raises `CoverageError`."""
        return np.asarray(np.asarray(probabilities, np.float32) >= self.threshold(coverage))

    def prediction_sets(
        self, probabilities: FloatArray, coverage: float, classes: Sequence[str]
    ) -> list[list[str]]:
        """The set of each row of probabilities (N x C), the most probable class first.

        Raises `CoverageError` as `threshold` does.
        """
        least = self.threshold(coverage)
        return [label_set(row, least, classes) for row in np.asarray(probabilities, np.float32)]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """Back from `to_arrays`."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def load_sets(bundle: Bundle) -> ConformalSets | None:
    """What a bundle keeps of sets; None where it was made before there were any."""
    if CONFORMAL_SETS not in bundle.manifest.files:
        return None
    return ConformalSets.from_arrays(bundle.arrays(CONFORMAL_SETS))


def no_sets(bundle: Bundle) -> CoverageError:
    """Why this version has no sets, and what to do about it."""
    manifest = bundle.manifest
    return CoverageError(
        f"{manifest.tag} has no prediction sets: it was made before Plumbline kept them. Train it"
        f" again: plumbline train --data ... --name {manifest.name}"
    )


def label_set(probabilities: FloatArray, least: float, classes: Sequence[str]) -> list[str]:
    """The classes of one row (C) that reach the probability, the most probable first.

    >>> label_set(np.array([0.3, 0.1, 0.6], np.float32), 0.25, ["cat", "dog", "owl"])
    ['owl', 'cat']
    """
    inside = np.flatnonzero(probabilities >= least)
    return [classes[index] for index in inside[np.argsort(-probabilities[inside], kind="stable")]]


def true_labels(targets: NDArray[Any], task: Task) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and class of every true label, M each; rows without a label have none."""
    if task == "multi":
        rows, columns = np.nonzero(targets)
        return rows, columns
    rows = np.flatnonzero(targets >= 0)
    return rows, targets[rows].astype(np.intp)


def check_coverage(coverage: float) -> float:
    """The coverage itself. Raises `CoverageError` for what does not lie between 0 and 1."""
    if not 0 < coverage < 1:
        raise CoverageError(f"coverage is {coverage:g}; {VALID}")
    return coverage


def parse_coverage(text: str) -> float:
    """A coverage as someone typed it. Raises `CoverageError`.

    >>> parse_coverage("0.95")
    0.95
    """
    if not _NUMBER.fullmatch(text):
        raise CoverageError(f"coverage is {text[:40]!r}; {VALID}")
    return check_coverage(float(text))
