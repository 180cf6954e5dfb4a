"""Labelled production images: feedback joined to records and to the images that were kept.

Feedback is bounded in number, records are not: they are read in pieces, from the first day that a
labelled image can be of, and nothing is kept of them but what was labelled.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, delete, select

from model.bundle import Manifest
from model.state import feedback, write_transaction
from monitoring.image_store import find_image
from monitoring.label_count import Answered, Counted, count_images
from monitoring.record_reader import RecordReader
from monitoring.settings import MonitoringSettings

BEGINNING = datetime.min.replace(tzinfo=UTC)
UNJOINED_KEPT = timedelta(days=1)  # feedback of ids that no record has
_LOOKS = ("perceptual_hash", "brightness", "contrast", "sharpness")
_COLUMNS = ("id", "time", "model", *_LOOKS)
_ROWS_AT_ONCE = 50_000
_IDS_KEPT = 1_000_000  # 8 bytes each; of the newest records
_IDS_AT_ONCE = 500  # in one statement

Answers = dict[tuple[str, ...], datetime]  # labels, and when they were said last


@dataclass(frozen=True)
class Said:
    """What was said of one prediction: each different answer once, and who said anything."""

    answers: Answers
    clients: frozenset[str]


@dataclass(frozen=True)
class LabelledImage:
    """An image that the service predicted, with what a person says it shows."""

    prediction_id: str
    time: datetime  # of the prediction
    labels: tuple[str, ...]
    path: Path
    received_at: datetime  # of the newest label
    clients: frozenset[str]  # that said so
    looks: int  # equal for images of the same pixels


@dataclass(frozen=True)
class Labels:
    """The labelled images, oldest first, and what was left out, by reason."""

    images: tuple[LabelledImage, ...]
    without_record: int  # ids that no record of this model has
    without_image: int
    contradicted: int  # of an id, or of images that look the same, different things are said
    unknown: int  # classes that the model has not
    unsuitable: int  # more or fewer labels than the task can learn from
    since: datetime = BEGINNING
    received_after: datetime = BEGINNING

    @property
    def recent(self) -> tuple[LabelledImage, ...]:
        """Those predicted `since` then, with a label that no retraining before has used."""
        return tuple(
            its
            for its in self.images
            if its.time >= self.since and its.received_at > self.received_after
        )

    def counted(self, least: int, trusted: Collection[str] = ()) -> Counted:
        """What of the recent ones counts toward `least`; see `count_images`."""
        answered = (Answered(its.looks, its.labels, its.clients) for its in self.recent)
        return count_images(answered, least, trusted)

    @property
    def since_in_words(self) -> str:
        """Empty where `since` is the beginning."""
        return "" if self.since == BEGINNING else f" since {self.since:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def left_out(self) -> str:
        """In words; empty where nothing was."""
        reasons = {
            "have no record": self.without_record,
            "have no stored image": self.without_image,
            "are contradicted": self.contradicted,
            "name classes that the model has not": self.unknown,
            "have labels that the task cannot learn from": self.unsuitable,
        }
        return ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def labelled_images(
    settings: MonitoringSettings,
    state: Engine,
    manifest: Manifest,
    *,
    since: datetime = BEGINNING,
    received_after: datetime = BEGINNING,
    received_until: datetime | None = None,
) -> Labels:
    """Join feedback to the records of a model name and to the stored images.

    What was predicted `since` and labelled after `received_after` counts as recent; what was said
    after `received_until` was not said yet.
    """
    said = said_of_ids(state, received_until)
    paths = {its: path for its in said if (path := find_image(settings.images, its)) is not None}
    first_day = _first_day(paths)
    known = _records_of(settings.records, list(said), manifest.name, first_day)
    left_out = dict.fromkeys(("record", "image", "contradicted", "unknown", "unsuitable"), 0)
    found = []
    for prediction_id, its in said.items():
        labels, received_at = next(iter(its.answers.items()))
        reason = fault(its.answers, manifest)
        if prediction_id not in known:
            # Records of the days before are not read: no image is left of those.
            day = _day(prediction_id)
            reason = "image" if day and first_day and day < first_day else "record"
        elif reason is None and prediction_id not in paths:
            reason = "image"
        if reason is None:
            time, looks = known[prediction_id]
            path = paths[prediction_id]
            found.append(
                LabelledImage(prediction_id, time, labels, path, received_at, its.clients, looks)
            )
        else:
            left_out[reason] += 1
    agreed = _of_one_answer(found)
    left_out["contradicted"] += len(found) - len(agreed)
    return Labels(
        tuple(sorted(agreed, key=lambda its: (its.time, its.prediction_id))),
        without_record=left_out["record"],
        without_image=left_out["image"],
        contradicted=left_out["contradicted"],
        unknown=left_out["unknown"],
        unsuitable=left_out["unsuitable"],
        since=since,
        received_after=received_after,
    )


def _of_one_answer(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Those of pictures of which nothing else is said, under whatever id they were sent."""
    answers: dict[int, set[tuple[str, ...]]] = {}
    for its in images:
        answers.setdefault(its.looks, set()).add(its.labels)
    return [its for its in images if len(answers[its.looks]) == 1]


