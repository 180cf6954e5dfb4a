"""One order of the records of several workers and replicas, each record once.

Every worker writes files of its own, each when it is due, so a file may appear after another one
whose records are later. A record is therefore held back until all files of its time can have
appeared: until `hold_seconds` have passed since its own time, by this machine's clock. What comes
later than that is given at once, after records that are later than itself. No record waits longer
than `hold_seconds` after its file was seen, whatever the clock said that wrote it.

Nothing that is held back has to be saved. The place in the stream is a set of open files and a
time: of those files all up to that time has been given, and they are read again for the rest.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from monitoring.record_checks import EARLIEST
from monitoring.record_decoding import LIMIT_UNFOLDED_BYTES
from monitoring.record_reader import FileName, FoundFiles, RecordReader, in_order

IDS_KEPT = 10_000  # of the records given last; one that comes again among them is left out
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MergedRecords:
    """What is new to a reader, held back and put into order; `id` and `time` must be columns.

    Of records with one id the first to be given counts; the others are left out, and counted in
    `duplicates`.
    """

    def __init__(self, reader: RecordReader, hold_seconds: float) -> None:
        self._reader = reader
        self._hold_seconds = hold_seconds
        self._again: list[FileName] = []  # to be read again after a restart, for what they hold
        self._held: pa.Table | None = None
        self._names: list[FileName] = []  # of the files that these are of
        self._file_of_row: NDArray[np.int64] = np.empty(0, np.int64)
        self._seen: NDArray[np.float64] = np.empty(0)  # of each file, by the steady clock
        self._ids = _LastIds()
        self.given_until = EARLIEST
        self.duplicates = 0

    @property
    def has_more(self) -> bool:
        """Whether the last call left files for the next."""
        return self._reader.has_more or self._is_full

    @property
    def refused_files(self) -> int:
        """Files that hold no records."""
        return self._reader.refused_files

    @property
    def refused_records(self) -> int:
        """Records of times that cannot be."""
        return self._reader.refused_records

    def read_new(self, limit_rows: int = 20_000, limit_bytes: int = sys.maxsize) -> pa.Table:
        """Records whose time has come, oldest first; of whole files, of about that much.

        Raises OSError where the store cannot be read now; nothing is then taken for given.
        """
        # Before the look: of a file that appears after it, all is still to be waited for.
        now, seconds = datetime.now(UTC), time.monotonic()
        self._read_again(seconds)
        if not self._is_full:
            self._hold(self._reader.read_files(limit_rows, limit_bytes), seconds)
        if self._reader.has_more:
            now = min(now, self._reader.next_begun or EARLIEST)
        until = now - timedelta(seconds=self._hold_seconds)
        self.given_until = max(self.given_until, until)
        return self._first_of_each_id(self._release(seconds))

    def to_state(self) -> dict[str, Any]:
        """The place in the stream, as JSON values; what is held back is not in it."""
        return {
            **self._reader.to_state(),
            "open": [list(name) for name in (*self._again, *self._names)],
            "given_until": self.given_until.isoformat(),
            "last_ids": self._ids.to_state(),
            "duplicates": self.duplicates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`, or from that of a reader alone."""
        self._reader.restore(state)
        self._again = [(str(day), str(name)) for day, name in state.get("open", ())]
        self.given_until = datetime.fromisoformat(state.get("given_until", EARLIEST.isoformat()))
        self._ids.restore(state.get("last_ids", ""))
        self.duplicates = int(state.get("duplicates", 0))

    @property
    def _is_full(self) -> bool:
        return self._held is not None and self._held.nbytes >= LIMIT_UNFOLDED_BYTES

    def _read_again(self, seconds: float) -> None:
        """After a restart: the rest of the files that were given in part."""
        if not self._again:
            return
        self._hold(self._reader.read_again(self._again), seconds, after=self.given_until)
        self._again = []

    def _hold(self, found: FoundFiles, seconds: float, after: datetime | None = None) -> None:
        file_of_row = np.repeat(np.arange(len(found.names)) + len(self._names), found.rows)
        records = found.records
        if after is not None:
            is_left = _microseconds(records) > _as_microseconds(after)
            records, file_of_row = records.filter(pa.array(is_left)), file_of_row[is_left]
        self._held = records if self._held is None else pa.concat_tables([self._held, records])
        self._names += found.names
        self._file_of_row = np.concatenate([self._file_of_row, file_of_row])
        self._seen = np.concatenate([self._seen, np.full(len(found.names), seconds)])

    def _release(self, seconds: float) -> pa.Table:
        """The records up to `given_until`, and all of files that were seen long enough ago."""
        if self._held is None:
            return self._reader.schema.empty_table()
        waited = seconds - self._seen >= self._hold_seconds
        is_due = _microseconds(self._held) <= _as_microseconds(self.given_until)
        is_due |= waited[self._file_of_row]
        due = self._held.filter(pa.array(is_due))
        self._held = self._held.filter(pa.array(~is_due))
        # Of the files only those that something is left of; their numbers close up.
        left, self._file_of_row = np.unique(self._file_of_row[~is_due], return_inverse=True)
        self._names = [self._names[place] for place in left]
        self._seen = self._seen[left]
        return in_order(due)

    def _first_of_each_id(self, records: pa.Table) -> pa.Table:
        is_new = self._ids.add(records["id"].to_pylist())
        if all(is_new):
            return records
        self.duplicates += is_new.count(False)
        return records.filter(pa.array(is_new, pa.bool_()))


class _LastIds:
    """The last ids that were given, eight bytes of each."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._known: set[int] = set()

    def add(self, ids: list[str]) -> list[bool]:
        """Which of these ids are none of the last ones, nor of those before them."""
        return [self._add(_short(its)) for its in ids]

    def to_state(self) -> str:
        """All of them, as text."""
        return base64.b64encode(np.array(self._order, np.uint64).tobytes()).decode()

    def restore(self, state: str) -> None:
        """Go on from `to_state`."""
        self._order = deque(np.frombuffer(base64.b64decode(state), np.uint64).tolist())
        self._known = set(self._order)

    def _add(self, its: int) -> bool:
        if its in self._known:
            return False
        self._known.add(its)
        self._order.append(its)
        if len(self._order) > IDS_KEPT:
            self._known.discard(self._order.popleft())
        return True


def _short(its: str) -> int:
    return int.from_bytes(hashlib.blake2b(its.encode(), digest_size=8).digest())


def _microseconds(records: pa.Table) -> NDArray[np.int64]:
    return np.asarray(records["time"].cast(pa.int64()).to_numpy())


def _as_microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
