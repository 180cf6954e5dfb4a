"""Evidently's report of a window lies in the workspace, written by a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from monitoring.records import write_records
from monitoring.reports import ReportLauncher
from monitoring.settings import MonitoringSettings


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home, report_images=100)


@pytest.fixture
def recorded(store, settings, watched, draw):
    tag = watched()
    records = draw(tag, 150, 1, darker=0.3)
    folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
    folder.mkdir(parents=True)
    write_records(folder / "a.parquet", records)
    return tag


@pytest.mark.slow
def test_a_report_is_written_without_telemetry(store, settings, recorded):
    code = (
        "import os, socket, sys\n"
        "called = []\n"
        "socket.socket.connect = lambda self, address: called.append(address)\n"
        "from model.settings import read_settings\n"
        "from monitoring.reports import write_report\n"
        "from monitoring.settings import MonitoringSettings\n"
        "print(write_report(read_settings(MonitoringSettings), sys.argv[1], 100))\n"
        "assert called == [], called\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, recorded],
        env={**os.environ, "PLUMBLINE_HOME": str(store.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    (path,) = settings.evidently.glob("*/snapshots/*.json")
    assert path.stem == done.stdout.strip()
    found = path.read_text()
    assert json.loads(found)
    for column in ("brightness", "predicted_class", "outlier_score"):
        assert f'"column":"{column}"' in found.replace(": ", ":")


class TestLauncher:
    @pytest.fixture
    def started(self, monkeypatch):
        commands = []
        start = subprocess.Popen

        def note(command, env, **options):
            commands.append((command[-2:], env["DO_NOT_TRACK"]))
            child = start(["true"])
            child.wait()
            return child

        monkeypatch.setattr("monitoring.reports.subprocess.Popen", note)
        return commands

    def test_one_after_every_window_and_at_an_alarm(self, settings, started):
        launcher = ReportLauncher(settings)
        due = {}
        for images, alarm in (
            (40, False),  # where it began
            (139, False),
            (140, False),
            (180, True),  # too few since the last
            (190, True),
            (289, False),
            (290, False),
        ):
            before = len(started)
            launcher.consider("shapes:1", images, alarm=alarm)
            due[images] = len(started) > before
        assert [images for images, is_due in due.items() if is_due] == [140, 190, 290]
        assert started[0] == (["shapes:1", "100"], "1")

    def test_a_monitor_that_restarts_does_not_report_the_past_again(self, settings, started):
        ReportLauncher(settings).consider("shapes:1", 5_000, alarm=False)
        assert started == []

    def test_none_where_switched_off(self, settings, started):
        off = settings.model_copy(update={"report_images": 0})
        launcher = ReportLauncher(off)
        launcher.consider("shapes:1", 0, alarm=False)
        launcher.consider("shapes:1", 10_000, alarm=True)
        assert started == []

    @pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
    def test_one_that_hangs_is_stopped_and_the_next_is_written(
        self, settings, monkeypatch, ignores
    ):
        """One that can be asked to end, and one that has to be killed."""
        start = subprocess.Popen
        commands = iter([["sh", "-c", f"{ignores}while :; do sleep 0.1; done"], ["true"]])
        children = []

        def begin(command, env, **options):
            children.append(start(next(commands)))
            return children[-1]

        monkeypatch.setattr("monitoring.reports.subprocess.Popen", begin)
        monkeypatch.setattr("monitoring.reports.LIMIT_SECONDS", 0.5)
        monkeypatch.setattr("monitoring.reports.GRACE_SECONDS", 0.5)
        launcher = ReportLauncher(settings)
        launcher.consider("shapes:1", 0, alarm=False)
        launcher.consider("shapes:1", 100, alarm=False)
        assert (len(children), launcher.trouble) == (1, None)
        deadline = time.monotonic() + 30
        while len(children) < 2 and time.monotonic() < deadline:
            launcher.consider("shapes:1", 200, alarm=False)
            time.sleep(0.05)
        assert children[0].poll() == (-signal.SIGKILL if ignores else -signal.SIGTERM)
        assert "was stopped: it took over" in launcher.trouble
        children[1].wait()
        launcher.consider("shapes:1", 200, alarm=False)
        assert launcher.trouble is None

    def test_one_that_fails_is_told(self, settings, monkeypatch):
        start = subprocess.Popen
        monkeypatch.setattr(
            "monitoring.reports.subprocess.Popen", lambda command, env: start(["false"])
        )
        launcher = ReportLauncher(settings)
        launcher.consider("shapes:1", 0, alarm=False)
        launcher.consider("shapes:1", 100, alarm=False)
        launcher._process.wait()
        launcher.consider("shapes:1", 100, alarm=False)
        assert launcher.trouble == "the last report ended with code 1"