class LabelCounter:
    """Counts, again and again, the images since an alarm whose labels are new.

    For the monitor, which must neither stall nor grow: every count reads at most some 50,000 new
    records, and keeps sixteen bytes of each of the last million.
    """

    def __init__(
        self,
        settings: MonitoringSettings,
        state: Engine,
        manifest: Manifest,
        *,
        since: datetime,
        received_after: datetime = BEGINNING,
    ) -> None:
        self._images = settings.images
        self._state = state
        self._manifest = manifest
        self._since = since
        # Nobody labels an image before it was predicted.
        self._received_after = max(since, received_after)
        self._reader = RecordReader(settings.records, _COLUMNS, since.date())
        self._least = settings.retrain_least_labels
        self._trusted = settings.trusted_clients
        self._predicted: NDArray[np.int64] = np.empty(0, np.int64)
        self._looks: NDArray[np.int64] = np.empty(0, np.int64)

    def count(self) -> Counted:
        """As `Labels.counted` has them, once all records are read."""
        said = said_of_ids(self._state, received_after=self._received_after)
        if said:
            self._read_on()
        labelled = [
            Answered(looks, next(iter(its.answers)), its.clients)
            for (prediction_id, its), looks in zip(
                said.items(), self._looks_of(list(said)), strict=True
            )
            if looks is not None
            and fault(its.answers, self._manifest) is None
            and find_image(self._images, prediction_id) is not None
        ]
        return count_images(labelled, self._least, self._trusted)

    def _looks_of(self, ids: Sequence[str]) -> list[int | None]:
        """Of each id that a record was read of; None of others."""
        wanted = short_ids(ids)
        places = np.flatnonzero(np.isin(self._predicted, wanted))
        known = dict(
            zip(self._predicted[places].tolist(), self._looks[places].tolist(), strict=True)
        )
        return [known.get(its) for its in wanted.tolist()]

    def _read_on(self) -> None:
        records = _of_model(self._reader.read_new(_ROWS_AT_ONCE), self._manifest.name)
        is_after = pyarrow.compute.greater_equal(
            records["time"], pa.scalar(self._since, records["time"].type)
        )
        new = records.filter(is_after)
        ids = short_ids(new["id"].to_pylist())
        self._predicted = np.concatenate([self._predicted, ids])[-_IDS_KEPT:]
        looks = np.array(_looks(new), np.int64)
        self._looks = np.concatenate([self._looks, looks])[-_IDS_KEPT:]


def forget_unjoined(settings: MonitoringSettings, state: Engine, after: datetime) -> datetime:
    """Delete feedback that is a day old and of ids that no record has; only what came `after`.

    Gives the time up to which feedback was looked at. Ids from before the oldest record stay, and
    without any record all: then records were removed, or are looked for in the wrong place.
    """
    until = datetime.now(UTC) - UNJOINED_KEPT
    its = feedback.c
    old = (its.received_at > after) & (its.received_at <= until)
    with state.connect() as connection:
        ids = set(connection.scalars(select(its.prediction_id).where(old).distinct()))
    if not ids:
        return until
    oldest = None
    # Ids that do not tell their day are none of ours.
    for records in _read(settings.records, _first_day([its for its in ids if _day(its)])):
        if oldest is None:
            oldest = records["time"][0].as_py().date()
        ids.difference_update(_matching(records, list(ids))["id"].to_pylist())
    if oldest is None:
        return after
    unjoined = sorted(its for its in ids if (_day(its) or oldest) >= oldest)
    with write_transaction(state) as connection:
        for start in range(0, len(unjoined), _IDS_AT_ONCE):
            some = unjoined[start : start + _IDS_AT_ONCE]
            connection.execute(delete(feedback).where(old, its.prediction_id.in_(some)))
    return until


