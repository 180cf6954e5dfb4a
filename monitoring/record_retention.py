"""Records are kept for a time that a setting says, and no longer."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

from monitoring.record_store import remove

_FOLDER = re.compile(r"date=(\d{4}-\d{2}-\d{2})")


def remove_old_records(files: Any, root: str, *, keep_seconds: float, now: datetime) -> int:
    """Remove the record files of days that ended more than `keep_seconds` before `now` (UTC).

    `files` is an fsspec file system. Only files of records (whole, or left behind half-written) in
    folders named after a day are touched; several processes may do this at once. Gives how many
    were removed. Raises what the file system raises, except that something is gone already.
    """
    removed = 0
    for folder in _entries(files, root):
        day = _day_of(folder)
        if day is None or _end_of(day) > now - timedelta(seconds=keep_seconds):
            continue
        paths = [its for its in _entries(files, folder) if its.endswith((".parquet", ".partial"))]
        removed += remove(files, paths)
        if not _entries(files, folder):
            _remove_folder(files, folder)
    return removed


def _entries(files: Any, folder: str) -> list[str]:
    try:
        return [str(path) for path in files.ls(folder, detail=False, refresh=True)]
    except FileNotFoundError:
        return []


def _day_of(folder: str) -> date | None:
    match = _FOLDER.fullmatch(folder.rstrip("/").rpartition("/")[2])
    try:
        return None if match is None else date.fromisoformat(match[1])
    except ValueError:  # the 99th of a month
        return None


def _end_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)


def _remove_folder(files: Any, folder: str) -> None:
    with suppress(FileNotFoundError):  # another process was first, or it went with its files
        files.rmdir(folder)
