"""The prediction record: its schema, a Parquet sink that never blocks, and a reader."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from monitoring.outlier import RECORD_COMPONENTS
from monitoring.record_retention import remove_old_records
from monitoring.record_store import RecordStore

log = logging.getLogger("plumbline.records")

SCHEMA_VERSION = b"1"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("model", pa.string()),  # name:version
        ("stage", pa.string()),
        ("client", pa.string()),
        ("image_sha256", pa.string()),
        ("perceptual_hash", pa.uint64()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
        ("aspect", pa.float32()),  # width / height
        ("logits", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.string())),
        ("confidence", pa.float32()),
        ("outlier_score", pa.float32()),
        ("p_value", pa.float32()),
        ("flagged", pa.bool_()),
        ("components", pa.list_(pa.float16(), RECORD_COMPONENTS)),
        ("decode_seconds", pa.float32()),
        ("queue_seconds", pa.float32()),
        ("compute_seconds", pa.float32()),
    ],
    metadata={b"plumbline_schema": SCHEMA_VERSION},
)


@dataclass(slots=True)
class Record:
    """One prediction, as it is written; field by field as in `SCHEMA`."""

    id: str
    time: datetime
    model: str
    stage: str
    client: str
    image_sha256: str
    perceptual_hash: int
    bytes: int
    width: int
    height: int
    format: str
    brightness: float
    contrast: float
    sharpness: float
    logits: NDArray[np.float32]
    labels: list[str]
    confidence: float
    outlier_score: float
    p_value: float
    flagged: bool
    components: NDArray[np.float32]
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    aspect: float = field(init=False)

    def __post_init__(self) -> None:
        self.aspect = self.width / self.height


def to_table(records: Sequence[Record]) -> pa.Table:
    """Records as an Arrow table of `SCHEMA`."""
    columns: dict[str, Any] = {
        name: [getattr(record, name) for record in records]
        for name in SCHEMA.names
        if name not in ("logits", "components")
    }
    # The two wide columns go over as flat numpy buffers, not value by value.
    lengths = [len(record.logits) for record in records]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    logits = np.concatenate([record.logits for record in records]).astype(np.float32)
    components = np.zeros((len(records), RECORD_COMPONENTS), np.float16)
    for row, record in enumerate(records):
        components[row, : len(record.components)] = record.components
    columns["logits"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(logits))
    columns["components"] = pa.FixedSizeListArray.from_arrays(
        pa.array(components.ravel()), RECORD_COMPONENTS
    )
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


SMALL_FILE_ROWS = 64
_TIDY_SECONDS = 600.0
_CLOSE_SECONDS = 15.0  # a store that hangs is not waited for any longer at the end


class RecordSink:
    """Writes records to Parquet files from its own thread.

    `offer` never waits and never raises: when the queue is full, or the files cannot be written,
    the records are dropped and counted in `dropped`. Files appear whole, under a name that ends
    in `.parquet`, in one folder per day (UTC). A process that is killed loses what waited in
    memory, at most `flush_seconds` of records. The names of its files only ever go up, also where
    the clock is set back: readers do not look for files of long ago.
    """

    def __init__(
        self,
        url: str,
        *,
        queue_rows: int = 10_000,
        flush_seconds: float = 2.0,
        file_rows: int = 5_000,
        keep_seconds: float | None = None,
    ) -> None:
        """`keep_seconds` None keeps files for ever; see `remove_old_records`."""
        self._store = RecordStore(url)
        self._queue: queue.Queue[Record] = queue.Queue(queue_rows)
        self._flush_seconds = flush_seconds
        self._file_rows = file_rows
        self._keep_seconds = keep_seconds
        self._tidied_at = -math.inf
        self._named_at = datetime.min.replace(tzinfo=UTC)
        self._stopping = threading.Event()
        self._dropped_at_the_door = 0
        self._dropped_unwritten = 0
        self._writing_rows = 0
        self.written = 0
        self._thread = threading.Thread(target=self._run, name="record-sink", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were dropped since the start; each part is counted by one thread."""
        return self._dropped_at_the_door + self._dropped_unwritten

    @property
    def waiting(self) -> int:
        """Records in the queue."""
        return self._queue.qsize()

    def offer(self, record: Record) -> None:
        """Take a record to be written, or drop and count it when the queue is full."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped_at_the_door += 1

    def close(self) -> None:
        """Write what is waiting and stop; what a store does not take in time is dropped."""
        self._stopping.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            lost = self._queue.qsize() + self._writing_rows
            self._dropped_at_the_door += lost
            log.error("%d records were dropped: %s does not answer", lost, self._store.url)

    def _run(self) -> None:
        # Wakes for a batch of records, never for one: a wake-up costs more than a record.
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(self._flush_seconds)
            while records := self._collect():
                self._writing_rows = len(records)
                self._write(records)
                self._writing_rows = 0
            if not stopping:
                self._tidy()

    def _collect(self) -> list[Record]:
        records: list[Record] = []
        while len(records) < self._file_rows:
            try:
                records.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return records

    def _write(self, records: list[Record]) -> None:
        now = self._named_at = max(datetime.now(UTC), self._named_at)
        day, name = f"date={now:%Y-%m-%d}", f"{now:%H%M%S%f}-{uuid.uuid4().hex[:12]}.parquet"
        try:
            self._store.put(day, name, lambda file: write_file(file, records))
            self.written += len(records)
        except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
            self._dropped_unwritten += len(records)
            log.error(
                "%d records were dropped: %s/%s/%s cannot be written: %s",
                *(len(records), self._store.url, day, name, error),
            )

    def _tidy(self) -> None:
        """Remove what is too old, now and then; that it fails is told, and harms nothing."""
        now = time.monotonic()
        if self._keep_seconds is None or now - self._tidied_at < _TIDY_SECONDS:
            return
        self._tidied_at = now
        try:
            removed = remove_old_records(
                self._store.files,
                self._store.root,
                keep_seconds=self._keep_seconds,
                now=datetime.now(UTC),
            )
        except Exception as error:  # noqa: BLE001 (each file system has errors of its own)
            log.error("records that are too old cannot be removed: %s", error)
            return
        if removed:
            log.info("removed %d record files that were too old", removed)


def write_file(file: Any, records: Sequence[Record]) -> None:
    """As Parquet; a few records as they are: packing them takes longer, and no less room."""
    is_small = len(records) <= SMALL_FILE_ROWS
    pyarrow.parquet.write_table(
        to_table(records),
        file,
        compression="none" if is_small else "zstd",
        use_dictionary=not is_small,
    )


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records to one Parquet file (the reference of a bundle)."""
    pyarrow.parquet.write_table(to_table(records), path, compression="zstd")


def read_records(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read every whole record file below a folder or fsspec URL, oldest first.

    Unfinished files are skipped. No folder yet reads as no records.
    """
    store = RecordStore(url)
    store.files.invalidate_cache()
    paths = sorted(path for path in store.files.find(store.root) if path.endswith(".parquet"))
    if not paths:
        empty = SCHEMA.empty_table()
        return empty.select(columns) if columns else empty
    import pyarrow.dataset  # loads pandas, which those that only write records need not wait for

    dataset = pyarrow.dataset.dataset(
        paths, schema=SCHEMA, format="parquet", filesystem=store.files
    )
    # Arrow's threads may still begin when a short command ends, and abort it (apache/arrow 34314).
    return dataset.to_table(columns=columns, use_threads=False)
