"""Feedback joined to the records of one version as they are read, never to the whole history.

Of the newest images some 30 bytes each are kept (labels as bits where there may be several), and
what is older than that, or than `DAYS`, is not joined. Labels on which clients contradict each
other, of classes that the model has not, and of ids without such a record are left out and counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from sqlalchemy import Engine

from model.bundle import Manifest
from monitoring.feedback_accuracy import DAYS, Joined, accuracy_by_feedback, nothing_said
from monitoring.labels import Said, fault, said_of_ids, short_ids
from monitoring.record_reader import RecordReader
from monitoring.settings import MonitoringSettings
from monitoring.streams import accepted_labels

IMAGES_KEPT = 100_000
LABELLED_IMAGES = 1_000  # the newest of them are looked at
_ROWS_AT_ONCE = 20_000
_COLUMNS = ("id", "time", "model", "labels", "confidence", "flagged")
_LOOK_SECONDS = 10.0
_MOST_SHARE_OF_TIME = 0.02


class FeedbackAccuracy:
    """Follows the records of one version; every look reads at most some 20,000 new ones."""

    def __init__(self, settings: MonitoringSettings, state: Engine, manifest: Manifest) -> None:
        self._state = state
        self._manifest = manifest
        first_day = (datetime.now(UTC) - timedelta(days=DAYS)).date()
        self._reader = RecordReader(settings.records, _COLUMNS, first_day)
        self._kept = _Kept(len(manifest.classes))

    @property
    def tag(self) -> str:
        """The version."""
        return self._manifest.tag

    @property
    def has_more(self) -> bool:
        """Whether the last look left records for the next."""
        return self._reader.has_more

    def look(self) -> dict[str, Any]:
        """As JSON values; `labelled` images of 0 where there are none."""
        since = datetime.now(UTC) - timedelta(days=DAYS)
        said = said_of_ids(self._state, received_after=since)
        if not said:
            return nothing_said({})
        self._read_on()
        joined, left_out = self._join(said)
        found = accuracy_by_feedback(joined, self._manifest.task, self._manifest.classes)
        return {**found, "left_out": left_out, "days": DAYS}

    def _read_on(self) -> None:
        records = self._reader.read_new(_ROWS_AT_ONCE)
        own = records.filter(pyarrow.compute.equal(records["model"], self._manifest.tag))
        if len(own):
            self._kept.add(own, self._manifest.classes)

    def _join(self, said: Mapping[str, Said]) -> tuple[Joined, dict[str, int]]:
        places = self._kept.places(list(said))
        left_out: dict[str, int] = {}
        found: list[tuple[int, Said]] = []
        for its, place in zip(said.values(), places.tolist(), strict=True):
            reason = "without record" if place < 0 else fault(its.answers, self._manifest)
            if reason is None:
                found.append((place, its))
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
        found = sorted(found, key=lambda one: one[0])[-LABELLED_IMAGES:]
        index = {name: place for place, name in enumerate(self._manifest.classes)}
        true = np.zeros((len(found), len(index)), bool)
        for row, (_, its) in enumerate(found):
            true[row, [index[name] for name in next(iter(its.answers))]] = True
        clients = tuple(frozenset(its.clients) for _, its in found)
        return self._kept.joined([place for place, _ in found], true, clients), left_out


class FeedbackLooks:
    """Looks now and then, at the version that is watched."""

    def __init__(self, settings: MonitoringSettings, state: Engine) -> None:
        self._settings = settings
        self._state = state
        self._followed: FeedbackAccuracy | None = None
        self._found: dict[str, Any] | None = None
        self._next = 0.0  # time.monotonic

    def consider(self, manifest: Manifest) -> None:
        """Look where it is due: sooner as long as there are records to be read."""
        if self._followed is None or self._followed.tag != manifest.tag:
            self._followed = FeedbackAccuracy(self._settings, self._state, manifest)
            self._found, self._next = None, 0.0
        begun = time.monotonic()
        if self._followed.has_more or begun >= self._next:
            self._found = self._followed.look()
            took = time.monotonic() - begun
            self._next = begun + max(_LOOK_SECONDS, took / _MOST_SHARE_OF_TIME)

    def of(self, manifest: Manifest) -> dict[str, Any] | None:
        """What was found last of that version; None before there was a look."""
        is_of_it = self._followed is not None and self._followed.tag == manifest.tag
        return self._found if is_of_it else None


class _Kept:
    """The newest images, in memory."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._ids = np.empty(0, np.int64)
        self._given = np.empty((0, -(-classes // 8)), np.uint8)
        self._confidence = np.empty(0, np.float32)
        self._flagged = np.empty(0, bool)

    def add(self, records: pa.Table, classes: Sequence[str]) -> None:
        """More of them; the oldest go."""

        def kept(known: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([known, new])[-IMAGES_KEPT:]

        self._ids = kept(self._ids, short_ids(records["id"].to_pylist()))
        given = np.packbits(accepted_labels(records, classes), axis=1)
        self._given = kept(self._given, given)
        self._confidence = kept(self._confidence, records["confidence"].to_numpy())
        self._flagged = kept(self._flagged, np.array(records["flagged"].to_pylist(), bool))

    def places(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where each is, -1 for those that are not there."""
        if not len(self._ids):
            return np.full(len(ids), -1, np.int64)
        wanted = short_ids(ids)
        order = np.argsort(self._ids, kind="stable")
        at = np.searchsorted(self._ids, wanted, sorter=order).clip(max=len(order) - 1)
        return np.where(self._ids[order[at]] == wanted, order[at], -1)

    def joined(
        self,
        places: Sequence[int],
        true: NDArray[np.bool_],
        clients: tuple[frozenset[str], ...],
    ) -> Joined:
        """With what was said of some of them."""
        said = np.full(len(self._ids), -1, np.int64)
        said[np.array(places, np.int64)] = np.arange(len(places))
        return Joined(
            np.unpackbits(self._given, axis=1, count=self._classes).astype(bool),
            self._confidence.astype(np.float64),
            self._flagged,
            said,
            true,
            clients,
        )
