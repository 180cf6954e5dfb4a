"""The monitor process: polls the records, answers `/api/status`, `/metrics` and one page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from model.errors import SettingsError
from model.listening import check_address, is_loopback
from model.logs import configure_logging
from model.store import ModelStore
from monitoring import metrics
from monitoring.chart import evidence_chart
from monitoring.feedback_looks import FeedbackLooks
from monitoring.image_store import find_image
from monitoring.launcher import Launcher
from monitoring.monitor import Monitor
from monitoring.reports import ReportLauncher
from monitoring.settings import MonitoringSettings
from monitoring.state_file import only_one
from monitoring.watch import Watch

log = logging.getLogger("plumbline.monitor")

_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

_templates = Environment(
    loader=PackageLoader("monitoring"), autoescape=True, undefined=StrictUndefined
)


def run_monitor(settings: MonitoringSettings) -> None:
    """Watch the champion until SIGINT or SIGTERM.

    Raises `SettingsError` for an address that cannot be listened on, or that other machines could
    reach: the page has no keys. Raises `MonitorError` for a damaged state, or where another monitor
    of this home is running.
    """
    host, port = settings.monitor_address
    if not is_loopback(host):
        raise SettingsError(
            f"the monitor cannot listen on {host}: its page has no keys, so it is for this machine"
            " alone; listen on 127.0.0.1 and reach it through an SSH tunnel or your own proxy"
        )
    check_address(host, port, "PLUMBLINE_MONITOR_ON")
    configure_logging(settings.log_format)
    with only_one(settings.home.absolute() / "monitor"):
        store = ModelStore(settings)
        process = MonitorProcess(
            settings, Monitor(settings, store), Launcher(settings, store), ReportLauncher(settings)
        )
        log.info("the monitor's page: http://%s:%d", host, port)
        uvicorn.run(
            process.app(),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )


@dataclass(frozen=True)
class Snapshot:
    """What the answers are made from; replaced as a whole after every poll."""

    status: dict[str, Any]
    records: dict[str, int] = field(default_factory=dict)
    refused_files: int = 0
    streams: tuple[str, ...] = ()
    history: tuple[Any, ...] = ()
    flagged: tuple[dict[str, Any], ...] = ()
    flagged_of: int = 0
    explained: dict[str, Any] | None = None
    now: dict[str, Any] = field(default_factory=dict)
    retrainings: tuple[dict[str, str], ...] = ()


class MonitorProcess:
    """The monitor with its loop and its HTTP interface."""

    def __init__(
        self,
        settings: MonitoringSettings,
        monitor: Monitor,
        launcher: Launcher,
        reports: ReportLauncher,
    ) -> None:
        self._settings = settings
        self._monitor = monitor
        self._launcher = launcher
        self._reports = reports
        self._retrainings: tuple[dict[str, str], ...] = ()
        self._now: dict[str, Any] = {}
        self._class_mix: dict[str, Any] | None = None
        self._feedback = FeedbackLooks(settings, monitor.state)
        self._side_jobs: dict[str, str | None] = dict.fromkeys(metrics.SIDE_JOBS)
        self._snapshot = self._take_snapshot()
        self._is_starting = True
        self._failure: str | None = "the records have not been looked at yet"

    def app(self) -> Starlette:
        """The ASGI application; polls as long as it runs."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/api/status", self.status),
                Route("/api/windows", self.windows),
                Route("/metrics", self.metrics),
                Route("/images/{prediction_id}", self.image),
                Route("/livez", self.alive),
                Route("/readyz", self.ready),
            ],
            # A page of another site must not read this one through DNS rebinding.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK_NAMES)],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        polling = asyncio.create_task(self._poll())
        yield
        polling.cancel()
        with suppress(asyncio.CancelledError):
            await polling
        self._reports.close()

    async def _poll(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._poll_once)
            except Exception as error:
                failure = _first_line(error)
                if failure != self._failure:
                    log.exception("looking for records failed; trying again")
                self._failure, self._is_starting = failure, False
            await asyncio.sleep(self._settings.monitor_seconds)

    def _poll_once(self) -> None:
        """Look at the records; what follows from them may fail without touching what was seen."""
        alarms = self._monitor.poll()
        self._failure, self._is_starting = None, False  # whatever becomes of what follows
        watch = self._monitor.watch
        if watch is not None:
            # An alarm is on the page before anything is made of it.
            self._snapshot = self._take_snapshot()
            self._do_side_jobs(watch, alarm=bool(alarms))
        self._snapshot = self._take_snapshot()

    def _do_side_jobs(self, watch: Watch, *, alarm: bool) -> None:
        with self._side_job("reports"):
            self._reports.consider(watch.manifest.tag, watch.images_served, alarm=alarm)
        if self._side_jobs["reports"] is None:
            self._side_jobs["reports"] = self._reports.trouble
        with self._side_job("retraining"):
            self._launcher.consider(watch)
            self._retrainings = tuple(self._launcher.recent(watch.manifest.name))
        self._now = {}
        with self._side_job("windows"):
            self._now = watch.explain()
        self._class_mix = None
        with self._side_job("class mix"):
            self._class_mix = watch.class_mix_change()
        with self._side_job("feedback"):
            self._feedback.consider(watch.manifest)

    @contextmanager
    def _side_job(self, name: str) -> Iterator[None]:
        """Tell what went wrong in a job beside the watching, once, and go on."""
        try:
            yield
            self._side_jobs[name] = None
        except Exception as error:
            failure = _first_line(error)
            if failure != self._side_jobs[name]:
                log.exception("%s failed; trying again", name)
            self._side_jobs[name] = failure

    def _take_snapshot(self) -> Snapshot:
        watch = self._monitor.watch
        status = {
            **self._monitor.status(),
            "side_jobs": dict(self._side_jobs),
            "prior_shift": None if watch is None else self._class_mix,
            "accuracy_from_feedback": None if watch is None else self._feedback.of(watch.manifest),
        }
        if watch is None:
            return Snapshot(status, dict(self._monitor.records_total), self._monitor.refused_files)
        return Snapshot(
            status={
                **status,
                "retrainings": list(self._retrainings),
                "retraining_waits": self._launcher.waiting_for,
            },
            records=dict(self._monitor.records_total),
            refused_files=self._monitor.refused_files,
            streams=watch.evidence.streams,
            history=tuple(watch.history),
            flagged=tuple(reversed(watch.last.flagged)),
            flagged_of=len(watch.last.flags),
            explained=watch.explained,
            now=self._now,
            retrainings=self._retrainings,
        )

    def _status(self) -> dict[str, Any]:
        """The last status; while the records cannot be looked at, it promises nothing."""
        status = self._snapshot.status
        if self._failure is None or status["state"] == "drift":
            return {**status, "failure": self._failure}
        return {
            **status,
            "failure": self._failure,
            "state": "waiting" if self._is_starting else "cannot promise",
            "sentence": f"No promise is possible: {self._failure}.",
        }

    async def page(self, request: Request) -> Response:
        """GET /: the page."""
        snapshot = self._snapshot
        line = snapshot.status["alarm_line"]
        folder = self._settings.images
        html = _templates.get_template("page.html").render(
            status=self._status(),
            chart="" if line is None else evidence_chart(snapshot.streams, snapshot.history, line),
            flagged=[{**its, "stored": _is_stored(folder, its["id"])} for its in snapshot.flagged],
            flagged_of=snapshot.flagged_of,
            is_stored=partial(_is_stored, folder),
            explained=snapshot.explained,
            now=snapshot.now,
            retrainings=snapshot.retrainings,
            waiting_for=snapshot.status.get("retraining_waits"),
        )
        return HTMLResponse(html, headers=_HEADERS)

    async def status(self, request: Request) -> Response:
        """GET /api/status."""
        return JSONResponse(self._status(), headers={"Cache-Control": "no-store"})

    async def windows(self, request: Request) -> Response:
        """GET /api/windows: what had changed at the alarm, and what is different now."""
        its = self._snapshot
        content = {"at_alarm": its.explained, "now": its.now or None}
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        its = self._snapshot
        text = metrics.exposition(self._status(), its.records, its.refused_files)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def image(self, request: Request) -> Response:
        """GET /images/ID: a stored image."""
        path = find_image(self._settings.images, request.path_params["prediction_id"])
        if path is None:
            return JSONResponse({"error": {"code": "not_found", "message": "not kept"}}, 404)
        return FileResponse(path, headers=_HEADERS)

    async def alive(self, request: Request) -> Response:
        """GET /livez: the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: 503 while records or the state cannot be read."""
        if self._failure is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"error": {"code": "unavailable", "message": self._failure}}, 503)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_stored(folder: Path, prediction_id: str) -> bool:
    return find_image(folder, prediction_id) is not None
