"""Images with what a version answered: what the class mix is told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


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
