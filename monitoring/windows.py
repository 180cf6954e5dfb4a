"""What changed, and since when: the last sampled images held against the calibration split.

These tests explain an alarm and never raise one: they are repeated on every new window, so that
some of them are wrong at times by design. Each says how often it would be: the chance that images
like those of calibration look this different or more (p-value), times the number of columns looked
at (Bonferroni).

- since when: where the bets of the evidence, summed from there to now, gain most, in the stream
  whose change came first (the point that CUSUM finds; Page 1954). What lies before it is left out
  below, so that a few changed images are not lost among many clean ones;
- every number of the records: Kolmogorov and Smirnov's test of two samples;
- predicted classes: chi-squared test of homogeneity, rare classes taken together;
- the principal components together: maximum mean discrepancy, against what chance does to parts of
  the calibration split itself (`discrepancy`);
- the share flagged: a binomial test against alpha.

Beside the tests: groups of images that lie far from all of calibration (`clusters`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.clusters import Groups
from monitoring.discrepancy import Discrepancy

FloatArray = NDArray[np.float64]

WINDOW_IMAGES = 1_000
LEAST_IMAGES = 10  # fewer explain nothing
SIGNIFICANCE = 0.01  # after Bonferroni
PREDICTED = "predicted_class"
COMPONENTS = "components"
FLAGGED = "flagged"
_AS_GOOD = 3.0  # of the gain of bets, natural logarithm: 20 to 1
_LEAST_EXPECTED = 5  # images of a class, under which chi-squared is no approximation


@dataclass(frozen=True)
class Images:
    """Images to be compared, in order; all of length N.

    `numbers` by name, `predicted` class indices with C for none, `components` N x P. `log_bets`
    N x K are the natural logarithms of the evidence's bets, one per stream of `Window.streams`.
    """

    numbers: Mapping[str, FloatArray]
    predicted: NDArray[np.int64]
    components: FloatArray
    flagged: NDArray[np.bool_]
    seconds: FloatArray  # Unix time
    log_bets: FloatArray
    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.predicted)

    def since(self, place: int) -> Images:
        """Those from a place on."""
        return Images(
            {name: values[place:] for name, values in self.numbers.items()},
            self.predicted[place:],
            self.components[place:],
            self.flagged[place:],
            self.seconds[place:],
            self.log_bets[place:],
            self.ids[place:],
        )


class Window:
    """The last sampled images, row by row."""

    def __init__(self, numbers: Sequence[str]) -> None:
        self._names = tuple(numbers)
        self._rows: deque[tuple[FloatArray, int, FloatArray, bool, float, str, FloatArray]] = deque(
            maxlen=WINDOW_IMAGES
        )

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        numbers: FloatArray,
        predicted: int,
        components: FloatArray,
        flagged: bool,
        seconds: float,
        prediction_id: str,
        log_bets: FloatArray,
    ) -> None:
        """One more image, its numbers in the order of their names; the oldest goes."""
        its = (numbers, predicted, components, flagged, seconds, prediction_id, log_bets)
        self._rows.append(its)

    def clear(self) -> None:
        """Begin anew."""
        self._rows.clear()

    def images(self) -> Images:
        """All of them, the oldest first."""
        numbers, predicted, components, flagged, seconds, ids, log_bets = zip(
            *self._rows, strict=True
        )
        columns = np.stack(numbers)
        return Images(
            numbers={name: columns[:, place] for place, name in enumerate(self._names)},
            predicted=np.array(predicted, np.int64),
            components=np.stack(components),
            flagged=np.array(flagged, bool),
            seconds=np.array(seconds, np.float64),
            log_bets=np.stack(log_bets),
            ids=ids,
        )


class Comparison:
    """Holds windows against one reference."""

    def __init__(
        self,
        reference: Images,
        classes: Sequence[str],
        streams: Sequence[str],
        *,
        alpha: float,
        seed: int,
        labels: Sequence[Sequence[str]] = (),
        discrepancy: Discrepancy | None = None,
    ) -> None:
        """`streams` are those of the bets, in their order; `labels` were given to the reference.

        `discrepancy` is of the reference's components; None: it is drawn now.
        """
        self._reference = reference
        self._streams = tuple(streams)
        self._classes = tuple(classes)
        self._alpha = alpha
        self._discrepancy = discrepancy or Discrepancy.fit(reference.components)
        self._groups = Groups(reference.components, labels, seed=seed) if labels else None

    def explain(self, window: Images, *, alarm: str | None = None) -> dict[str, Any]:
        """What is different in the window, as JSON values; `{"images": N}` alone for too few.

        `first` is the stream that moved first, with the time of its first image and how many
        sampled images ago that was; None where nothing moved within the window. `columns` are
        of the images since then, or of all; sorted by p-value. `groups` are those of `clusters`,
        None where the labels of the reference are not known. `alarm` is the stream that raised
        one: then it is the one that moved.
        """
        if len(window) < LEAST_IMAGES:
            return {"images": len(window)}
        first = self._first(window, alarm)
        if first is not None and first["images_ago"] >= LEAST_IMAGES:
            window = window.since(len(window) - first["images_ago"])
        columns = self._columns(window)
        looked_at = len(columns)
        for its in columns:
            its["p_value"] = min(1.0, its["p_value"] * looked_at)
            its["changed"] = its["p_value"] < SIGNIFICANCE
        columns.sort(key=lambda its: its["p_value"])
        return {
            "images": len(window),
            "reference_images": len(self._reference),
            "from": _iso(window.seconds[0]),
            "until": _iso(window.seconds[-1]),
            "columns": columns,
            "classes": self._class_shares(window),
            "first": first,
            "groups": self._groups and self._groups.of(window.components, window.ids),
            "sentence": _sentence(columns, first),
        }

    def _columns(self, window: Images) -> list[dict[str, Any]]:
        found = [
            _kolmogorov_smirnov(name, self._reference.numbers[name], values)
            for name, values in window.numbers.items()
        ]
        chi_squared = self._chi_squared(window)
        if chi_squared is not None:
            found.append(chi_squared)
        return [*found, self._components(window), self._flagged(window)]

    def _chi_squared(self, window: Images) -> dict[str, Any] | None:
        from scipy.stats import chi2_contingency

        count = len(self._classes) + 1
        table = np.stack(
            [np.bincount(its.predicted, minlength=count) for its in (self._reference, window)]
        )

        def expected_of(counts: NDArray[np.int64]) -> FloatArray:
            """Images of each class in the window, were both alike."""
            return np.asarray(counts.sum(axis=0) * len(window) / counts.sum(), np.float64)

        expected = expected_of(table)
        merged = table[:, np.argsort(expected, kind="stable")]
        while merged.shape[1] > 1 and expected_of(merged).min() < _LEAST_EXPECTED:
            # The rarest two together, until none is too rare.
            merged = np.column_stack([merged[:, :2].sum(axis=1), merged[:, 2:]])
            merged = merged[:, np.argsort(merged.sum(axis=0), kind="stable")]
        if merged.shape[1] < 2:
            return None
        p_value = float(chi2_contingency(merged, correction=False).pvalue)
        shares = merged / merged.sum(axis=1, keepdims=True)
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        return _column(PREDICTED, "chi-squared", p_value, distance)

    def _components(self, window: Images) -> dict[str, Any]:
        p_value, distance = self._discrepancy.compare(window.components)
        return _column(COMPONENTS, "maximum mean discrepancy", p_value, distance)

    def _flagged(self, window: Images) -> dict[str, Any]:
        from scipy.stats import binomtest

        flagged = int(window.flagged.sum())
        p_value = binomtest(flagged, len(window), self._alpha, alternative="greater").pvalue
        share = flagged / len(window)
        return {
            **_column(FLAGGED, "binomial", float(p_value), share - self._alpha),
            "reference": self._alpha,
            "window": share,
        }

    def _class_shares(self, window: Images) -> list[dict[str, Any]]:
        """Of predicted classes, those whose share changed most first."""
        count = len(self._classes) + 1
        shares = [
            np.bincount(its.predicted, minlength=count) / len(its)
            for its in (self._reference, window)
        ]
        order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")
        names = (*self._classes, "(none)")
        return [
            {
                "name": names[place],
                "reference": float(shares[0][place]),
                "window": float(shares[1][place]),
            }
            for place in order.tolist()
            if shares[0][place] or shares[1][place]
        ]

    def _first(self, window: Images, alarm: str | None) -> dict[str, Any] | None:
        """Where a stream changed within the window, the one whose change came first."""
        # Summed over the places where a change may begin, bets come to N in the mean where nothing
        # changed: so few streams of so many reach this by chance.
        enough = math.log(len(window) * len(self._streams) / SIGNIFICANCE)
        found = [
            (place, name)
            for name, bets in zip(self._streams, window.log_bets.T, strict=True)
            for place, gain in [change_point(bets)]
            if (gain > enough if alarm is None else name == alarm)
        ]
        if not found:
            return None
        place, name = min(found)
        if len(window) == WINDOW_IMAGES and place < LEAST_IMAGES:
            return None  # it began before the window
        return {
            "stream": name,
            "since": _iso(window.seconds[place]),
            "images_ago": len(window) - place,
        }


def change_point(log_bets: FloatArray) -> tuple[int, float]:
    """From where bets summed to the end gain most, and how much that is.

    The latest place that is within `_AS_GOOD` of it: before a change bets wander up and down.

    >>> change_point(np.array([0.5, -0.1, 0.2, -4.0, 5.0, 5.0]))
    (4, 10.0)
    """
    gains = np.cumsum(log_bets[::-1])[::-1]
    most = float(gains.max())
    return int(np.flatnonzero(gains >= most - _AS_GOOD)[-1]), most


def _kolmogorov_smirnov(name: str, reference: FloatArray, window: FloatArray) -> dict[str, Any]:
    from scipy.stats import ks_2samp

    tested = ks_2samp(reference, window, method="asymp")
    return {
        **_column(name, "Kolmogorov-Smirnov", float(tested.pvalue), float(tested.statistic)),
        "reference": float(np.median(reference)),
        "window": float(np.median(window)),
    }


def _column(name: str, test: str, p_value: float, distance: float) -> dict[str, Any]:
    """`reference` and `window` are medians, or shares, where a column has them."""
    return {
        "name": name,
        "test": test,
        "p_value": p_value,
        "distance": distance,
        "reference": None,
        "window": None,
    }


def _sentence(columns: Sequence[Mapping[str, Any]], first: Mapping[str, Any] | None) -> str:
    changed = [its["name"].replace("_", " ") for its in columns if its["changed"]]
    if not changed and first is not None:
        stream = first["stream"].replace("_", " ").capitalize()
        return (
            f"{stream} changed {first['images_ago']} sampled images ago ({first['since']}); so few"
            " do not tell what else did."
        )
    if not changed:
        return "The last images look like those of calibration."
    told = f"Different from calibration: {', '.join(changed)}."
    if first is None:
        return f"{told} It began before these images, or came by degrees."
    stream = first["stream"].replace("_", " ")
    return f"{told} First {stream}, {first['images_ago']} sampled images ago ({first['since']})."


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
