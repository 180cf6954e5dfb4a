"""Reads prediction records as they appear, each file once."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute

from monitoring.record_checks import Heap
from monitoring.record_decoding import LIMIT_FILE_BYTES, Decoder
from monitoring.record_store import RecordStore
from monitoring.records import SCHEMA

log = logging.getLogger("plumbline.monitor")

# The service names its files by the time they were begun at; one may appear this much later
# (slow stores, clocks that differ) and is still read. The names read are remembered as long.
LATENESS = timedelta(minutes=10)
_DAYS_KEPT = 2  # day folders whose names are remembered where they tell no time
_TIMED = re.compile(r"\d{12}-")
_ALL_NAMES_SECONDS = 60.0  # between looks at all names of a day in an object store

FileName = tuple[str, str]  # day folder and name


@dataclass(frozen=True)
class FoundFiles:
    """Files and their records, which lie in the order of the files."""

    names: list[FileName]
    rows: list[int]  # of each file; none of one that was left out
    records: pa.Table


class RecordReader:
    """Gives what is new below a records folder or fsspec URL.

    Files that are no records (torn, foreign, of another schema, too large, unreadable) are named in
    the log, counted in `refused_files` and not looked at again; records of a time that cannot be
    are counted in `refused_records` and left out. Days before `first_day` are left out, and so are
    files that appear more than `LATENESS` after the time in their name.
    """

    def __init__(self, url: str, columns: Sequence[str], first_day: date | None = None) -> None:
        self._store = RecordStore(url)
        self.schema = pa.schema([SCHEMA.field(name) for name in columns])
        self._decoder = Decoder(self.schema)
        self._first_day = "" if first_day is None else f"date={first_day}"
        self._read: dict[str, list[str]] = {}  # file names by day folder, from the mark on
        self._mark = ""  # day and time of file names before which all is read
        self._all_names_at = -_ALL_NAMES_SECONDS
        self.refused_files = 0
        self.refused_records = 0
        self.has_more = False  # whether the last call left files for the next
        self.next_begun: datetime | None = None  # when the first of those was begun, if it tells

    def read_new(self, limit_rows: int = 20_000, limit_bytes: int = sys.maxsize) -> pa.Table:
        """Records of files not read before, oldest first; whole files, of about that much.

        Raises OSError where the store cannot be read now; no file is then taken for read.
        """
        return in_order(self.read_files(limit_rows, limit_bytes).records)

    def read_files(self, limit_rows: int, limit_bytes: int) -> FoundFiles:
        """As `read_new`, file by file."""
        unread = self._unread()
        heap = Heap(self._decoder)
        taken = 0
        for day, name in unread:
            if heap.rows >= limit_rows or heap.bytes >= limit_bytes:
                break
            self._add(heap, day, name)
            taken += 1
        found = self._found(heap, unread[:taken])
        for day, name in unread[:taken]:
            self._read.setdefault(day, []).append(name)
        self._advance_mark(unread[:taken])
        self.has_more = taken < len(unread)
        self.next_begun = _begun(*unread[taken]) if self.has_more else None
        return found

    def read_again(self, names: Sequence[FileName]) -> FoundFiles:
        """The records of files that were read before; raises OSError as `read_new` does."""
        heap = Heap(self._decoder)
        for day, name in names:
            self._add(heap, day, name)
        return self._found(heap, names)

    def read_last(self, model: str, rows: int) -> pa.Table:
        """About the newest `rows` records of a version among those not read, oldest first.

        Files are read from the newest backwards, and none for nothing: of several workers' files of
        one moment some may be left out. "model" must be a column.
        """
        tables: list[pa.Table] = []
        missing = rows
        for file in reversed(self._unread()):
            if missing <= 0:
                break
            records = self.read_again([file]).records
            tables.append(records.filter(pyarrow.compute.equal(records["model"], model)))
            missing -= len(tables[-1])
        found = in_order(pa.concat_tables([self.schema.empty_table(), *tables]))
        return found.slice(max(0, len(found) - rows))

    def to_state(self) -> dict[str, Any]:
        """The place in the stream, as JSON values."""
        return {
            "mark": self._mark,
            "read": self._read,
            "refused_files": self.refused_files,
            "refused_records": self.refused_records,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._mark = str(state["mark"])
        self._read = {str(day): list(names) for day, names in state["read"].items()}
        self.refused_files = int(state["refused_files"])
        self.refused_records = int(state["refused_records"])

    def _unread(self) -> list[FileName]:
        self._forget_old_days()
        oldest = max(self._first_day, self._mark.partition("/")[0])
        found = []
        for day in filter(_is_day, self._store.folders()):
            if day < oldest:
                continue
            known = set(self._read.get(day, ()))
            found += sorted(
                (day, name)
                for name in self._names(day)
                if name.endswith(".parquet")
                and not name.startswith(".")
                and name not in known
                and not self._is_before_mark(day, name)
            )
        return found

    def _names(self, day: str) -> list[str]:
        """All names of a day, or those of about now where that is enough.

        Names that tell no time, or one far ahead, are seen at the next look at all of them.
        """
        now = datetime.now(UTC)
        marked, _, since = self._mark.partition("/")
        if day != f"date={now:%Y-%m-%d}" or day != marked:
            return self._store.names(day)
        if time.monotonic() - self._all_names_at < _ALL_NAMES_SECONDS:
            return self._store.names(day, since, now)
        names = self._store.names(day)
        self._all_names_at = time.monotonic()
        return names

    def _is_before_mark(self, day: str, name: str) -> bool:
        return f"{day}/{name}" < self._mark and _TIMED.match(name) is not None

    def _advance_mark(self, seen: Sequence[FileName]) -> None:
        """Forget names so old that none of their time can appear any more."""
        times = [begun for day, name in seen if (begun := _begun(day, name)) is not None]
        if not times:
            return
        mark = f"date={min(max(times), datetime.now(UTC)) - LATENESS:%Y-%m-%d/%H%M%S%f}"
        self._mark = max(self._mark, mark)
        for day, names in self._read.items():
            self._read[day] = [name for name in names if not self._is_before_mark(day, name)]

    def _forget_old_days(self) -> None:
        for day in sorted(self._read)[: -_DAYS_KEPT - 1]:
            del self._read[day]
            self._mark = max(self._mark, f"{min(self._read)}/")

    def _add(self, heap: Heap, day: str, name: str) -> None:
        path = f"{self._store.root}/{day}/{name}"
        try:
            heap.add(path, self._store.content(path, LIMIT_FILE_BYTES))
        except PermissionError as error:
            if not self._store.is_local:  # it is about who asks, and not about this file
                raise OSError(f"the records in {self._store.url}: {error}") from error
            heap.refuse(path, error)
        except (ValueError, FileNotFoundError) as error:
            heap.refuse(path, error)

    def _found(self, heap: Heap, names: Sequence[FileName]) -> FoundFiles:
        rows, tables = heap.take()
        self.refused_files += heap.refused_files
        self.refused_records += heap.refused_records
        return FoundFiles(list(names), rows, pa.concat_tables([self.schema.empty_table(), *tables]))


def in_order(records: pa.Table) -> pa.Table:
    """Oldest first."""
    return records.sort_by([("time", "ascending"), ("id", "ascending")])


def _begun(day: str, name: str) -> datetime | None:
    """When the service began a file, by its name; None for a file named otherwise."""
    if _TIMED.match(name) is None:
        return None
    try:
        time = datetime.strptime(f"{day}/{name[:12]}", "date=%Y-%m-%d/%H%M%S%f")
    except ValueError:
        return None
    return time.replace(tzinfo=UTC)


def _is_day(name: str) -> bool:
    """Whether a folder is one of the sink's, and none of a future that would hide the present."""
    try:
        day = date.fromisoformat(name.removeprefix("date="))
    except ValueError:
        return False
    return name.startswith("date=") and day <= datetime.now(UTC).date() + timedelta(days=1)
