"""Everything that one worker process holds, put together once and taken down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from starlette.applications import Starlette
from starlette.types import ASGIApp

from model.errors import EngineLostError
from model.images import Pixels
from model.store import ModelStore
from monitoring.image_store import ImageStore
from monitoring.records import RecordSink
from service import metrics
from service.admission import Admission
from service.batcher import Batcher
from service.clients import Clients
from service.errors import DropReason
from service.feedback import FeedbackDesk
from service.http import Door
from service.native import NativeApi
from service.predictor import Judgement, Predictor
from service.reporter import Reporter
from service.rollout import Rollout
from service.settings import SUPERVISOR_VARIABLE, ServiceSettings
from service.start import Start

log = logging.getLogger("plumbline.worker")

_WATCH_SECONDS = 1.0
_LOG_SECONDS = 10.0
_WARM_SECONDS = 60.0


class Worker:
    """Door, batcher, roll-out and record sink of one process, in its event loop."""

    def __init__(self, settings: ServiceSettings, native: NativeApi | None = None) -> None:
        store = ModelStore(settings)
        self._rollout = Rollout(settings, store, Start.of_this_worker())
        self._admission = Admission(settings, on_drop=self._drop)
        self._batcher: Batcher[Pixels, Judgement] = Batcher(
            _predict,
            batch_images=lambda predictor: cast(Predictor, predictor).batch_images,
            on_batch=lambda size, seconds: metrics.BATCH_IMAGES.observe(size),
            on_drop=self._drop,
        )
        self._records: RecordSink | None = None
        if settings.record:
            self._records = RecordSink(
                settings.records,
                queue_rows=settings.record_queue_rows,
                flush_seconds=settings.record_flush_seconds,
                file_rows=settings.record_file_rows,
                keep_seconds=settings.record_keep_seconds,
            )
        self._images: ImageStore | None = None
        if settings.store_images:
            self._images = ImageStore(
                settings.images,
                limit_bytes=settings.store_images_bytes,
                keep_seconds=settings.store_images_seconds,
            )
            log.info(
                "images are kept in %s: at most %d MiB, for %g days",
                settings.images,
                settings.store_images_bytes // 2**20,
                settings.store_images_seconds / 86_400,
            )
        self._feedback = FeedbackDesk(store.state, limit=settings.feedback_rows)
        self._settings = settings
        self._door = Door(
            settings,
            clients=Clients(settings),
            rollout=self._rollout,
            admission=self._admission,
            batcher=self._batcher,
            records=self._records,
            images=self._images,
            feedback=self._feedback,
            native=native,
        )
        self._reporter = Reporter(
            self._door, self._rollout, self._batcher, self._records, self._images
        )
        self.app: ASGIApp = self._door.app(lifespan=self._lifespan)
        # Where every answer is logged, all go the usual way.
        self.early_refusal = None if settings.access_log else self._door.early_refusal
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None

    def _drop(self, reason: DropReason, count: int) -> None:
        """Count what is given up; at the end it is the service that goes, not the client."""
        metrics.drop("stopping" if self._door.lifecycle.is_over else reason, count)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.start()
        await self._until_warm()
        yield
        await self.stop()

    async def _until_warm(self) -> None:
        """Requests are taken from here on: not before there is a model to answer them.

        All workers listen on one socket. One that took requests while it loads its model would
        turn them away, although another could answer, or this one in a moment.
        """
        until = asyncio.get_running_loop().time() + _WARM_SECONDS
        while not (self._rollout.has_looked or self._door.lifecycle.is_leaving):
            if asyncio.get_running_loop().time() > until:
                log.warning("no model after %g s; saying so to whoever asks", _WARM_SECONDS)
                return
            await asyncio.sleep(0.02)

    def start(self) -> None:
        """Begin to load the champion and to take batches; ready once the model is warm."""
        self._batcher.start()
        self._tasks = [
            asyncio.create_task(self._rollout.follow()),
            asyncio.create_task(self._report()),
            asyncio.create_task(self._log_traffic()),
            asyncio.create_task(_end_with_supervisor()),
        ]
        self._leave_before_stopping()

    def _leave_before_stopping(self) -> None:
        """On SIGTERM go through the `Lifecycle` first, and stop listening at its end."""
        stop = signal.getsignal(signal.SIGTERM)
        if not callable(stop):
            return
        loop = asyncio.get_running_loop()

        async def leave() -> None:
            # Who never was ready is in no load balancer.
            grace = self._settings.drain_grace_seconds if self._rollout.champion else 0.0
            limit = self._settings.stop_seconds
            await self._door.lifecycle.end(grace_seconds=grace, limit_seconds=limit)
            stop(signal.SIGTERM, None)

        def begin() -> None:
            if self._leaving is None:
                self._leaving = loop.create_task(leave())

        signal.signal(signal.SIGTERM, lambda number, frame: loop.call_soon_threadsafe(begin))

    async def stop(self) -> None:
        """Finish what is in flight and write the waiting records."""
        if self._leaving is not None:
            self._tasks.append(self._leaving)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._batcher.stop()
        self._admission.close()
        await asyncio.to_thread(self._feedback.close)
        for sink in (self._records, self._images):
            if sink is not None:
                await asyncio.to_thread(sink.close)
        self._reporter.report()  # what this worker counted, others tell

    async def _report(self) -> None:
        while True:
            self._reporter.report()
            await asyncio.sleep(_WATCH_SECONDS)

    async def _log_traffic(self) -> None:
        """One line for every ten seconds in which something was asked."""
        judged = flagged = 0
        while True:
            await asyncio.sleep(_LOG_SECONDS)
            if self._door.judged != judged:
                log.info(
                    "judged %d images, %d of them flagged",
                    self._door.judged - judged,
                    self._door.flagged - flagged,
                )
            judged, flagged = self._door.judged, self._door.flagged


async def _end_with_supervisor() -> None:
    """A supervisor that was killed cannot stop its workers, and they would hold the port.

    Ours tells its number: it may have been killed long before this process could look.
    """
    supervisor = int(os.environ.get(SUPERVISOR_VARIABLE) or os.getppid())
    while os.getppid() == supervisor:
        await asyncio.sleep(_WATCH_SECONDS)
    log.error("the supervisor is gone; stopping")
    signal.raise_signal(signal.SIGTERM)


def _predict(predictor: Hashable, images: Sequence[Pixels]) -> list[Judgement]:
    try:
        return cast(Predictor, predictor).predict(images)
    except EngineLostError as error:
        # At once: nothing here could be answered any more, and the supervisor starts another.
        log.critical("%s; this worker ends", error)
        os._exit(1)
