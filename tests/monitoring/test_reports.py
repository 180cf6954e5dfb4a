"""Evidently's report of a window lies in the workspace, written by a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from model.errors import MonitorError, SettingsError
from monitoring.records import write_records
from monitoring.reports import NO_TELEMETRY, ReportLauncher, show_reports
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


# What a child process does to reach others, one line each, in the file that SEEN names.
WATCHING = """
import os, sys

def note(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            write(event, address)
    elif event == "socket.getaddrinfo":
        if arguments[0] not in ("127.0.0.1", "::1", "localhost", None):
            write(event, arguments[0])
    elif event in ("subprocess.Popen", "os.system", "os.posix_spawn"):
        write(event, arguments[:2])

def write(*what):
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"{what}\\n")

sys.addaudithook(note)
"""


@pytest.fixture
def watched_child(tmp_path, monkeypatch):
    """What every Python begun from here on does to reach others, once it has: a list of lines.

    Nothing is inherited that would keep Evidently from it.
    """
    (tmp_path / "sitecustomize.py").write_text(WATCHING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # where its makers' number of a user is
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    seen = tmp_path / "seen"
    return lambda: seen.read_text().splitlines() if seen.exists() else []


@pytest.mark.slow
def test_a_report_is_written_without_telemetry(store, settings, recorded, watched_child):
    code = (
        "import sys\n"
        "from model.settings import read_settings\n"
        "from monitoring.reports import write_report\n"
        "from monitoring.settings import MonitoringSettings\n"
        "print(write_report(read_settings(MonitoringSettings), sys.argv[1], 100))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, recorded],
        env={**os.environ, "PLUMBLINE_HOME": str(store.home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert watched_child() == []
    (path,) = settings.evidently.glob("*/snapshots/*.json")
    assert path.stem == done.stdout.strip()
    found = path.read_text()
    assert json.loads(found)
    for column in ("brightness", "predicted_class", "outlier_score"):
        assert f'"column":"{column}"' in found.replace(": ", ":")


@pytest.fixture
def list_projects(settings):
    """`list_projects(command)`: starts the pages of a workspace and asks what is in it.

    That is one of the things that Evidently tells its makers.
    """
    settings.evidently.mkdir()

    def ask(command: list[str]) -> list:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {**os.environ, "PLUMBLINE_HOME": str(settings.home)}
        child = subprocess.Popen([*command, "--port", str(port)], env=environment)
        try:
            return answer(f"http://127.0.0.1:{port}/api/projects")
        finally:
            child.terminate()
            child.wait(30)

    return ask


def answer(url: str, seconds: float = 90) -> list:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return list(httpx.get(url).raise_for_status().json())
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.mark.slow
def test_reports_are_shown_without_telemetry(watched_child, list_projects):
    assert list_projects([sys.executable, "-m", "plumbline", "monitor", "reports"]) == []
    assert watched_child() == []


@pytest.mark.slow
def test_started_by_itself_evidently_would_have_been_seen_to_phone_home(
    settings, watched_child, list_projects, monkeypatch
):
    """The test above would notice; the address here is this machine's own."""
    monkeypatch.setenv("EVIDENTLY_TELEMETRY", '@json {"url": "http://127.0.0.1:9/"}')
    command = [sys.executable, "-m", "evidently.cli", "ui", "--workspace", str(settings.evidently)]
    list_projects(command)
    assert any("Popen" in one and "http://127.0.0.1:9/" in one for one in watched_child())


@pytest.mark.slow
def test_the_configuration_of_the_pages_has_no_telemetry_under_the_commands_environment(
    tmp_path,
):
    code = (
        "import os\n"
        "from evidently.ui.service.app import get_config\n"
        "def is_on(): return get_config().telemetry.get_event_logger().func.__self__.is_enabled()\n"
        "print(is_on())\n"
        "del os.environ['DO_NOT_TRACK']\n"
        "print(is_on())\n"
    )
    environment = {**os.environ, **NO_TELEMETRY, "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert done == "False\nTrue\n", "and without it, it is on"


def test_reports_are_shown_to_this_machine_alone(settings):
    settings.evidently.mkdir()
    with pytest.raises(SettingsError, match="no keys"):
        show_reports(settings, "0.0.0.0", 8000)


def test_where_there_are_no_reports_it_is_said(settings):
    with pytest.raises(MonitorError, match="there are no reports in"):
        show_reports(settings, "127.0.0.1", 8000)


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
            (190, False),  # and now enough: that of the alarm
            (289, False),
            (290, False),
        ):
            before = len(started)
            launcher.consider("shapes:1", images, alarm=alarm)
            due[images] = len(started) > before
        assert [images for images, is_due in due.items() if is_due] == [140, 190, 290]
        assert started[0] == (["shapes:1", "100"], "1")

    def test_an_alarm_while_another_report_is_written_has_its_own_afterwards(
        self, settings, monkeypatch
    ):
        start = subprocess.Popen
        children = []

        def begin(command, env):
            children.append(start(["cat"], stdin=subprocess.PIPE))
            return children[-1]

        monkeypatch.setattr("monitoring.reports.subprocess.Popen", begin)
        launcher = ReportLauncher(settings)
        launcher.consider("shapes:1", 0, alarm=False)
        launcher.consider("shapes:1", 100, alarm=False)
        launcher.consider("shapes:1", 155, alarm=True)
        assert len(children) == 1
        children[0].communicate()
        for images in (156, 190):
            launcher.consider("shapes:1", images, alarm=False)
        assert len(children) == 2
        children[1].communicate()
        launcher.consider("shapes:1", 240, alarm=False)
        assert len(children) == 2, "the alarm's is written once"

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
