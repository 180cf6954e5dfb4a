"""Reads prediction records as they appear, each file once."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from monitoring.records import SCHEMA

log = logging.getLogger("plumbline.monitor")

# What a file may hold. The service's have some thousand rows; the bounds are for what others put
# there, since a few bytes of Parquet can unfold into more than there is memory.
LIMIT_FILE_BYTES = 64 * 2**20
LIMIT_FILE_ROWS = 1_000_000
LIMIT_UNFOLDED_BYTES = 128 * 2**20
LIMIT_TEXT_BYTES = 1_024  # of one id, client or label
LIMIT_LIST_VALUES = 100_000  # logits or labels of one record
_BATCH_ROWS = 1_024
_LEAST_VALUE_BYTES = 4
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST_AHEAD = timedelta(days=1)  # clocks differ
# The service names its files by the time they were begun at; one may appear this much later
# (slow stores, clocks that differ) and is still read. The names read are remembered as long.
LATENESS = timedelta(minutes=10)
_DAYS_KEPT = 2  # day folders whose names are remembered where they tell no time
_TIMED = re.compile(r"\d{12}-")


class RecordReader:
    """Gives what is new below a records folder or fsspec URL.

    Files that are no records (torn, foreign, too large, unreadable) are named in the log, counted
    in `refused_files` and not looked at again; records of a time that cannot be are counted in
    `refused_records` and left out. Days before `first_day` are left out, and so are files that
    appear more than `LATENESS` after the time in their name.
    """

    def __init__(self, url: str, columns: Sequence[str], first_day: date | None = None) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._schema = pa.schema([SCHEMA.field(name) for name in columns])
        self._first_day = "" if first_day is None else f"date={first_day}"
        self._read: dict[str, list[str]] = {}  # file names by day folder, from the mark on
        self._mark = ""  # day and time of file names before which all is read
        self.refused_files = 0
        self.refused_records = 0
        self.has_more = False  # whether the last call left files for the next

    def read_new(self, limit_rows: int = 20_000, limit_bytes: int = sys.maxsize) -> pa.Table:
        """Records of files not read before, oldest first; whole files, of about that much.

        Raises OSError where the store cannot be read now; no file is then taken for read.
        """
        tables: list[pa.Table] = []
        seen: list[tuple[str, str]] = []
        rows = taken_bytes = 0
        self.has_more = False
        for day, name in self._unread():
            if rows >= limit_rows or taken_bytes >= limit_bytes:
                self.has_more = True
                break
            table = self._read_file(day, name)
            seen.append((day, name))
            if table is not None:
                tables.append(table)
                rows += len(table)
                taken_bytes += table.nbytes
        for day, name in seen:
            self._read.setdefault(day, []).append(name)
        self._advance_mark(seen)
        return _in_order(tables, self._schema)

    def read_last(self, model: str, rows: int) -> pa.Table:
        """About the newest `rows` records of a version among those not read, oldest first.

        Files are read from the newest backwards, and none for nothing: of several workers' files of
        one moment some may be left out. "model" must be a column.
        """
        tables: list[pa.Table] = []
        missing = rows
        for day, name in reversed(self._unread()):
            if missing <= 0:
                break
            table = self._read_file(day, name)
            if table is not None:
                tables.append(table.filter(pyarrow.compute.equal(table["model"], model)))
                missing -= len(tables[-1])
        found = _in_order(tables, self._schema)
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

    def _unread(self) -> list[tuple[str, str]]:
        self._forget_old_days()
        # A store that keeps listings would not show new files.
        self._files.invalidate_cache()
        if not self._files.exists(self._root):
            return []
        oldest = max(self._first_day, self._mark.partition("/")[0])
        folders = (path.rstrip("/") for path in self._files.ls(self._root, detail=False))
        days = sorted(name for path in folders if _is_day(name := path.rpartition("/")[2]))
        found = []
        for day in days:
            if day < oldest:
                continue
            known = set(self._read.get(day, ()))
            found += sorted(
                (day, name)
                for name in self._names(f"{self._root}/{day}")
                if name.endswith(".parquet")
                and not name.startswith(".")
                and name not in known
                and not self._is_before_mark(day, name)
            )
        return found

    def _names(self, folder: str) -> list[str]:
        if isinstance(self._files, LocalFileSystem) and os.path.isdir(folder):
            return os.listdir(folder)  # several times as fast, over a day's files at every look
        return [path.rpartition("/")[2] for path in self._files.ls(folder, detail=False)]

    def _is_before_mark(self, day: str, name: str) -> bool:
        return f"{day}/{name}" < self._mark and _TIMED.match(name) is not None

    def _advance_mark(self, seen: Sequence[tuple[str, str]]) -> None:
        """Forget names so old that none of their time can appear any more."""
        times = [time for day, name in seen if (time := _begun(day, name)) is not None]
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

    def _read_file(self, day: str, name: str) -> pa.Table | None:
        path = f"{self._root}/{day}/{name}"
        try:
            table = _decode(self._content(path), self._schema)
        except (pa.ArrowException, ValueError, FileNotFoundError, PermissionError) as error:
            self.refused_files += 1
            log.error("%s is left out: it holds no prediction records: %s", path, error)
            return None
        return self._possible(table, path)

    def _content(self, path: str) -> bytes:
        """The bytes of a file; an OSError that is not about this file alone is passed on."""
        its = self._files.info(path)
        if its["type"] != "file":  # a pipe would be waited on for ever
            raise ValueError(f"it is no file but a {its['type']}")
        if its["size"] > LIMIT_FILE_BYTES:
            raise ValueError(f"{its['size']} bytes; at most {LIMIT_FILE_BYTES} are read")
        content: bytes = self._files.cat_file(path)
        return content

    def _possible(self, table: pa.Table, path: str) -> pa.Table:
        """Records of a time that can be."""
        times = table["time"]
        earliest, latest = (
            pa.scalar(time, times.type) for time in (EARLIEST, datetime.now(UTC) + LATEST_AHEAD)
        )
        possible = table.filter(
            pyarrow.compute.and_(
                pyarrow.compute.greater_equal(times, earliest),
                pyarrow.compute.less_equal(times, latest),
            )
        )
        if refused := len(table) - len(possible):
            self.refused_records += refused
            log.error(
                "%d records of %s are left out: their times are before %d or in the future",
                *(refused, path, EARLIEST.year),
            )
        return possible


def _in_order(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    if not tables:
        return schema.empty_table()
    return pa.concat_tables(tables).sort_by([("time", "ascending"), ("id", "ascending")])


def _decode(content: bytes, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`; raises ValueError or ArrowException for what holds no records."""
    file = pa.BufferReader(content)
    plain = pyarrow.parquet.ParquetFile(file)
    _check_schema(plain.schema_arrow, schema)
    texts = _check_sizes(plain.metadata, schema)
    # Texts stay dictionaries until their lengths are known: one of a megabyte, named by every row,
    # takes a megabyte so.
    folded = pyarrow.parquet.ParquetFile(file, metadata=plain.metadata, read_dictionary=texts)
    batches, unfolded = [], 0
    for batch in folded.iter_batches(_BATCH_ROWS, columns=schema.names, use_threads=False):
        batch.validate(full=True)
        for name in schema.names:
            _check_values(name, batch.column(name))
        batches.append(batch.select(schema.names).cast(schema))
        unfolded += batches[-1].nbytes
        if unfolded > LIMIT_UNFOLDED_BYTES:
            raise ValueError(f"it unfolds to more than {LIMIT_UNFOLDED_BYTES} bytes")
    return pa.Table.from_batches(batches, schema)


