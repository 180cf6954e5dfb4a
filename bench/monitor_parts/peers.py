"""Statistics of other drift detectors on a window of images, larger for more drift.

Each is made from a reference and gives one number per window; what number is an alarm is settled
elsewhere, for all of them at one false-alarm rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import kolmogorov
from scipy.stats import chi2, wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from monitor_parts.clean import Vectors
from monitoring.evidence import STREAMS

Components = NDArray[np.float32]  # N x P, of the embedding
PREDICTED = STREAMS.index("predicted_class")
NUMBERS = tuple(place for place in range(len(STREAMS)) if place != PREDICTED)
EVIDENTLY_LARGE = 1_000  # rows of a reference, past which Evidently looks at distances
EVIDENTLY_DISTANCE, EVIDENTLY_P = 0.1, 0.05  # its defaults, of a column
EVIDENTLY_COLUMNS = 0.5  # share of columns that make a data set drift, its default
_FEATURES = 256
_REFERENCE_ROWS = 500  # of the domain classifier


@dataclass(frozen=True)
class Sample:
    """Images as a detector sees them: the seven streams, and components of the embedding."""

    vectors: Vectors
    components: Components

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Sample:
        return Sample(self.vectors[rows], self.components[rows])

    def __len__(self) -> int:
        return len(self.vectors)


class Detector(Protocol):
    """Made from a reference."""

    def statistic(self, window: Sample) -> float:
        """Of a window."""
        ...


class KsBonferroni:
    """The smallest p-value of seven streams (-log10): Kolmogorov-Smirnov, chi-squared on classes.

    Bonferroni's factor is the same for every window and is part of the threshold.
    """

    def __init__(self, reference: Sample, seed: int) -> None:
        self._columns = _Columns(reference.vectors)

    def statistic(self, window: Sample) -> float:
        """-log10 of the smallest p-value."""
        return max(self._columns.surprise(place, window.vectors) for place in range(len(STREAMS)))


class EvidentlyDefault:
    """Evidently's default rule: drift where at least half of the columns are over a threshold.

    The statistic is that threshold at which the rule begins to say drift. Over 1,000 reference
    rows columns are judged by distances (Wasserstein over the reference's deviation,
    Jensen-Shannon for classes), up to 1,000 by p-values (Kolmogorov-Smirnov, chi-squared).
    """

    def __init__(self, reference: Sample, seed: int) -> None:
        self._columns = _Columns(reference.vectors)
        self.by_distance = len(reference) > EVIDENTLY_LARGE

    @property
    def default_threshold(self) -> float:
        """Its own."""
        return EVIDENTLY_DISTANCE if self.by_distance else -float(np.log10(EVIDENTLY_P))

    def columns(self, window: Sample) -> list[float]:
        """Distance or -log10 p-value of each stream."""
        if self.by_distance:
            return [self._columns.distance(place, window.vectors) for place in range(len(STREAMS))]
        found = [self._columns.surprise(place, window.vectors) for place in range(len(STREAMS))]
        found[PREDICTED] = self._columns.misfit(window.vectors[:, PREDICTED])
        return found

    def statistic(self, window: Sample) -> float:
        """The smallest of the largest half of the columns."""
        needed = int(np.ceil(EVIDENTLY_COLUMNS * len(STREAMS)))
        return sorted(self.columns(window), reverse=True)[needed - 1]


class Mmd:
    """Maximum mean discrepancy of the components, by random Fourier features (Rahimi, Recht 2007).

    A Gaussian kernel of the median distance, on components of unit deviation.
    """

    def __init__(self, reference: Sample, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._location = reference.components.mean(axis=0)
        self._scale = np.maximum(reference.components.std(axis=0), 1e-6)
        some = self._scaled(reference.components[rng.permutation(len(reference))[:300]])
        squared = ((some[:, None] - some[None]) ** 2).sum(axis=2)
        width = np.sqrt(np.median(squared[squared > 0]))
        shape = (some.shape[1], _FEATURES)
        self._directions = (rng.standard_normal(shape) / width).astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, _FEATURES).astype(np.float32)
        self._mean = self._features(reference.components)

    def statistic(self, window: Sample) -> float:
        """Distance of the mean features."""
        return float(np.linalg.norm(self._features(window.components) - self._mean))

    def _features(self, components: Components) -> NDArray[np.float32]:
        waves = np.cos(self._scaled(components) @ self._directions + self._phases)
        return np.asarray(waves.mean(axis=0))

    def _scaled(self, components: Components) -> Components:
        return (components - self._location) / self._scale


class DomainClassifier:
    """How well a classifier tells the window from the reference: AUROC on rows it did not see.

    Logistic regression on streams and components, and their squares; two folds. The reference is
    at most 500 rows, drawn once.
    """

    def __init__(self, reference: Sample, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(reference))[:_REFERENCE_ROWS]
        raw = _features_of(reference[rows])
        self._location, self._scale = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
        self._reference = self._squared(raw)

    def statistic(self, window: Sample) -> float:
        """AUROC, mean of two folds."""
        rows = np.concatenate([self._reference, self._squared(_features_of(window))])
        is_new = np.arange(len(rows)) >= len(self._reference)
        found = []
        for fold in (0, 1):
            test = np.arange(len(rows)) % 2 == fold  # every window is in random order already
            fitted = LogisticRegression(C=0.1, max_iter=50, tol=1e-2, class_weight="balanced").fit(
                rows[~test], is_new[~test]
            )
            found.append(roc_auc_score(is_new[test], fitted.decision_function(rows[test])))
        return float(np.mean(found))

    def _squared(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = (raw - self._location) / self._scale
        return np.hstack([scaled, np.minimum(scaled**2, 25) - 1])


DETECTORS: dict[str, type[KsBonferroni | EvidentlyDefault | Mmd | DomainClassifier]] = {
    "KS, Bonferroni": KsBonferroni,
    "Evidently's default rule": EvidentlyDefault,
    "MMD": Mmd,
    "domain classifier": DomainClassifier,
}


class _Columns:
    """Tests of single streams against a reference."""

    def __init__(self, reference: Vectors) -> None:
        self._reference = reference
        self._sorted = np.sort(reference, axis=0)
        self._deviation = np.maximum(reference.std(axis=0), 0.001)
        self._classes = int(reference[:, PREDICTED].max()) + 1

    def surprise(self, place: int, window: Vectors) -> float:
        """-log10 of a p-value."""
        if place == PREDICTED:
            return self._chi_squared(window[:, place])
        ordered, values = self._sorted[:, place], np.sort(window[:, place])
        points = np.concatenate([ordered, values])
        theirs = np.searchsorted(ordered, points, side="right") / len(ordered)
        its = np.searchsorted(values, points, side="right") / len(values)
        rows = len(ordered) * len(values) / (len(ordered) + len(values))
        chance = kolmogorov(np.sqrt(rows) * np.abs(theirs - its).max())
        return -float(np.log10(max(chance, 1e-300)))

    def distance(self, place: int, window: Vectors) -> float:
        """As Evidently's: Wasserstein over the reference's deviation, Jensen-Shannon of classes."""
        if place == PREDICTED:
            theirs, its = self._counts(window[:, place])
            return float(jensenshannon(theirs, its))
        distance = wasserstein_distance(self._reference[:, place], window[:, place])
        return float(distance / self._deviation[place])

    def misfit(self, window: NDArray[np.float64]) -> float:
        """-log10 p-value of chi-squared, as Evidently's: the reference counts as the truth."""
        theirs, its = self._counts(window)
        known = theirs > 0
        expected = theirs[known] * its.sum() / theirs.sum()
        value = ((its[known] - expected) ** 2 / expected).sum()
        return -float(chi2.logsf(value, max(1, known.sum() - 1)) / np.log(10))

    def _counts(self, window: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
        several = (self._reference[:, PREDICTED].astype(int), window.astype(int))
        length = max(int(its.max()) for its in several) + 1
        return tuple(np.bincount(its, minlength=length) for its in several)

    def _chi_squared(self, window: NDArray[np.float64]) -> float:
        table = np.array(self._counts(window), np.float64)
        table = table[:, table.sum(axis=0) > 0]
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
        value = ((table - expected) ** 2 / expected).sum()
        return -float(chi2.logsf(value, max(1, table.shape[1] - 1)) / np.log(10))


def _features_of(sample: Sample) -> NDArray[np.float64]:
    return np.hstack([sample.vectors[:, NUMBERS], sample.components])
