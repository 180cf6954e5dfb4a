"""The pixels of the rows of a source: from files, from arrays, and from two sources joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.formats import read_header
from model.images import InputSpec, fit_to, prepare

Pixels = NDArray[np.uint8]

_SIZED_FILES = 20  # of which the largest side is taken


class Reader(Protocol):
    """Gives the pixels of a row; safe to call from several threads."""

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Network input, uint8 size x size x 3, cropped at `place` (of `model.images.fit_to`).

        Raises `ImageError` or OSError.
        """

    def largest_side(self) -> int:
        """Longest side in pixels, of a few rows."""

    def stored(self, row: int) -> bytes | Pixels:
        """The row as it lies there: an encoded file, or pixels H x W. Raises OSError."""


@dataclass(frozen=True)
class FileReader:
    """Rows are image files."""

    paths: list[Path]

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Decode and resize by the path that serving takes."""
        return prepare(self.paths[row].read_bytes(), spec, place=place)

    def largest_side(self) -> int:
        """By the headers of the first files."""
        headers = [read_header(path.read_bytes()) for path in self.paths[:_SIZED_FILES]]
        return max(max(header.width, header.height) for header in headers)

    def stored(self, row: int) -> bytes:
        """The file's bytes."""
        return self.paths[row].read_bytes()


@dataclass(frozen=True)
class ArrayReader:
    """Rows are images already decoded, uint8 N x H x W."""

    pixels: Pixels

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Resize alone."""
        return fit_to(self.pixels[row], spec, place)

    def largest_side(self) -> int:
        """All are of one size."""
        return int(max(self.pixels.shape[1:3]))

    def stored(self, row: int) -> Pixels:
        """The pixels."""
        its: Pixels = self.pixels[row]
        return its


@dataclass(frozen=True)
class ChosenReader:
    """Some rows of another reader."""

    all: Reader
    chosen: list[int]

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """As the other reader does."""
        return self.all.prepare(self.chosen[row], spec, place)

    def largest_side(self) -> int:
        """Of all: leaving rows out does not change the architecture."""
        return self.all.largest_side()

    def stored(self, row: int) -> bytes | Pixels:
        """As the other reader has it."""
        return self.all.stored(self.chosen[row])


@dataclass(frozen=True)
class JoinedReader:
    """The rows of one reader, then chosen rows of another, perhaps several times."""

    first: Reader
    count: int  # rows of the first
    second: Reader
    chosen: list[int]

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """As the reader does that the row belongs to."""
        if row < self.count:
            return self.first.prepare(row, spec, place)
        return self.second.prepare(self.chosen[row - self.count], spec, place)

    def largest_side(self) -> int:
        """Of the first: what is added does not change the architecture."""
        return self.first.largest_side()

    def stored(self, row: int) -> bytes | Pixels:
        """As the reader has it that the row belongs to."""
        if row < self.count:
            return self.first.stored(row)
        return self.second.stored(self.chosen[row - self.count])
