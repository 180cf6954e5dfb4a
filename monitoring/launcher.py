"""When an alarm starts a retraining, and what became of the last ones."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from model.state import retrainings
from model.store import ModelStore
from monitoring.retrain import Comparison, close_dead, has_row, last_retraining, new_labels
from monitoring.settings import MonitoringSettings
from monitoring.watch import Alarm, Watch

log = logging.getLogger("plumbline.monitor")

_LOOK_SECONDS = 5.0  # between two counts of labels, which read all records
_SHOWN = 5
_AFTER_FAILURE_SECONDS = 300.0


class Launcher:
    """Starts the training command once for an alarm, when there are labels to learn from.

    The command runs in a session of its own: a monitor that is restarted leaves it alone.
    """

    def __init__(self, settings: MonitoringSettings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._looked = -_LOOK_SECONDS
        self._children: list[subprocess.Popen[bytes]] = []
        self._told = ""
        self._not_before = 0.0
        self.waiting_for: str | None = None

    def consider(self, watch: Watch | None) -> None:
        """Start a retraining where one is due; `waiting_for` says why none is started yet."""
        self._note_ended()
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for number in close_dead(self._store.state):
            log.error("retraining %d was killed; the champion is untouched", number)
        self.waiting_for = None
        if watch is None or watch.drift is None or not self._settings.retrain_on_alarm:
            return
        self.waiting_for = self._obstacle(watch, watch.drift)
        if self.waiting_for is None:
            self._start(_why(watch.drift))
        elif self.waiting_for and self.waiting_for != self._told:
            log.info("retraining: %s", self.waiting_for)
        self._told = self.waiting_for or ""

    def _note_ended(self) -> None:
        for child in self._children:
            if child.poll():
                # It may have failed before its row was written, and would fail again.
                self._not_before = time.monotonic() + _AFTER_FAILURE_SECONDS
                log.error("a retraining ended with code %d; see monitor/retrain.log", child.poll())
        self._children = [child for child in self._children if child.poll() is None]

    def recent(self, model: str) -> list[dict[str, str]]:
        """The last retrainings of a model name, newest first, in words."""
        query = select(retrainings).where(retrainings.c.model == model)
        with self._store.state.connect() as connection:
            rows = connection.execute(query.order_by(retrainings.c.id.desc()).limit(_SHOWN)).all()
        return [
            {
                "started_at": f"{row.started_at:%Y-%m-%d %H:%M:%S}",
                "why": row.why,
                "outcome": row.outcome or "running",
                "words": in_words(row),
            }
            for row in rows
        ]

    def _obstacle(self, watch: Watch, alarm: Alarm) -> str | None:
        """What keeps this alarm from starting a retraining; empty when it has started one."""
        last = last_retraining(self._store.state, watch.manifest.name)
        if self._children or (last is not None and last.outcome is None):
            return ""
        if has_row(self._store.state, watch.manifest.name, _why(alarm)):
            return ""
        if time.monotonic() < self._not_before:
            return "the last one failed; trying again later"
        if last is not None:
            cooldown = timedelta(seconds=self._settings.retrain_cooldown_seconds)
            until = last.started_at.replace(tzinfo=UTC) + cooldown
            if datetime.now(UTC) < until:
                return f"cooling down until {until:%H:%M:%S} UTC"
        labels = new_labels(self._settings, self._store, watch.manifest, recent_alone=True)
        count = len(labels.recent)
        least = self._settings.retrain_least_labels
        if count < least:
            return f"waiting for labels: {count} of {least} images since the alarm are labelled"
        return None

    def _start(self, why: str) -> None:
        home = self._settings.home.absolute()
        path = home / "monitor" / "retrain.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("starting a retraining (%s); its log is %s", why, path)
        with path.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "plumbline", "retrain", "--why", why],
                env={**os.environ, "PLUMBLINE_HOME": str(home)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)


def in_words(row: Row[Any]) -> str:
    """What became of a retraining."""
    detail = json.loads(row.detail) if row.detail else {}
    match row.outcome:
        case None:
            return "running"
        case "challenger":
            return Comparison(**detail).in_words()
        case _:
            return f"failed: {detail.get('error', 'no reason is known')}; the champion is untouched"


def _why(alarm: Alarm) -> str:
    return f"alarm: {alarm.stream} at {alarm.time}"
