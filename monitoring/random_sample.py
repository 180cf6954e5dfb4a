"""A uniformly random sample of a version's recorded predictions, the same whenever it is asked for.

What is taken are the predictions of a period whose hashes are smallest. The hash is one of the
prediction's id and the version's digest alone: the choice cannot look at a score, a flag, a label
or a confidence. Asked for more, the sample is the same one and some more. An id is made by the
service, so nobody who sends an image can choose its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from model.bundle import Bundle
from model.errors import MonitorError
from monitoring.record_reader import RecordReader
from monitoring.records import SCHEMA
from monitoring.settings import MonitoringSettings
from monitoring.streams import fitting_rows

_ROWS_AT_ONCE = 20_000
_BYTES_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class Period:
    """Of predictions: from `since`, None for the beginning, until just before `until`."""

    since: datetime | None
    until: datetime

    def __post_init__(self) -> None:
        if self.since is not None and self.since >= self.until:
            raise MonitorError(
                f"the period is empty: --since {self.since:%Y-%m-%dT%H:%M:%S} does not lie before"
                f" --until {self.until:%Y-%m-%dT%H:%M:%S} (UTC)"
            )
        if self.until > (now := datetime.now(UTC)):
            raise MonitorError(
                f"--until {self.until:%Y-%m-%dT%H:%M:%S} lies in the future, so more predictions"
                f" would come into the sample; valid is up to now, {now:%Y-%m-%dT%H:%M:%S} (UTC)"
            )

    def __str__(self) -> str:
        until = f"until {self.until:%Y-%m-%d %H:%M:%S} UTC"
        return until if self.since is None else f"from {self.since:%Y-%m-%d %H:%M:%S} {until}"

    def rows(self, records: pa.Table) -> pa.Table:
        """Those that lie in it."""
        times = records["time"]
        inside = pyarrow.compute.less(times, pa.scalar(self.until, times.type))
        if self.since is not None:
            later = pyarrow.compute.greater_equal(times, pa.scalar(self.since, times.type))
            inside = pyarrow.compute.and_(inside, later)
        return records.filter(inside)


@dataclass(frozen=True)
class RandomSample:
    """Records (N) by rising hash, an order that tells nothing, and how many they are of."""

    records: pa.Table
    recorded: int

    def __len__(self) -> int:
        return len(self.records)


def random_sample(
    settings: MonitoringSettings, bundle: Bundle, images: int, period: Period
) -> RandomSample:
    """So many predictions of a version, or all where there are fewer.

    Records are read in pieces, and no more than the sample and a piece are held. Raises
    `MonitorError` where none is recorded, OSError where the records cannot be read.
    """
    # Folders are named by when a file was written, which is another clock's reading.
    first_day = None if period.since is None else period.since.date() - timedelta(days=1)
    reader = RecordReader(settings.records, SCHEMA.names, first_day)
    kept, hashes, recorded = SCHEMA.empty_table(), np.empty(0, np.uint64), 0
    while len(new := reader.read_new(_ROWS_AT_ONCE, _BYTES_AT_ONCE)) or reader.has_more:
        own = _own(period.rows(new), bundle)
        recorded += len(own)
        its = _hashes(own["id"].to_pylist(), bundle.manifest_sha256)
        kept, hashes = _smallest(
            pa.concat_tables([kept, own]), np.concatenate([hashes, its]), images
        )
    if not recorded:
        raise MonitorError(
            f"no prediction of {bundle.manifest.tag} is recorded {period} in {settings.records};"
            " a sample is taken of what the champion answered"
        )
    return RandomSample(kept, recorded)


def _own(records: pa.Table, bundle: Bundle) -> pa.Table:
    """Of this version, and no others that say so."""
    own = records.filter(pyarrow.compute.equal(records["model"], bundle.manifest.tag))
    return own.filter(pa.array(fitting_rows(own, bundle.manifest))) if len(own) else own


def _hashes(ids: Sequence[str], digest: str) -> NDArray[np.uint64]:
    key = bytes.fromhex(digest)
    found = b"".join(hashlib.blake2b(its.encode(), digest_size=8, key=key).digest() for its in ids)
    return np.frombuffer(found, np.uint64)


def _smallest(
    records: pa.Table, hashes: NDArray[np.uint64], count: int
) -> tuple[pa.Table, NDArray[np.uint64]]:
    """Each id once: of copies of a record the first."""
    found, places = np.unique(hashes, return_index=True)
    return records.take(pa.array(places[:count])).combine_chunks(), found[:count]