def fault(answers: Answers, manifest: Manifest) -> str | None:
    """Why nothing can be learned from what was said of an image: a field of `Labels`, or None."""
    if len(answers) > 1:
        return "contradicted"
    (labels,) = answers
    if not set(labels) <= set(manifest.classes):
        return "unknown"
    if manifest.task == "multi" or len(labels) == 1 or (not labels and manifest.none_allowed):
        return None
    return "unsuitable"


def said_of(state: Engine, ids: Sequence[str]) -> dict[str, Said]:
    """What all clients said of some predictions, as `said_of_ids`."""
    found: dict[str, Said] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[start : start + _IDS_AT_ONCE]
        found.update(_said(state, [feedback.c.prediction_id.in_(some)]))
    return found


def said_of_ids(
    state: Engine,
    received_until: datetime | None = None,
    received_after: datetime = BEGINNING,
) -> dict[str, Said]:
    """What all clients said, with the time of the newest, by prediction.

    With `received_after`, of predictions that something was said of since.
    """
    its = feedback.c
    wanted: list[ColumnElement[bool]] = []
    if received_after > BEGINNING:
        new = select(its.prediction_id).where(its.received_at > received_after)
        wanted.append(its.prediction_id.in_(new))
    if received_until is not None:
        wanted.append(its.received_at <= received_until)
    return _said(state, wanted)


def _said(state: Engine, wanted: Sequence[ColumnElement[bool]]) -> dict[str, Said]:
    its = feedback.c
    query = select(its.prediction_id, its.labels, its.received_at, its.client).where(*wanted)
    said: dict[str, Said] = {}
    with state.connect() as connection:
        rows = connection.execute(query.order_by(its.prediction_id))
        for prediction_id, same in groupby(rows, key=lambda row: row.prediction_id):
            answers: Answers = {}
            clients = set()
            for _, labels, received_at, client in same:
                answer = tuple(json.loads(labels))
                answers[answer] = max(answers.get(answer, BEGINNING), received_at)
                clients.add(client)
            said[prediction_id] = Said(answers, frozenset(clients))
    return said


# --- records of ids ------------------------------------------------------------------------


def _records_of(
    url: str, ids: Sequence[str], model: str, first_day: date | None
) -> dict[str, tuple[datetime, int]]:
    """When predictions of a model name were made and their images' looks, where there are any."""
    if not ids:
        return {}
    found: dict[str, tuple[datetime, int]] = {}
    for records in _read(url, first_day):
        own = _of_model(_matching(records, ids), model)
        seen = zip(own["time"].to_pylist(), _looks(own), strict=True)
        found.update(zip(own["id"].to_pylist(), seen, strict=True))
    return found


def _looks(records: pa.Table) -> list[int]:
    """A number for each image, equal where every measure of its pixels is.

    Not of the file: the same picture is easily wrapped in other bytes.
    """
    columns = (records[name].to_pylist() for name in _LOOKS)
    return [hash(its) for its in zip(*columns, strict=True)]


def _read(url: str, first_day: date | None) -> Iterator[pa.Table]:
    reader = RecordReader(url, _COLUMNS, first_day)
    while len(records := reader.read_new(_ROWS_AT_ONCE)) or reader.has_more:
        if len(records):
            yield records


def _matching(records: pa.Table, ids: Sequence[str]) -> pa.Table:
    return records.filter(
        pyarrow.compute.is_in(records["id"], value_set=pa.array(ids, records["id"].type))
    )


def _of_model(records: pa.Table, name: str) -> pa.Table:
    return records.filter(pyarrow.compute.starts_with(records["model"], f"{name}:"))


def _first_day(ids: Collection[str]) -> date | None:
    """The first day whose records can be of these ids; None where one of them does not tell."""
    days = [_day(its) for its in ids]
    known = [day for day in days if day is not None]
    if not known or len(known) < len(days):
        return None
    return min(known) - timedelta(days=1)  # the record's time is another clock's reading


def _day(prediction_id: str) -> date | None:
    """The day in an id of ours, which is a UUIDv7; None for others."""
    number = uuid.UUID(prediction_id)
    if number.version != 7:
        return None
    try:
        return datetime.fromtimestamp((number.int >> 80) / 1000, UTC).date()
    except (OverflowError, ValueError, OSError):  # made up, far in the future
        return date.max


def short_ids(ids: Collection[str]) -> NDArray[np.int64]:
    """Eight bytes for each id; two of a million are equal once in tens of millions of times."""
    return np.array([hash(its) for its in ids], np.int64)
