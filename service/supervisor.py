"""Keeps BentoML's workers running: starts them, replaces those that die, stops them in time.

These are the processes, on the same supervisor (circus), that `bentoml serve` runs. BentoML itself
is imported in the workers alone: here it would hold up the first answer by two seconds, and its own
watcher waits a day for a worker that does not stop.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from circus.arbiter import Arbiter
from circus.sockets import CircusSocket
from circus.watcher import Watcher

from model.listening import family_of

_ROOT = Path(__file__).parent.parent
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SOCKET = "door"
_BACKLOG = 2048
_WATCH_SECONDS = 1.0


def run_workers(
    host: str,
    port: int,
    *,
    workers: int,
    folder: Path,
    stop_seconds: float,
    meanwhile: Callable[[], None],
) -> None:
    """Serve with so many worker processes until SIGINT or SIGTERM.

    `folder` is this server's own: metrics of the workers and the supervisor's control sockets lie
    there. A worker has `stop_seconds` to finish what is in flight, and is killed a little later.
    `meanwhile` runs while the workers start; what it raises stops them and is raised again.
    """
    metrics = folder / "metrics"
    metrics.mkdir()
    arbiter = Arbiter(
        [
            Watcher(
                "workers",
                shlex.quote(sys.executable),
                _worker_arguments(stop_seconds),
                numprocesses=workers,
                working_dir=str(_ROOT),
                env={"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
                copy_env=True,
                use_sockets=True,
                stop_children=True,
                graceful_timeout=stop_seconds + 5,
            )
        ],
        # Sockets in a folder of our own, not open TCP ports: whoever reaches them is obeyed.
        endpoint=f"ipc://{folder}/control",
        pubsub_endpoint=f"ipc://{folder}/events",
        check_delay=_WATCH_SECONDS,
        sockets=[
            CircusSocket(_SOCKET, host=host, port=port, family=family_of(host), backlog=_BACKLOG)
        ],
    )
    failures: list[Exception] = []

    def check(_: object) -> None:
        try:
            meanwhile()
        except Exception as error:  # noqa: BLE001 (raised again below)
            failures.append(error)
            arbiter.stop()

    outcome = arbiter.start(cb=check)
    for error in (*failures, outcome.exception()):
        if error is not None:
            raise error


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
