"""Where a model is worse: its answers by how bright, sharp, large ... the images are.

Rows are cut into bins at the quantiles of one property at a time, and each bin is held against all
other rows by Fisher's exact test. Who looks at twenty bins finds a bad one by chance: the p-values
are corrected by Holm's step-down method (1979), under which the chance of any false alarm stays at
the level, however the bins overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.images import properties
from training.answers import Answers
from training.mapped import each_row
from training.metrics import wilson_interval

BINS = 5
LEVEL = 0.05  # of the corrected p-value, under which a slice is called worse
LEAST_ROWS = 10  # in a bin

Array = NDArray[Any]


@dataclass(frozen=True)
class Slice:
    """Rows with a property from `low` to `high`, and how many of them were answered rightly.

    `p_value` is that of a share of right answers so much below that of the other rows, corrected
    for all slices that were looked at.
    """

    name: str
    low: float
    high: float
    count: int
    right: int
    accuracy: float
    interval: tuple[float, float]
    p_value: float
    others_accuracy: float

    @property
    def is_worse(self) -> bool:
        """Than the other rows, by more than chance."""
        return self.p_value < LEVEL


def slices_of(parts: Sequence[Answers], sizes: Sequence[Array | None]) -> list[Slice]:
    """Of the answers of some splits together; `sizes` N x 2 for each of them, or None."""
    seen = [properties(image) for part in parts for image in each_row(part.images)]
    values: dict[str, Array] = {
        name: np.array([getattr(its, name) for its in seen])
        for name in ("brightness", "contrast", "sharpness")
    }
    known = [its for its in sizes if its is not None]
    if len(known) == len(sizes):
        both = np.concatenate(known).astype(np.float64)
        values["shorter side, px"] = both.min(axis=1)
        values["longer over shorter side"] = both.max(axis=1) / both.min(axis=1)
    return find_slices(values, np.concatenate([part.right for part in parts]))


def find_slices(properties: Mapping[str, Array], right: Array, bins: int = BINS) -> list[Slice]:
    """All slices of at least LEAST_ROWS rows, worst accuracy first.

    `properties` holds N finite values each by name, `right` N booleans. A property that is the same
    for all rows has none; one with few values has fewer bins.

    >>> dark = np.arange(100) < 20
    >>> found = find_slices({"brightness": np.arange(100) / 100}, ~dark)
    >>> (found[0].low, found[0].high, found[0].accuracy, found[0].is_worse, len(found))
    (0.0, 0.19, 0.0, True, 5)
    """
    right = np.asarray(right, bool)
    if not len(right):
        return []
    members = [
        (name, values, inside)
        for name, values in properties.items()
        for inside in _bins(np.asarray(values, np.float64), bins)
        if LEAST_ROWS <= inside.sum() < len(right)
    ]
    corrected = _holm([_p_value(right, inside) for _, _, inside in members])
    found = [
        _slice(name, values[inside], right, inside, p_value)
        for (name, values, inside), p_value in zip(members, corrected, strict=True)
    ]
    return sorted(found, key=lambda its: (its.accuracy, its.p_value))


def _bins(values: Array, bins: int) -> list[NDArray[np.bool_]]:
    """Rows of each bin; values that are equal stay together."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    place = np.searchsorted(edges, values, side="left")
    return [place == number for number in np.unique(place)]


def _p_value(right: NDArray[np.bool_], inside: NDArray[np.bool_]) -> float:
    from scipy.stats import fisher_exact

    table = [[int((right & rows).sum()), int((~right & rows).sum())] for rows in (inside, ~inside)]
    return float(fisher_exact(table, alternative="less").pvalue)


def _holm(p_values: list[float]) -> list[float]:
    """Corrected p-values, in the order given.

    >>> _holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    count = len(p_values)
    corrected = [0.0] * count
    largest = 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda its: p_values[its])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _slice(
    name: str,
    values: Array,
    right: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    p_value: float,
) -> Slice:
    count, hits = int(inside.sum()), int((right & inside).sum())
    low, high = wilson_interval(hits, count)
    return Slice(
        name=name,
        low=float(values.min()),
        high=float(values.max()),
        count=count,
        right=hits,
        accuracy=hits / count,
        interval=(low, high),
        p_value=p_value,
        others_accuracy=float(right[~inside].mean()),
    )
