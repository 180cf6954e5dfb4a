"""Rows of memory-mapped images, copied without keeping the file in memory."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import TrainingError

# Of a mapped file up to which its pages may stay. Reading them anew costs some 4 microseconds an
# image where they are given back after every batch.
KEPT_BYTES = 32 * 2**20

_BLOCK = 64  # rows
_LARGE_BLOCK = 4_096

KeepRows = Callable[[Iterable[NDArray[np.float32]]], NDArray[np.float32]]


def copy_rows(images: Any, rows: Any) -> NDArray[Any]:
    """A copy of some rows, by a slice or an array of numbers, of an array or of `ChosenRows`.

    The pages of a large mapped file are given back at once: the system keeps them as long as
    there is room, but they would count as this process's memory, which then grew with the data.
    Those of `file_of_rows` are, however large it is.
    """
    if isinstance(images, ChosenRows):
        return copy_rows(images.array, images.rows[rows])
    copied = np.array(images[rows])
    mapping = getattr(images, "_mmap", None)  # where numpy.memmap keeps it
    large = images.nbytes > KEPT_BYTES or isinstance(images, _OwnFile)
    if mapping is not None and large:
        mapping.madvise(mmap.MADV_DONTNEED)
    return copied


def each_row(images: Any) -> Iterator[NDArray[Any]]:
    """Rows one after the other, copied in blocks."""
    for start in range(0, len(images), _BLOCK):
        yield from copy_rows(images, slice(start, start + _BLOCK))


def blocks(rows: Any) -> Iterator[NDArray[Any]]:
    """Copies of many rows at a time."""
    for start in range(0, len(rows), _LARGE_BLOCK):
        yield copy_rows(rows, slice(start, start + _LARGE_BLOCK))


class _OwnFile(np.memmap):
    """A mapped file of this process alone."""


@contextmanager
def file_of_rows(folder: Path | None = None) -> Iterator[KeepRows]:
    """Gives a function that puts parts N x D, one after the other, into a file, and maps it.

    The file is gone after the body, or with the process, and rows of it can be read until then.

    >>> with file_of_rows() as keep:
    ...     rows = keep(np.full((2, 3), part, np.float32) for part in (1, 2))
    ...     (rows.shape, copy_rows(rows, [1, 2])[:, 0].tolist())
    ((4, 3), [1.0, 2.0])
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:

        def keep(parts: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
            count = width = 0
            try:
                for part in parts:
                    file.write(np.ascontiguousarray(part, np.float32).data)
                    count, width = count + len(part), part.shape[1]
                file.flush()
            except OSError as error:
                place = folder or tempfile.gettempdir()
                raise TrainingError(
                    f"cannot keep the features of {count} images and more in {place}:"
                    f" {error.strerror or error}; make room there"
                ) from error
            return _OwnFile(file, np.float32, "r", shape=(count, width))

        yield keep


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
