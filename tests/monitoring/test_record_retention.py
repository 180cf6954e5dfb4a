"""Records of days long past go; everything else stays."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from monitoring.record_retention import remove_old_records

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = 86_400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for day in ("2026-03-07", "2026-03-08", "2026-03-09", "2026-03-10"):
        folder = tmp_path / "records" / f"date={day}"
        folder.mkdir(parents=True)
        (folder / "a.parquet").write_bytes(b"a")
        (folder / ".b.partial").write_bytes(b"b")
    return tmp_path / "records"


def remove(root: Path, keep_days: float) -> int:
    files = fsspec.filesystem("file")
    return remove_old_records(files, str(root), keep_seconds=keep_days * DAY, now=NOW)


def days(root: Path) -> list[str]:
    return sorted(path.name.removeprefix("date=2026-03-") for path in root.iterdir())


@pytest.mark.parametrize(
    ("keep_days", "left"),
    [
        (1, ["09", "10"]),  # the 9th ended half a day ago, the 8th a day and a half
        (2, ["08", "09", "10"]),
        (100, ["07", "08", "09", "10"]),
    ],
)
def test_days_that_ended_longer_ago_are_removed_with_what_was_left_half_written(
    root, keep_days, left
):
    assert remove(root, keep_days) == 2 * (4 - len(left))
    assert days(root) == left
    assert remove(root, keep_days) == 0


def test_nothing_but_records_in_folders_of_days_is_touched(root):
    (root / "date=2026-03-07" / "notes.txt").write_text("mine")
    (root / "date=2026-03-99").mkdir()
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "a.parquet").write_bytes(b"a")
    (root / "date=2026-03-07" / "inside").mkdir()
    assert remove(root, 1) == 4
    left = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert {"date=2026-03-07/notes.txt", "date=2026-03-07/inside", "date=2026-03-99"} <= left
    assert "elsewhere/a.parquet" in left


def test_a_folder_that_is_not_there_yet_has_nothing_to_remove(tmp_path):
    assert remove(tmp_path / "records", 1) == 0


def test_what_another_process_removed_first_is_no_error(root):
    class Racing(type(fsspec.filesystem("file"))):
        def rm_file(self, path):
            Path(path).unlink()
            super().rm_file(path)

        def rmdir(self, path):
            Path(path).rmdir()
            super().rmdir(path)

    files = Racing()
    assert remove_old_records(files, str(root), keep_seconds=DAY, now=NOW) == 0
    assert days(root) == ["09", "10"]
