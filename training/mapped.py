"""Rows of memory-mapped images, copied without keeping the file in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT_BYTES = 256 * 2**20  # of a mapped file up to which its pages may stay

_BLOCK = 64  # rows


def copy_rows(images: Any, rows: Any) -> NDArray[Any]:
    """A copy of some rows, by a slice or an array of numbers, of an array or of `ChosenRows`.

    The pages of a large mapped file are given back at once: the system keeps them as long as
    there is room, but they would count as this process's memory, which then grew with the data.
    """
    if isinstance(images, ChosenRows):
        return copy_rows(images.array, images.rows[rows])
    copied = np.array(images[rows])
    mapping = getattr(images, "_mmap", None)  # where numpy.memmap keeps it
    if mapping is not None and images.nbytes > KEPT_BYTES:
        mapping.madvise(mmap.MADV_DONTNEED)
    return copied


def each_row(images: Any) -> Iterator[NDArray[Any]]:
    """Rows one after the other, copied in blocks."""
    for start in range(0, len(images), _BLOCK):
        yield from copy_rows(images, slice(start, start + _BLOCK))


class ChosenRows:
    """Some rows of an array, read when they are asked for and not before.

    >>> ChosenRows(np.arange(10) * 10, np.array([2, 5, 7]))[1:].tolist()
    [50, 70]
    """

    def __init__(self, array: Any, rows: NDArray[np.int64]) -> None:
        chosen_of_chosen = isinstance(array, ChosenRows)
        self.array: Any = array.array if chosen_of_chosen else array
        self.rows: NDArray[np.int64] = array.rows[rows] if chosen_of_chosen else rows
        self.shape = (len(rows), *array.shape[1:])
        self.ndim, self.dtype = array.ndim, array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        """One row by its number, several by a slice or an array of numbers."""
        return copy_rows(self, key)
