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
        "PLUMBLINE_RETRAIN_TRUSTED_CLIENTS": "this-machine",  # as `plumbline up` has it
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
        clients = state.execute("select distinct client from feedback").fetchall()
    assert labels >= LEAST_LABELS
    assert clients == [("this-machine",)]


@pytest.mark.slow
@pytest.mark.timeout(600, func_only=True)  # took 58 s on two busy cores
def test_the_labels_of_one_key_wait_until_somebody_trusts_it(
    trained, serving, tmp_path, run_plumbline
):
    """The same play by a client with a key: the labels are there, and buy nothing."""
    home = trained.copy(tmp_path / "home")
    scopes = ("--scope", "predict", "--scope", "feedback")
    key = run_plumbline("keys", "add", "--name", "shop", *scopes, home=home).stdout.strip()
    keys = str(home / "api-keys.json")
    with (
        serving(
            home, store_images="true", record_flush_seconds="0.5", api_keys_file=keys
        ) as server,
        monitoring(home, tmp_path / "monitor.log") as watched_on,
    ):
        told = run_plumbline(
            *("drift", "dark", "--clean", "100", "--seed", "7"),
            home=home,
            serve_on=server.url.removeprefix("http://"),
            monitor_on=watched_on,
            api_key=key,
        ).stdout
    assert re.search(
        r"waiting for trust: 30 of 60 images since the alarm are labelled; \d+ more wait for trust:"
        r" .* at most 30 count, and 'shop' labelled \d+; name .*RETRAIN_TRUSTED_CLIENTS",
        told,
    ), told
    by_hand = run_plumbline(
        *("retrain", "--why", "a test"), home=home, check=False, retrain_least_labels="60"
    )
    assert by_hand.returncode == 1
    assert "30 images with new labels" in by_hand.stderr
    assert "'shop' labelled" in by_hand.stderr
    with contextlib.closing(sqlite3.connect(home / "state.sqlite")) as state:
        assert state.execute("select count(*) from retrainings").fetchone() == (0,)
        assert state.execute("select distinct client from feedback").fetchall() == [("shop",)]
