"""Files of records, taken in one by one and checked many at a time; what is wrong is named."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute

from monitoring.record_decoding import Decoder

log = logging.getLogger("plumbline.monitor")

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST_AHEAD = timedelta(days=1)  # clocks differ
_FILES = 256  # that are checked together
_BYTES = 32 * 2**20  # of them


class Heap:
    """Records of files in the order in which those are added.

    What holds no records is named in the log and counted in `refused_files`, and its place stays
    empty; records of a time that cannot be are counted in `refused_records` and left out.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._unchecked: list[tuple[str, pa.Table]] = []  # of small files: path and records
        self._allocated = 0  # when the first of them came
        self._tables: list[pa.Table] = []
        self._rows: list[int] = []  # of each file
        self.rows = 0  # about; before what is left out
        self.bytes = 0  # about
        self.refused_files = 0
        self.refused_records = 0

    def add(self, path: str, content: bytes) -> None:
        """Take in the bytes of a file."""
        if not self._unchecked:
            self._allocated = pa.total_allocated_bytes()
        try:
            small = self._decoder.small(content)
            if small is None:
                self._add_whole(path, self._decoder.whole(content))
                return
        except (pa.ArrowException, ValueError) as error:
            self.refuse(path, error)
            return
        self.rows += len(small)
        self.bytes += len(content)
        self._unchecked.append((path, small))
        is_large = pa.total_allocated_bytes() - self._allocated > _BYTES
        if is_large or len(self._unchecked) >= _FILES:
            self._check()

    def _add_whole(self, path: str, records: pa.Table) -> None:
        self._check()
        self.rows += len(records)
        self.bytes += records.nbytes
        self._keep([path], [records])

    def refuse(self, path: str, error: Exception) -> None:
        """Leave a file out."""
        self._check()
        self._rows.append(0)
        self.refused_files += 1
        log.error("%s is left out: it holds no prediction records: %s", path, error)

    def take(self) -> tuple[list[int], list[pa.Table]]:
        """How many records each file has, and all of them in the order of the files."""
        self._check()
        return self._rows, self._tables

    def _check(self) -> None:
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        paths, folded = (list(its) for its in zip(*unchecked, strict=True))
        try:
            records = self._decoder.check(folded)
        except (pa.ArrowException, ValueError):
            self._check_one_by_one(unchecked)
            return
        if _are_possible(records):
            self._tables.append(records)
            self._rows += map(len, folded)
            return
        starts = [0]
        for its in folded:
            starts.append(starts[-1] + len(its))
        lengths = zip(starts, map(len, folded), strict=False)
        self._keep(paths, [records.slice(start, length) for start, length in lengths])

    def _check_one_by_one(self, unchecked: list[tuple[str, pa.Table]]) -> None:
        for path, folded in unchecked:
            try:
                self._keep([path], [self._decoder.check([folded])])
            except (pa.ArrowException, ValueError) as error:
                self.refuse(path, error)

    def _keep(self, paths: list[str], tables: list[pa.Table]) -> None:
        for path, table in zip(paths, tables, strict=True):
            possible = table if _are_possible(table) else self._possible(table, path)
            self._tables.append(possible)
            self._rows.append(len(possible))

    def _possible(self, table: pa.Table, path: str) -> pa.Table:
        """Records of a time that can be."""
        times = table["time"]
        earliest, latest = (pa.scalar(time, times.type) for time in _possible_times())
        possible = table.filter(
            pyarrow.compute.and_(
                pyarrow.compute.greater_equal(times, earliest),
                pyarrow.compute.less_equal(times, latest),
            )
        )
        refused = len(table) - len(possible)
        self.refused_records += refused
        log.error(
            "%d records of %s are left out: their times are before %d or in the future",
            *(refused, path, EARLIEST.year),
        )
        return possible


def _possible_times() -> tuple[datetime, datetime]:
    return EARLIEST, datetime.now(UTC) + LATEST_AHEAD


def _are_possible(table: pa.Table) -> bool:
    if not len(table):
        return True
    found = pyarrow.compute.min_max(table["time"])
    # As numbers: a time that cannot be may be none that a datetime can say.
    low, high = (found[name].value for name in ("min", "max"))
    earliest, latest = (int(time.timestamp() * 1e6) for time in _possible_times())
    return bool(earliest <= low and high <= latest)
