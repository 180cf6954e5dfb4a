"""Evidently reports: a window of records against the calibration split, in a workspace.

    python -m monitoring.reports VERSION IMAGES

Evidently takes ten seconds and 300 MB to import, so this runs as a process of its own, which the
monitor starts. It explains; the alarm is `evidence`'s. Look at the reports with
`plumbline monitor reports`, which keeps Evidently from phoning home, as all here does.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from model.bundle import REFERENCE, Manifest
from model.errors import MonitorError, SettingsError
from model.listening import is_loopback
from model.settings import read_settings
from model.store import ModelStore
from monitoring.record_reader import RecordReader
from monitoring.records import read_records
from monitoring.settings import MonitoringSettings
from monitoring.streams import COLUMNS, fitting_rows, streams_of

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("plumbline.monitor")

NO_TELEMETRY = {"DO_NOT_TRACK": "1"}
_LEAST_IMAGES = 50
LIMIT_SECONDS = 300.0  # a report takes some twenty
GRACE_SECONDS = 10.0  # between asking it to end and ending it
_HINT = "install it with: pip install 'plumbline[monitor]'"


class ReportLauncher:
    """Starts a report after every window of images, and after an alarm; one at a time."""

    def __init__(self, settings: MonitoringSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0  # monotonic
        self._is_stopped = False  # because it took too long
        self.trouble: str | None = None  # what became of the last report, where it is none
        self._reported: dict[str, int] = {}  # images, by tag
        self._alarmed: set[str] = set()  # tags, of whose alarm a report is still owed
        self._is_off = settings.report_images == 0
        if not self._is_off and importlib.util.find_spec("evidently") is None:
            log.warning("no Evidently reports: it is not installed; %s", _HINT)
            self._is_off = True

    def consider(self, tag: str, images: int, *, alarm: bool) -> None:
        """Start a report of version `tag`, of which `images` were recorded, where one is due."""
        if self._is_off:
            return
        if alarm:  # it comes once, whatever is running now
            self._alarmed.add(tag)
        if self._is_running():
            return
        before = self._reported.setdefault(tag, images)
        window = self._settings.report_images
        if images - before < (_LEAST_IMAGES if tag in self._alarmed else window):
            return
        self._reported[tag] = images
        self._alarmed.discard(tag)
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "monitoring.reports", tag, str(window)],
            env={
                **os.environ,
                **NO_TELEMETRY,
                "PLUMBLINE_HOME": str(self._settings.home.absolute()),
                "PLUMBLINE_RECORDS_URL": self._settings.records,
            },
        )

    def close(self) -> None:
        """Stop a report that is being written."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_running(self) -> bool:
        if self._process is None:
            return False
        code = self._process.poll()
        if code is None:
            self._stop_late(self._process)
            return True
        if self._is_stopped:
            self._is_stopped = False
        else:
            self.trouble = f"the last report ended with code {code}" if code else None
        if code:
            log.error("an Evidently report ended with code %d; see above", code)
        self._process = None
        return False

    def _stop_late(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a report that hangs to end, then end it; the next one is not kept waiting."""
        seconds = time.monotonic() - self._started_at
        if seconds <= LIMIT_SECONDS:
            return
        self._is_stopped = True
        self.trouble = f"the last report was stopped: it took over {LIMIT_SECONDS:.0f} seconds"
        if seconds <= LIMIT_SECONDS + GRACE_SECONDS:
            process.terminate()
        else:
            process.kill()


def show_reports(settings: MonitoringSettings, host: str, port: int) -> NoReturn:
    """Become Evidently's pages of the workspace, without its telemetry.

    Raises `SettingsError` for an address that other machines could reach, since the pages have no
    keys, and `MonitorError` where there is nothing to show or to show it with.
    """
    if not is_loopback(host):
        raise SettingsError(
            f"the reports cannot be shown on {host}: their pages have no keys, so they are for this"
            " machine alone; listen on 127.0.0.1 and reach it through an SSH tunnel"
        )
    if importlib.util.find_spec("evidently") is None:
        raise MonitorError(f"Evidently is not installed; {_HINT}")
    if not settings.evidently.is_dir():
        raise MonitorError(
            f"there are no reports in {settings.evidently} yet; the monitor writes one after every"
            f" {settings.report_images} images (PLUMBLINE_REPORT_IMAGES)"
        )
    where = ["--host", host, "--port", str(port), "--workspace", str(settings.evidently)]
    command = [sys.executable, "-m", "evidently.cli", "ui", *where]
    os.execve(sys.executable, command, {**os.environ, **NO_TELEMETRY})


def write_report(settings: MonitoringSettings, tag: str, images: int) -> str:
    """Report the last `images` records of a version into the workspace; gives the run's id.

    Raises `MonitorError` without records to report.
    """
    os.environ.update(NO_TELEMETRY)
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import DriftedColumnsCount, ValueDrift
    from evidently.ui.workspace import Workspace

    store = ModelStore(settings)
    bundle = store.load(store.find(tag))
    current = _frame(_last_records(settings, tag, images), bundle.manifest)
    reference = _frame(read_records(str(bundle.path(REFERENCE))), bundle.manifest)
    categories = ["predicted_class"]
    numbers = [name for name in reference.columns if name not in categories]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    # Named methods: the default rule flags most windows in which nothing changed.
    report = Report(
        [
            DriftedColumnsCount(num_method="ks", cat_method="chisquare"),
            *(ValueDrift(column=name, method="ks") for name in numbers),
            *(ValueDrift(column=name, method="chisquare") for name in categories),
        ]
    )
    snapshot = report.run(
        Dataset.from_pandas(current, data_definition=definition),
        Dataset.from_pandas(reference, data_definition=definition),
    )
    workspace = Workspace.create(str(settings.evidently))
    projects = workspace.search_project(bundle.manifest.name)
    project = projects[0] if projects else workspace.create_project(bundle.manifest.name)
    run = workspace.add_run(project.id, snapshot, include_data=False, name=tag)
    return str(run.id)


def _last_records(settings: MonitoringSettings, tag: str, images: int) -> pa.Table:
    reader = RecordReader(settings.records, ("model", *COLUMNS))
    records = reader.read_last(tag, images)
    if not len(records):
        raise MonitorError(f"there are no records of {tag} to report")
    return records


def _frame(records: pa.Table, manifest: Manifest) -> pandas.DataFrame:
    import pandas

    fitting = records.filter(pa.array(fitting_rows(records, manifest)))
    columns: dict[str, Any] = dict(streams_of(fitting, manifest))
    names = (*manifest.classes, "(none)")
    columns["predicted_class"] = [names[int(index)] for index in columns["predicted_class"]]
    return pandas.DataFrame(columns)


if __name__ == "__main__":
    write_report(read_settings(MonitoringSettings), sys.argv[1], int(sys.argv[2]))
