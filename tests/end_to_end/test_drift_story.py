"""The whole story once, as `make up` and `make drift` tell it, with nothing stood in for."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

LEAST_LABELS = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def monitoring(home: Path, log: Path) -> Iterator[str]:
    """A monitor process; gives the address that it listens on."""
    address = f"127.0.0.1:{free_port()}"
    clean = {name: value for name, value in os.environ.items() if "PLUMBLINE" not in name}
    given = {
        "PLUMBLINE_HOME": str(home),
        "PLUMBLINE_MONITOR_ON": address,
        "PLUMBLINE_REPORT_IMAGES": "0",
        "PLUMBLINE_RETRAIN_LEAST_LABELS": str(LEAST_LABELS),
    }
    command = [sys.executable, "-m", "plumbline", "monitor"]
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**clean, **given}, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not is_ready(f"http://{address}/readyz"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        stop_retrainings(home)


def stop_retrainings(home: Path) -> None:
    """One that still runs, after a failure, is in a session of its own."""
    with contextlib.closing(sqlite3.connect(home / "state.sqlite")) as state:
        query = "select process from retrainings where outcome is null"
        for (process,) in state.execute(query).fetchall():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)  # took 222 s on two busy cores
def test_dark_images_end_in_an_alarm_a_retraining_and_its_comparison(
    trained, serving, tmp_path, run_plumbline
):
    home = trained.copy(tmp_path / "home")
    log = tmp_path / "monitor.log"
    with (
        serving(home, store_images="true", record_flush_seconds="0.5") as server,
        monitoring(home, log) as watched_on,
    ):
        told = run_plumbline(
            *("drift", "dark", "--clean", "100", "--seed", "7"),
            home=home,
            serve_on=server.url.removeprefix("http://"),
            monitor_on=watched_on,
        ).stdout
        served = httpx.get(f"{server.url}/v1/model").json()["version"]
    assert "seed 7" in told
    assert "The domain has drifted" in told
    comparison = re.search(
        r"retraining \(alarm: \w+ at .*\): (\S+) against (\S+): .* on the (\d+) newest labelled"
        r" production images, .* on the test images\. To promote it: plumbline promote \1",
        told,
    )
    assert comparison, f"{told}\n{log.read_text()}"
    challenger, champion, count = comparison.groups()
    assert champion == trained.tag == f"garments:{served}"
    assert challenger != champion
    assert int(count) >= LEAST_LABELS // 5 - 1
    assert f"100 clean images to {trained.tag}" in told
    with contextlib.closing(sqlite3.connect(home / "state.sqlite")) as state:
        (labels,) = state.execute("select count(*) from feedback").fetchone()
    assert labels >= LEAST_LABELS
