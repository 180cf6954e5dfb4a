"""Follows the champion: reads new records, keeps its watch, raises alarms, forgets nothing."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute
from sqlalchemy import Engine, select

from model.errors import MonitorError, StoreError
from model.state import alarms, audit, record, write_transaction
from model.store import ModelStore
from monitoring import state_file
from monitoring.alarm import LABELLED_MISTAKES, Alarm
from monitoring.pace import CHANCE, promised_days
from monitoring.predictions import Predictions
from monitoring.record_decoding import LIMIT_UNFOLDED_BYTES
from monitoring.record_merge import MergedRecords
from monitoring.record_reader import RecordReader
from monitoring.settings import MonitoringSettings
from monitoring.streams import COLUMNS, fitting_rows
from monitoring.watch import ResetWay, Watch

log = logging.getLogger("plumbline.monitor")

# What the audit calls a reset, by the way it is done.
RESETS: dict[ResetWay, str] = {
    "back": "monitor reset",
    "keep": "monitor reset, images kept",
    "new normal": "monitor reset, new normal",
}
_WATCHES_KEPT = 3  # of the latest champions: a rollback goes on where it was
_TAGS_NAMED = 5  # of versions that the store does not know


class Monitor:
    """One process has one; every call of `poll` takes in what is new.

    Raises `MonitorError` for a damaged state file, when it is made.
    """

    def __init__(self, settings: MonitoringSettings, store: ModelStore) -> None:
        self._settings = settings
        self._store = store
        self._path = settings.home.absolute() / "monitor" / "state.json"
        self._reader = _reader(settings)
        self._predictions = Predictions(self._path.with_name("predictions.sqlite"))
        self._states: dict[str, dict[str, Any]] = {}  # by tag, the latest last
        self._alarms_written: set[tuple[str, str]] = set()  # tag and time
        self._why_no_watch = ""
        self.records_total: Counter[str] = Counter()  # by kind, see the metric
        self.watch: Watch | None = None
        content = state_file.load(self._path)
        if content is not None:
            self._restore(content)

    @property
    def state(self) -> Engine:
        """The state database."""
        return self._store.state

    @property
    def refused_files(self) -> int:
        """Files among the records that hold none."""
        return self._reader.refused_files

    @property
    def has_more(self) -> bool:
        """Whether the last poll left records for the next."""
        return self._reader.has_more

    def poll(self) -> list[Alarm]:
        """Follow the champion, obey resets, take new records, save; gives new alarms."""
        try:
            return self._poll()
        except Exception:
            # Whatever was read and not saved is read again: nothing is lost or counted twice.
            self._go_back_to_saved()
            raise

    def _poll(self) -> list[Alarm]:
        self._follow_champion()
        if self.watch is None:
            return []  # records are left for the champion that they may turn out to be of
        known = self._refused()
        new = self._reader.read_new(limit_bytes=LIMIT_UNFOLDED_BYTES)
        found = self._refused()
        self._count_refused(*(after - before for before, after in zip(known, found, strict=True)))
        raised, resets = self._take_around_resets(new)
        raised += self._join_labels(self.watch)
        if len(new) or resets or found != known or self.watch.labelled.has_read:
            self.save()
        self.watch.saved()
        self._write_alarms()
        return raised

    def _refused(self) -> tuple[int, int, int]:
        its = self._reader
        return its.refused_files, its.refused_records, its.duplicates

    def _count_refused(self, files: int, records: int, duplicates: int) -> None:
        if records:
            self.records_total["refused"] += records
        if duplicates:
            self.records_total["duplicate"] += duplicates
            log.warning("%d records are left out: those with their ids came before", duplicates)

    def _join_labels(self, watch: Watch) -> list[Alarm]:
        """Hold feedback against predictions, once all records are read that it can speak of."""
        return [] if self._reader.has_more else watch.join(self._store.state, datetime.now(UTC))

    def _take_around_resets(self, new: pa.Table) -> tuple[list[Alarm], int]:
        """Take records, with each reset between those from before it and those from after it.

        Gives the alarms and how many resets were obeyed. One from before which records may still
        be given is left for a later poll.
        """
        assert self.watch is not None
        raised: list[Alarm] = []
        resets = 0
        for number, time, is_ahead, way in self._new_resets(self.watch):
            is_before = pyarrow.compute.less_equal(new["time"], pa.scalar(time, new["time"].type))
            earlier, later = new.filter(is_before), new.filter(pyarrow.compute.invert(is_before))
            is_open = self._reader.has_more or self._reader.given_until < time
            if is_open and not len(later) and not is_ahead:
                break
            raised += self._take(earlier)
            self.watch.reset(number, time.timestamp(), way)
            log.info("the evidence for %s was reset", self.watch.manifest.tag)
            new = later
            resets += 1
        return raised + self._take(new), resets

    def _go_back_to_saved(self) -> None:
        self._reader = _reader(self._settings)
        self._states, self.watch = {}, None
        self.records_total = Counter()
        content = state_file.load(self._path)
        if content is not None:
            self._restore(content)

    def save(self) -> None:
        """Write everything, in one step."""
        if self.watch is not None:
            self._states.pop(self.watch.manifest.tag, None)
            self._states[self.watch.manifest.tag] = self.watch.to_state()
        for tag in list(self._states)[:-_WATCHES_KEPT]:
            del self._states[tag]
        content = {
            "reader": self._reader.to_state(),
            "watches": self._states,
            "records_total": dict(self.records_total),
        }
        state_file.save(self._path, content)

    def status(self) -> dict[str, Any]:
        """`GET /api/status`."""
        watch = self.watch
        if watch is None:
            return empty_status(self._why_no_watch)
        evidence = watch.evidence.log10.items()
        begun = watch.evidence.images > 0
        return {
            "state": watch.state,
            "sentence": watch.sentence,
            "images_served": watch.images_served,
            "images_sampled": watch.images_sampled,
            "images_since_reset": watch.evidence.images,
            "last_image": _iso(watch.last_image_seconds),
            "log10_evidence": {
                **{name: value if begun else None for name, value in evidence},
                LABELLED_MISTAKES: watch.labelled.log10,
            },
            "alarm_line": watch.line,
            "false_alarm_images": self._settings.false_alarm_images,
            "sampled_a_day": watch.pace.a_day,
            "false_alarm_promise": {
                "chance": CHANCE,
                "days": promised_days(self._settings.false_alarm_images, watch.pace.a_day),
                "sentence": watch.promised_in_days,
            },
            "labels": watch.labelled.status(),
            "alarms": [
                {"time": its.time, "stream": its.stream, "after_images": its.after_images}
                for its in watch.alarms
            ],
            "flagged_share": watch.last.flagged_share(),
            "repeated_share": watch.sampler.repeated_share,
            "repeated_answers_share": watch.promise.repeats.share,
            "dependence": watch.promise.dependence.correlation,
            "calibration_images": watch.calibration_images,
            "class_mix": watch.last.class_mix(),
            "accuracy_estimate": watch.accuracy_estimate(),
            "model": watch.manifest.tag,
        }

    def _restore(self, content: dict[str, Any]) -> None:
        try:
            self._reader.restore(content["reader"])
            self._states = dict(content["watches"])
            self.records_total.update(content["records_total"])
        except (KeyError, TypeError, ValueError) as error:
            raise MonitorError(
                f"{self._path} is whole, but is no state of this monitor: {error!r}; move it away"
                f" to begin anew: mv {self._path} {self._path}.old"
            ) from error

    def _follow_champion(self) -> None:
        try:
            version = self._store.champion(self._settings.model)
        except StoreError as error:
            self._why_no_watch = str(error)
            return
        if self.watch is not None and self.watch.manifest.tag == version.tag:
            return
        if self.watch is not None:
            self.save()
        watch = Watch(self._store.load(version), self._settings, self._predictions)
        state = self._states.get(version.tag)
        if state is not None:
            try:
                watch.restore(state)
            except (KeyError, TypeError, ValueError) as error:
                raise MonitorError(
                    f"the evidence for {version.tag} in {self._path} cannot be gone on with:"
                    f" {error}; set the setting back, or move the file away to begin anew"
                ) from error
            watch.saved()
        self.watch = watch
        log.info("watching %s%s", version.tag, "" if state is None else ", from where it was")

    def _new_resets(self, watch: Watch) -> list[tuple[int, datetime, bool, ResetWay]]:
        """The resets that were asked for and not obeyed yet, oldest first.

        Number and time of each, whether it was asked by a clock that is ahead, and the way it is
        done.
        """
        ways = {action: way for way, action in RESETS.items()}
        asked = (
            select(audit.c.id, audit.c.time, audit.c.action)
            .where(
                audit.c.action.in_(ways),
                audit.c.subject == watch.manifest.tag,
                audit.c.id > watch.resets_seen,
            )
            .order_by(audit.c.id)
        )
        with self._store.state.connect() as connection:
            rows = connection.execute(asked).all()
        now = datetime.now(UTC)
        # A clock that is ahead must not declare records of the future to be from before the reset.
        return [(number, min(time, now), time > now, ways[action]) for number, time, action in rows]

    def _take(self, records: pa.Table) -> list[Alarm]:
        by_model = Counter(records["model"].to_pylist())
        if self.watch is None:
            return []
        tag = self.watch.manifest.tag
        del by_model[tag]
        self._count_others(by_model)
        own = records.filter(pyarrow.compute.equal(records["model"], tag))
        if not len(own):
            return []
        fitting = fitting_rows(own, self.watch.manifest)
        refused = int((~fitting).sum())
        if refused:
            self.records_total["refused"] += refused
            log.error(
                "%d records that say they are of %s are left out: other labels or logits, or"
                " values that are no numbers",
                *(refused, tag),
            )
        raised = self.watch.take(own.filter(pa.array(fitting)))
        self.records_total["watched"] += int(fitting.sum())
        return raised

    def _count_others(self, by_model: Counter[str]) -> None:
        """Count records of other versions, and name those that the store does not know."""
        if not by_model:
            return
        known = {version.tag for version in self._store.versions()}
        unknown = sorted(by_model.keys() - known)
        of_unknown = sum(by_model[tag] for tag in unknown)
        if by_model.total() > of_unknown:
            self.records_total["other version"] += by_model.total() - of_unknown
        if of_unknown:
            self.records_total["unknown version"] += of_unknown
            log.warning(
                "%d records are left out: they are of versions not in the store (%d): %s%s",
                *(of_unknown, len(unknown)),
                *(", ".join(unknown[:_TAGS_NAMED]), ", ..." * (len(unknown) > _TAGS_NAMED)),
            )

    def _write_alarms(self) -> None:
        """Put the alarms of the saved state into the database, each once.

        What is saved does not change any more; an alarm found in records that are read again after
        a crash may come at another one.
        """
        for tag, state in self._states.items():
            for alarm in (Alarm(**its) for its in state["alarms"]):
                if (tag, alarm.time) not in self._alarms_written:
                    self._write_alarm(tag, alarm)
                    self._alarms_written.add((tag, alarm.time))

    def _write_alarm(self, tag: str, alarm: Alarm) -> None:
        same = (alarms.c.model == tag) & (alarms.c.time == alarm.time)
        with write_transaction(self._store.state) as connection:
            if connection.execute(select(alarms.c.id).where(same)).first() is not None:
                return
            connection.execute(
                alarms.insert().values(
                    model=tag,
                    time=alarm.time,
                    stream=alarm.stream,
                    after_images=alarm.after_images,
                )
            )
            record(connection, "alarm", tag, f"{alarm.stream} after {alarm.after_images} images")
        log.warning("ALARM: %s", alarm.sentence)


def _reader(settings: MonitoringSettings) -> MergedRecords:
    return MergedRecords(
        RecordReader(settings.records, ("model", *COLUMNS)), settings.merge_seconds
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def empty_status(why: str = "") -> dict[str, Any]:
    """The status while there is no champion to watch."""
    return {
        "state": "waiting",
        "sentence": f"Waiting: {why}." if why else "Waiting: no champion was looked for yet.",
        "images_served": 0,
        "images_sampled": 0,
        "log10_evidence": {},
        "alarm_line": None,
        "alarms": [],
        "flagged_share": None,
        "accuracy_estimate": {
            "cbpe": None,
            "atc": None,
            "valid": False,
            "cbpe_interval": None,
            "atc_interval": None,
            "why_invalid": "there is no champion to watch",
        },
        "model": None,
    }


def ask_for_reset(settings: MonitoringSettings, why: str, way: ResetWay = "back") -> str:
    """Write into the audit that the champion's evidence shall begin anew; gives its tag.

    `way` is as for `Watch.reset`. The running monitor obeys within seconds, one that is down when
    it starts.
    """
    store = ModelStore(settings)
    try:
        tag = store.champion(settings.model).tag
        with write_transaction(store.state) as connection:
            record(connection, RESETS[way], tag, why)
    finally:
        store.state.dispose()
    return tag
