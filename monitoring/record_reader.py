"""Reads prediction records as they appear, each file once."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet

from monitoring.records import SCHEMA

log = logging.getLogger("plumbline.monitor")

LIMIT_FILE_ROWS = 1_000_000
_DAYS_KEPT = 2  # day folders before the newest that may still get late files


class RecordReader:
    """Gives what is new below a records folder or fsspec URL.

    Files that are no records (torn, foreign, too large) are named in the log, counted in
    `refused_files` and not looked at again. Days before `first_day` are left out.
    """

    def __init__(self, url: str, columns: Sequence[str], first_day: date | None = None) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._schema = pa.schema([SCHEMA.field(name) for name in columns])
        self._first_day = "" if first_day is None else f"date={first_day}"
        self._read: dict[str, list[str]] = {}  # file names by day folder
        self.refused_files = 0

    def read_new(self, limit_rows: int = 20_000) -> pa.Table:
        """Records of files not read before, oldest first; whole files, of about `limit_rows`.

        Raises OSError where the store cannot be read now; no file is then taken for read.
        """
        tables: list[pa.Table] = []
        seen: list[tuple[str, str]] = []
        rows = 0
        for day, name in self._unread():
            if rows >= limit_rows:
                break
            table = self._read_file(day, name)
            seen.append((day, name))
            if table is not None:
                tables.append(table)
                rows += len(table)
        for day, name in seen:
            self._read.setdefault(day, []).append(name)
        if not tables:
            return self._schema.empty_table()
        return pa.concat_tables(tables).sort_by([("time", "ascending"), ("id", "ascending")])

    def to_state(self) -> dict[str, Any]:
        """The place in the stream, as JSON values."""
        return {"read": self._read, "refused_files": self.refused_files}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._read = {str(day): list(names) for day, names in state["read"].items()}
        self.refused_files = int(state["refused_files"])

    def _unread(self) -> list[tuple[str, str]]:
        self._forget_old_days()
        # A store that keeps listings would not show new files.
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return []
        oldest = max(self._first_day, min(self._read, default=""))
        folders = (path.rstrip("/") for path in self._files.ls(self._root, detail=False))
        days = sorted(name for path in folders if _is_day(name := path.rpartition("/")[2]))
        found = []
        for day in days:
            if day < oldest:
                continue
            known = set(self._read.get(day, ()))
            paths = self._files.ls(f"{self._root}/{day}", detail=False)
            names = sorted(path.rpartition("/")[2] for path in paths)
            found += [
                (day, name)
                for name in names
                if name.endswith(".parquet") and not name.startswith(".") and name not in known
            ]
        return found

    def _forget_old_days(self) -> None:
        for day in sorted(self._read)[: -_DAYS_KEPT - 1]:
            del self._read[day]

    def _read_file(self, day: str, name: str) -> pa.Table | None:
        path = f"{self._root}/{day}/{name}"
        content = self._files.cat_file(path)  # an OSError here says nothing of the file
        try:
            return self._check(pyarrow.parquet.ParquetFile(io.BytesIO(content)))
        except (pa.ArrowException, ValueError, OSError) as error:
            self.refused_files += 1
            log.error("%s is left out: it holds no prediction records: %s", path, error)
            return None

    def _check(self, file: pyarrow.parquet.ParquetFile) -> pa.Table:
        if file.metadata.num_rows > LIMIT_FILE_ROWS:
            raise ValueError(f"{file.metadata.num_rows} rows; at most {LIMIT_FILE_ROWS} are read")
        missing = set(self._schema.names) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"columns are missing: {', '.join(sorted(missing))}")
        table = file.read(columns=self._schema.names).select(self._schema.names)
        if table.schema.remove_metadata() != self._schema:
            raise ValueError("columns are of other types than those of records")
        empty = [name for name in table.column_names if table[name].null_count]
        if empty:
            raise ValueError(f"values are missing in {', '.join(empty)}")
        return table


def _is_day(name: str) -> bool:
    """Whether a folder is one of the sink's, and none of a future that would hide the present."""
    try:
        day = date.fromisoformat(name.removeprefix("date="))
    except ValueError:
        return False
    return name.startswith("date=") and day <= datetime.now(UTC).date() + timedelta(days=1)
