"""When an alarm starts a retraining, and what became of the last ones."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.exc import SQLAlchemyError

from model.errors import PlumblineError
from model.state import retrainings
from model.store import ModelStore
from monitoring.alarm import Alarm
from monitoring.label_count import Counted
from monitoring.labels import BEGINNING, LabelCounter, forget_unjoined
from monitoring.prior_shift import LEAST_IMAGES
from monitoring.retrain import Comparison, learned_until
from monitoring.retraining_images import remove_unneeded
from monitoring.retraining_lock import BY_ALARM, close_dead, has_row, last_retraining
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch

log = logging.getLogger("plumbline.monitor")

_LOOK_SECONDS = 5.0  # between two counts of labels
_HOUSEKEEPING_SECONDS = 3600.0
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
        self._counter: LabelCounter | None = None
        self._counts: tuple[str, datetime] | None = None  # what for: alarm, and learned until when
        self._housekeeping = _Housekeeping(settings, store)
        self.waiting_for: str | None = None

    def consider(self, watch: Watch | None) -> None:
        """Start a retraining where one is due; `waiting_for` says why none is started yet."""
        self._note_ended()
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._housekeeping.consider()
        for number in close_dead(self._store.state):
            log.error("retraining %d was killed; the champion is untouched", number)
        self.waiting_for = None
        if watch is None or watch.drift is None or not self._settings.retrain_on_alarm:
            return
        self.waiting_for = self._obstacle(watch, watch.drift)
        if self.waiting_for is None:
            self._start(_why(watch.drift))
            self._told = ""
            return
        kind = self.waiting_for.partition(":")[0]  # what comes after it may change all the time
        if kind and kind != self._told:
            log.info("retraining: %s", self.waiting_for)
        self._told = kind

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
            until = last.started_at + cooldown
            if datetime.now(UTC) < until:
                return f"cooling down until {until:%H:%M:%S} UTC"
        if watch.class_mix_has_too_few:
            return (
                f"waiting for images: {watch.class_mix_images} of {LEAST_IMAGES} have come since"
                " the start, that tell whether the class mix alone explains the alarm"
            )
        if watch.class_mix_change()["recognised"]:
            return (
                "not needed: a change of the class mix alone explains the alarm; adjust with"
                " plumbline monitor priors, or train anyway with plumbline retrain"
            )
        counted, least = self._count(watch, alarm), self._settings.retrain_least_labels
        if counted.images >= least:
            return None
        # Where no label more is missing but somebody's word for whoever gave them.
        what = "trust" if counted.images + counted.waiting >= least else "labels"
        told = f"{counted.images} of {least} images since the alarm are labelled"
        return f"waiting for {what}: {told}" + (f"; {counted.left_out}" if counted.left_out else "")

    def _count(self, watch: Watch, alarm: Alarm) -> Counted:
        """Images since the alarm with new labels, as far as their records were read."""
        learned = learned_until(self._store.state, watch.manifest.name) or BEGINNING
        key = (f"{watch.manifest.tag} {alarm.time}", learned)
        if self._counter is None or self._counts != key:
            self._counts = key
            self._counter = LabelCounter(
                self._settings,
                self._store.state,
                watch.manifest,
                since=datetime.fromisoformat(alarm.time),
                received_after=learned,
            )
        return self._counter.count()

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


class _Housekeeping:
    """Removes, once in a while, feedback that never got a record and images that nobody needs.

    In a thread of its own: it reads a day of records.
    """

    def __init__(self, settings: MonitoringSettings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._looked_at_until = BEGINNING
        self._begun = -_HOUSEKEEPING_SECONDS
        self._thread: threading.Thread | None = None

    def consider(self) -> None:
        """Begin where it is due."""
        if time.monotonic() - self._begun < _HOUSEKEEPING_SECONDS:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._looked_at_until = forget_unjoined(
                self._settings, self._store.state, self._looked_at_until
            )
            for name in {version.name for version in self._store.versions()}:
                remove_unneeded(self._store, name)
        except (OSError, SQLAlchemyError, PlumblineError) as error:
            log.error("what nobody needs any more was not removed: %s", error)


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
    return f"{BY_ALARM}{alarm.stream} at {alarm.time}"
