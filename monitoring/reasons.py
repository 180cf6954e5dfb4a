"""Why an image may have been flagged: what is unusual about it, and what it is nearest to.

Reasons are offered, not proven: the flag comes from the outlier score alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NEIGHBOURS = 10
MEASURED = ("brightness", "contrast", "sharpness")
_WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "richer in contrast"),
    "sharpness": ("blurrier", "sharper"),
}
_TAIL = 0.005  # on either side, that counts as unusual
_SAMPLE = 500  # images that tell how far neighbours usually are


@dataclass(frozen=True)
class Calibration:
    """Images that nothing is wrong with; all of length N. `components` N x P."""

    measured: Mapping[str, FloatArray]
    components: FloatArray
    labels: Sequence[Sequence[str]]


class Reasons:
    """Compares single images with those of the calibration split."""

    def __init__(self, calibration: Calibration, *, input_pixels: int, seed: int) -> None:
        """`input_pixels` is the side of the images that the network takes."""
        self._labels = calibration.labels
        self._components = calibration.components
        self._squares = (self._components**2).sum(axis=1)
        self._input_pixels = input_pixels
        self._usual = {
            name: np.quantile(values, (_TAIL, 1 - _TAIL)).tolist()
            for name, values in calibration.measured.items()
        }
        some = np.random.default_rng(seed).permutation(len(self._components))[:_SAMPLE]
        # The nearest of an image of calibration is itself.
        distances = [self._nearest(self._components[row], NEIGHBOURS + 1)[1][-1] for row in some]
        self._usual_distance = float(np.median(distances))

    def of(self, record: Mapping[str, Any]) -> list[str]:
        """In sentences without a full stop; the record has to have MEASURED, width, height and
        `components` (P).
        """
        found = [self._unusual(name, float(record[name])) for name in MEASURED]
        side = min(int(record["width"]), int(record["height"]))
        if side < self._input_pixels:
            found.append(f"smaller than the network's input: {side} px for {self._input_pixels}")
        return [*filter(None, found), self._neighbourhood(np.asarray(record["components"]))]

    def _unusual(self, name: str, value: float) -> str | None:
        low, high = self._usual[name]
        less, more = _WORDS[name]
        if low <= value <= high:
            return None
        return (
            f"{less if value < low else more} than {1 - _TAIL:.1%} of calibration images"
            f" ({name} {value:.3f}, theirs {low:.3f} to {high:.3f})"
        )

    def _neighbourhood(self, components: FloatArray) -> str:
        rows, distances = self._nearest(components, NEIGHBOURS)
        labels = Counter(label for row in rows for label in self._labels[row] or ["(none)"])
        label, count = labels.most_common(1)[0]
        times = distances[-1] / max(self._usual_distance, 1e-9)
        return (
            f"nearest to {label} ({count} of the {len(rows)} nearest calibration images),"
            f" {times:.1f} times as far as they are from each other"
        )

    def _nearest(self, components: FloatArray, count: int) -> tuple[list[int], list[float]]:
        """Rows of the nearest images and their distances, nearest first."""
        point = np.asarray(components, np.float64)
        squared = self._squares - 2 * self._components @ point + point @ point
        count = min(count, len(squared))
        rows = np.argpartition(squared, count - 1)[:count]
        rows = rows[np.argsort(squared[rows])]
        return rows.tolist(), np.sqrt(np.maximum(squared[rows], 0)).tolist()
