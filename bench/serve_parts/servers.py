"""Servers under measurement: each on one core, stopped by its own handle."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from service.serving import WORKER_ENVIRONMENT

SERVER_CORE, LOAD_CORE = 0, 1
INSIDE = Path(__file__).parent / "inside"  # see its sitecustomize.py
_START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running one."""

    url: str
    process: psutil.Process
    ready_seconds: float

    @property
    def family(self) -> list[psutil.Process]:
        """It and its children."""
        return [self.process, *self.process.children(recursive=True)]

    @property
    def worker(self) -> psutil.Process:
        """The process that holds the model: the one with the most memory."""
        return max(self.family, key=lambda one: one.memory_info().rss)

    def suspend(self) -> None:
        """Whoever is not measured is stopped: an idle server still wakes now and then."""
        for one in self.family:
            one.suspend()

    def resume(self) -> None:
        """Go on."""
        for one in self.family:
            one.resume()

    def cpu_seconds(self) -> float:
        """CPU time of all of it so far."""
        return sum(sum(one.cpu_times()[:2]) for one in self.family)

    def thread_seconds(self) -> dict[str, float]:
        """CPU time so far of the worker's threads, by name; its first is the event loop."""
        worker, found = self.worker, Counter[str]()
        for thread in worker.threads():
            name = "event loop"
            if thread.id != worker.pid:
                with suppress(FileNotFoundError):  # it has just ended
                    name = Path(f"/proc/{worker.pid}/task/{thread.id}/comm").read_text().strip()
            found[name.rstrip("_-0123456789")] += thread.user_time + thread.system_time
        return dict(found)


@contextmanager
def plumbline(
    home: Path,
    model: str,
    *,
    cores: Collection[int] = (SERVER_CORE,),
    look_inside: bool = False,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "plumbline"),
    **more: str,
) -> Iterator[Server]:
    """One worker of ours; more settings by their names. `look_inside` names its threads."""
    port = free_port()
    settings = {
        "PLUMBLINE_HOME": str(home),
        "PLUMBLINE_MODEL": model,
        "PLUMBLINE_WORKERS": "1",
        "PLUMBLINE_SERVE_ON": f"127.0.0.1:{port}",
        **{f"PLUMBLINE_{name.upper()}": value for name, value in more.items()},
        **(environment or {}),
    }
    if look_inside:
        settings["PYTHONPATH"] = os.pathsep.join([str(INSIDE), str(Path(__file__).parents[2])])
    with started([*command, "serve"], port, "/readyz", settings, cores=set(cores)) as server:
        yield server


@contextmanager
def started(
    command: Sequence[str | Path],
    port: int,
    ready_path: str,
    environment: dict[str, str],
    *,
    cores: set[int],
) -> Iterator[Server]:
    """Run a server until it has answered 200 on a path, and stop it in the end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, **WORKER_ENVIRONMENT, **environment},
        preexec_fn=pin(cores),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url + ready_path):
            if process.poll() is not None or time.perf_counter() - began > _START_SECONDS:
                raise SystemExit(f"{' '.join(map(str, command))}: did not become ready")
            time.sleep(0.05)
        yield Server(url, psutil.Process(process.pid), time.perf_counter() - began)
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            server = psutil.Process(process.pid)
            family = server.children(recursive=True)
            for one in (server, *family):
                one.resume()  # else it could not stop
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in psutil.wait_procs(family, timeout=5)[1]:
            one.kill()


def is_ready(url: str) -> bool:
    """Whether it says yes."""
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(cores: set[int]) -> Callable[[], None]:
    """For a child process: run on these cores alone."""
    return lambda: os.sched_setaffinity(0, cores)
