"""Rows of mapped files: what is copied, and what stays in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training import mapped
from training.mapped import ChosenRows, copy_rows, each_row


@pytest.fixture
def images(tmp_path: Path) -> np.memmap:
    """Two hundred rows of 100 kB, row i full of i."""
    path = tmp_path / "images"
    rows = np.repeat(np.arange(200, dtype=np.uint8), 100_000).reshape(200, 100_000)
    rows.tofile(path)
    return np.memmap(path, np.uint8, "r", shape=rows.shape)


def mapped_kilobytes() -> int:
    """Of files in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def test_rows_are_copies_by_numbers_and_by_slices(images: np.memmap) -> None:
    assert copy_rows(images, np.array([7, 3]))[:, 0].tolist() == [7, 3]
    copied = copy_rows(images, slice(5, 8))
    assert copied[:, -1].tolist() == [5, 6, 7]
    assert copied.flags.writeable


def test_chosen_rows_of_chosen_rows_read_the_file_itself(images: np.memmap) -> None:
    even = ChosenRows(images, np.arange(0, 200, 2))
    some = ChosenRows(even, np.array([1, 4, 9]))
    assert some.array is images
    assert len(some) == 3
    assert some.shape == (3, 100_000)
    assert some[2][0] == 18
    assert some[np.array([0, 1])][:, 0].tolist() == [2, 8]


def test_every_row_comes_once_in_order(images: np.memmap) -> None:
    chosen = ChosenRows(images, np.arange(199, 39, -1))
    assert [int(row[0]) for row in each_row(chosen)] == list(range(199, 39, -1))


def test_pages_of_a_large_file_do_not_stay(
    images: np.memmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mapped_kilobytes()
    for _ in each_row(images):
        pass
    kept = mapped_kilobytes() - before
    assert kept > 15_000  # a small file's pages may stay

    monkeypatch.setattr(mapped, "KEPT_BYTES", 10_000_000)
    for _ in each_row(images):
        pass
    assert mapped_kilobytes() - before < 8_000
