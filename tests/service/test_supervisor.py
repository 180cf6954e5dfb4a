"""As many workers as there are cores to use, and an end to them when it is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from circus.exc import ConflictError

from service import supervisor
from service.start import Start
from service.supervisor import Beginning, Ending, forget_dead_workers


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1)],
)
def test_the_quota_of_a_container_bounds_the_cores(quota, cores, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(supervisor, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    assert supervisor.usable_cores() == cores


def test_without_a_quota_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert supervisor.usable_cores() == 2


class Arbiter:
    """circus as it is while it starts workers: refuses to stop so many times."""

    def __init__(self, *workers: int, refusals: int = 0) -> None:
        self.watchers = [SimpleNamespace(processes=dict.fromkeys(workers))]
        self.loop = SimpleNamespace(stop=lambda: self.told.append("the loop"))
        self.refusals = refusals
        self.told: list[str] = []

    def stop(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConflictError("arbiter is already running arbiter_start_watchers command")
        self.told.append("the workers")


def test_nothing_is_stopped_unasked():
    arbiter = Arbiter()
    Ending(arbiter, limit_seconds=0).attempt()
    assert arbiter.told == []


def test_a_busy_supervisor_is_asked_until_it_accepts_and_then_no_more():
    arbiter = Arbiter(refusals=3)
    ending = Ending(arbiter, limit_seconds=60)
    ending.ask()
    for _ in range(3):
        ending.attempt()
    assert arbiter.told == []
    for _ in range(3):
        ending.attempt()
    assert arbiter.told == ["the workers"]


def test_a_supervisor_that_never_accepts_is_cut_off_and_its_workers_are_killed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        arbiter = Arbiter(worker.pid, refusals=1000)
        ending = Ending(arbiter, limit_seconds=-1)
        ending.ask(signal.SIGTERM, None)
        ending.attempt()
        assert worker.wait(20) == -signal.SIGKILL
    assert arbiter.told == ["the loop"]


def test_gauges_of_dead_workers_are_forgotten_and_their_counters_kept(tmp_path):
    names = ["gauge_livesum_7.db", "gauge_livesum_71.db", "gauge_liveall_7.db", "counter_7.db"]
    for name in names:
        (tmp_path / name).touch()
    forget_dead_workers(tmp_path, Arbiter(71))
    assert {file.name for file in tmp_path.iterdir()} == {"gauge_livesum_71.db", "counter_7.db"}


# How the start goes


class Asked(Ending):
    """Counts how often it was asked to end."""

    def __init__(self) -> None:
        self.times = 0

    def ask(self, *_: object) -> None:
        self.times += 1


def test_workers_that_find_nothing_to_serve_end_the_server_once(tmp_path):
    start, ending = Start(tmp_path), Asked()
    beginning = Beginning(start, ending)
    beginning.look()
    assert (beginning.refusal, ending.times) == (None, 0)
    start.refuse("there is no champion")
    for _ in range(3):
        beginning.look()
    assert (beginning.refusal, ending.times) == ("there is no champion", 1)


def test_a_server_that_has_served_is_not_ended_though_its_files_are_swept(tmp_path):
    start, ending = Start(tmp_path), Asked()
    beginning = Beginning(start, ending)
    start.succeed()
    beginning.look()
    (tmp_path / "ready").unlink()
    start.refuse("the database is locked")
    beginning.look()
    assert (beginning.refusal, ending.times) == (None, 0)


# GPUs

NOTING_WORKER = (
    "import os, pathlib, sys, time\n"
    "note = pathlib.Path(sys.argv[1], str(os.getpid()))\n"
    "note.with_suffix('.part').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    "note.with_suffix('.part').rename(note.with_suffix('.gpu'))\n"
    "time.sleep(600)\n"
)
SUPERVISOR = """
import sys
from pathlib import Path
from service import supervisor

worker, notes, folder = sys.argv[1:]
supervisor._worker_arguments = lambda stop_seconds: [worker, notes]
supervisor.run_workers(
    "127.0.0.1", 0, workers=3, devices=["0", "GPU-5e1a"], folder=Path(folder),
    stop_seconds=1,
)
"""


@pytest.mark.slow
def test_a_worker_sees_its_gpu_alone_and_so_does_the_one_that_replaces_it(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(NOTING_WORKER)
    notes, folder = tmp_path / "notes", tmp_path / "folder"
    notes.mkdir()
    folder.mkdir()

    def seen(count: int) -> dict[int, str]:
        """By process, once there are so many."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if len(found := list(notes.glob("*.gpu"))) == count:
                return {int(note.stem): note.read_text() for note in found}
            time.sleep(0.05)
        raise AssertionError(f"{count} workers were not seen: {found}")

    command = [sys.executable, "-c", SUPERVISOR, *map(str, (worker, notes, folder))]
    with subprocess.Popen(command) as server:
        try:
            first = seen(3)
            assert sorted(first.values()) == ["0", "0", "GPU-5e1a"]
            lost = next(process for process, gpu in first.items() if gpu == "GPU-5e1a")
            os.kill(lost, signal.SIGKILL)
            assert sorted(seen(4).values()) == ["0", "0", "GPU-5e1a", "GPU-5e1a"]
        finally:
            server.terminate()
            server.wait(30)
