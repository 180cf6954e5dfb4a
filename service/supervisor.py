"""Keeps BentoML's workers running: starts them, replaces those that die, stops them in time.

These are the processes, on the same supervisor (circus), that `bentoml serve` runs. BentoML itself
is imported in the workers alone: here it would hold up the first answer by two seconds, and its own
watcher waits a day for a worker that does not stop.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.sockets import CircusSocket
from circus.watcher import Watcher
from tornado.ioloop import PeriodicCallback

from model.errors import StartError
from model.listening import family_of
from service.devices import VISIBLE_DEVICES, share_out
from service.settings import SUPERVISOR_VARIABLE
from service.start import FOLDER_VARIABLE, Start

_ROOT = Path(__file__).parent.parent
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SOCKET = "door"
_BACKLOG = 2048
_WATCH_SECONDS = 1.0
_ASK_SECONDS = 0.1
_KILL_SECONDS = 5.0  # that a worker has more than the time to finish what is in flight
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_workers(
    host: str,
    port: int,
    *,
    workers: int,
    devices: Sequence[str] = (),
    folder: Path,
    stop_seconds: float,
) -> None:
    """Serve with so many worker processes until a signal says to stop.

    With `devices` each worker sees one GPU alone, and so does the one that replaces it.
    `folder` is this server's own: metrics of the workers, how their start goes and the supervisor's
    control sockets lie there. A worker has `stop_seconds` to finish what is in flight, and is
    killed a little later. Raises `StartError` where the workers find nothing to serve.
    """
    metrics = folder / "metrics"
    metrics.mkdir()
    hangup = signal.getsignal(signal.SIGHUP)
    with _held_back(_ENDING_SIGNALS):
        watchers = _watchers(workers, devices, folder, metrics, stop_seconds)
        arbiter = _arbiter(host, port, watchers, folder)
        ending = Ending(arbiter, limit_seconds=stop_seconds + 2 * _KILL_SECONDS)
        for number in _ENDING_SIGNALS:
            signal.signal(number, ending.ask)
        if hangup is signal.SIG_IGN:  # as by nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
    beginning = Beginning(Start(folder), ending)
    for task, seconds in (
        (ending.attempt, _ASK_SECONDS),
        (beginning.look, _ASK_SECONDS),
        (lambda: forget_dead_workers(metrics, arbiter), _WATCH_SECONDS),
    ):
        PeriodicCallback(task, seconds * 1000).start()
    outcome = arbiter.start()
    if beginning.refusal is not None:
        raise StartError(beginning.refusal)
    error = outcome.exception()
    if error is not None:
        raise error


class Beginning:
    """Ends a server whose workers find nothing to serve; none that has served."""

    def __init__(self, start: Start, ending: Ending) -> None:
        self._start, self._ending = start, ending
        self._is_over = False
        self.refusal: str | None = None

    def look(self) -> None:
        """See what the workers say, until the start is over; called again and again."""
        if self._is_over:
            return
        # In this order: a worker may serve between the two looks.
        self.refusal = self._start.refusal
        self._is_over = self._start.is_over or self.refusal is not None
        if self.refusal is not None:
            self._ending.ask()


class Ending:
    """Stops the supervisor once something asks for it, however busy that is at the moment.

    circus refuses to stop while it starts workers or replaces a dead one, and forgets that it was
    asked; so it is asked again until it accepts. What takes longer than `limit_seconds` in all is
    cut off: the workers are killed.
    """

    def __init__(self, arbiter: Arbiter, *, limit_seconds: float) -> None:
        self._arbiter = arbiter
        self._limit_seconds = limit_seconds
        self._overdue_at: float | None = None
        self._accepted = False

    def ask(self, *_: object) -> None:
        """Ask to stop. For threads and signal handlers too: only notes the wish."""
        if self._overdue_at is None:
            self._overdue_at = time.monotonic() + self._limit_seconds

    def attempt(self) -> None:
        """Try to do what was asked; called again and again by the supervisor's event loop."""
        if self._overdue_at is None:
            return
        if time.monotonic() > self._overdue_at:
            self._cut_off()
        elif not self._accepted:
            with suppress(ConflictError):
                self._arbiter.stop()
                self._accepted = True

    def _cut_off(self) -> None:
        for process in _workers_of(self._arbiter):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._arbiter.loop.stop()


def forget_dead_workers(metrics: Path, arbiter: Arbiter) -> None:
    """Remove what dead workers last said of themselves: it would be summed up for ever.

    Counters stay: what was counted was.
    """
    living = _workers_of(arbiter)
    for file in metrics.glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        if process not in living:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(process, str(metrics))  # type: ignore[no-untyped-call]


def _workers_of(arbiter: Arbiter) -> set[int]:
    return {process for watcher in arbiter.watchers for process in watcher.processes}


def _arbiter(host: str, port: int, watchers: list[Watcher], folder: Path) -> Arbiter:
    return Arbiter(
        watchers,
        # Sockets in a folder of our own, not open TCP ports: whoever reaches them is obeyed.
        endpoint=f"ipc://{folder}/control",
        pubsub_endpoint=f"ipc://{folder}/events",
        check_delay=_WATCH_SECONDS,
        sockets=[
            CircusSocket(_SOCKET, host=host, port=port, family=family_of(host), backlog=_BACKLOG)
        ],
    )


def _watchers(
    workers: int, devices: Sequence[str], folder: Path, metrics: Path, stop_seconds: float
) -> list[Watcher]:
    """One for all workers, or for those of each GPU: a watcher gives all of its own one world."""
    return [
        Watcher(
            "workers" if device is None else f"workers-{place}",
            shlex.quote(sys.executable),
            _worker_arguments(stop_seconds),
            numprocesses=count,
            working_dir=str(_ROOT),
            env={
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                SUPERVISOR_VARIABLE: str(os.getpid()),
                FOLDER_VARIABLE: str(folder),
                **({} if device is None else {VISIBLE_DEVICES: device}),
            },
            copy_env=True,
            use_sockets=True,
            stop_children=True,
            graceful_timeout=stop_seconds + _KILL_SECONDS,
        )
        for place, (device, count) in enumerate(share_out(workers, devices))
    ]


@contextmanager
def _held_back(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Keep signals back until the end: circus's own handlers, meanwhile in place, lose them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def usable_cores() -> int:
    """Cores that this process may use: by affinity, and by the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, max(1, math.ceil(int(quota) / int(period))))


def _worker_arguments(stop_seconds: float) -> list[str]:
    return [
        *("-m", "_bentoml_impl.worker.service", "service.app:service"),
        *("--service-name", "plumbline", "--args", "{}"),
        *("--fd", f"$(circus.sockets.{_SOCKET})", "--backlog", str(_BACKLOG)),
        *("--worker-id", "$(CIRCUS.WID)"),
        *("--timeout-graceful-shutdown", str(math.ceil(stop_seconds))),
    ]