def _check_schema(found: pa.Schema, schema: pa.Schema) -> None:
    missing = set(schema.names) - set(found.names)
    if missing:
        raise ValueError(f"columns are missing: {', '.join(sorted(missing))}")
    for field in schema:
        if [found.field(at) for at in found.get_all_field_indices(field.name)] != [field]:
            raise ValueError(f"column {field.name} is of another type than that of records")


def _check_sizes(metadata: pyarrow.parquet.FileMetaData, schema: pa.Schema) -> list[str]:
    """Refuse what says itself that it is too large; gives the paths of the columns of text."""
    if metadata.num_rows > LIMIT_FILE_ROWS:
        raise ValueError(f"{metadata.num_rows} rows; at most {LIMIT_FILE_ROWS} are read")
    chunks = [
        metadata.row_group(group).column(place)
        for group in range(metadata.num_row_groups)
        for place in range(metadata.num_columns)
    ]
    wanted = [its for its in chunks if its.path_in_schema.partition(".")[0] in schema.names]
    least = sum(
        max(its.total_uncompressed_size, its.num_values * _LEAST_VALUE_BYTES)
        for its in wanted
        if its.physical_type != "BOOLEAN"
    )
    if least > LIMIT_UNFOLDED_BYTES:
        raise ValueError(f"it unfolds to {least} bytes; at most {LIMIT_UNFOLDED_BYTES} are read")
    return sorted({its.path_in_schema for its in wanted if its.physical_type == "BYTE_ARRAY"})


def _check_values(name: str, column: pa.Array) -> None:
    if pa.types.is_list(column.type):
        longest = pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() or 0
        if longest > LIMIT_LIST_VALUES:
            raise ValueError(f"{longest} {name} of one record; at most {LIMIT_LIST_VALUES}")
    if column.null_count:
        raise ValueError(f"values are missing in {name}")
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        _check_values(name, column.flatten())
    if pa.types.is_dictionary(column.type):
        lengths = pyarrow.compute.binary_length(column.dictionary)
        if (longest := pyarrow.compute.max(lengths).as_py() or 0) > LIMIT_TEXT_BYTES:
            raise ValueError(f"a {name} of {longest} bytes; at most {LIMIT_TEXT_BYTES}")


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
