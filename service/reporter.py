"""What a worker tells of itself in metrics, once a second; nothing of it costs a request."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from monitoring.image_store import ImageStore
from monitoring.records import RecordSink
from service import metrics
from service.http import Door, PredictionBatcher
from service.rollout import Rollout

_MEMORY_PAGES = Path("/proc/self/statm")  # size, resident, ...
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Reporter:
    """Copies into the metrics what the parts of one worker count themselves."""

    def __init__(
        self,
        door: Door,
        rollout: Rollout,
        batcher: PredictionBatcher,
        records: RecordSink | None,
        images: ImageStore | None,
    ) -> None:
        self._door = door
        self._rollout = rollout
        self._batcher = batcher
        self._records = records
        self._images = images
        self._written = metrics.Total(metrics.RECORDS_WRITTEN)
        self._dropped = metrics.Total(metrics.RECORDS_DROPPED)
        self._not_kept = metrics.Total(metrics.IMAGES_DROPPED)
        self._cpu = metrics.Total(metrics.WORKER_CPU_SECONDS)
        self._engine: tuple[str, str] | None = None
        metrics.WORKER_START_SECONDS.set(time.time())

    def report(self) -> None:
        """Bring everything up to date."""
        champion, lifecycle = self._rollout.champion, self._door.lifecycle
        metrics.QUEUE_IMAGES.set(self._batcher.waiting)
        metrics.INSIDE_IMAGES.set(self._door.images_inside)
        metrics.WORKERS_READY.set(champion is not None and not lifecycle.is_leaving)
        self._cpu.reach(time.process_time())
        with suppress(OSError):  # not on Linux
            pages = int(_MEMORY_PAGES.read_text().split()[1])
            metrics.WORKER_MEMORY_BYTES.set(pages * _PAGE_BYTES)
        if champion is not None:
            self._tell_engine(champion.engine.name, champion.engine.precision)
        if self._records is not None:
            metrics.RECORDS_WAITING.set(self._records.waiting)
            self._written.reach(self._records.written)
            self._dropped.reach(self._records.dropped)
        if self._images is not None:
            self._not_kept.reach(self._images.dropped)

    def _tell_engine(self, name: str, precision: str) -> None:
        if self._engine == (name, precision):
            return
        if self._engine is not None:
            metrics.WORKER.labels(*self._engine).set(0)
        self._engine = name, precision
        metrics.WORKER.labels(name, precision).set(1)
