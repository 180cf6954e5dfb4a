"""Labelled production images: feedback joined to records and to the images that were kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from sqlalchemy import Engine, select

from model.bundle import Manifest
from model.state import feedback
from monitoring.image_store import find_image

BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class LabelledImage:
    """An image that the service predicted, with what a person says it shows."""

    prediction_id: str
    time: datetime  # of the prediction
    labels: tuple[str, ...]
    path: Path
    received_at: datetime  # of the newest label


@dataclass(frozen=True)
class Labels:
    """The labelled images, oldest first, and what was left out, by reason."""

    images: tuple[LabelledImage, ...]
    without_record: int  # ids that no record of this model has
    without_image: int
    contradicted: int  # different clients say different things
    unsuitable: int  # unknown classes, or more or fewer labels than the task can learn from
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
            "have labels that the task cannot learn from": self.unsuitable,
        }
        return ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def labelled_images(
    state: Engine,
    records: pa.Table,
    image_folder: Path,
    manifest: Manifest,
    *,
    received_after: datetime | None = None,
    since: datetime | None = None,
) -> Labels:
    """Join feedback to `records` (columns id and time) and to the stored images.

    What was predicted `since` and labelled after `received_after` counts as recent.
    """
    said = _said_by_id(state)
    known = dict(zip(records["id"].to_pylist(), records["time"].to_pylist(), strict=True))
    left_out = dict.fromkeys(("record", "image", "contradicted", "unsuitable"), 0)
    found = []
    for prediction_id, answers in said.items():
        labels, received_at = next(iter(answers.items()))
        if prediction_id not in known:
            left_out["record"] += 1
        elif len(answers) > 1:
            left_out["contradicted"] += 1
        elif not _is_suitable(labels, manifest):
            left_out["unsuitable"] += 1
        elif (path := find_image(image_folder, prediction_id)) is None:
            left_out["image"] += 1
        else:
            found.append(
                LabelledImage(prediction_id, known[prediction_id], labels, path, received_at)
            )
    return Labels(
        tuple(sorted(found, key=lambda its: (its.time, its.prediction_id))),
        without_record=left_out["record"],
        without_image=left_out["image"],
        contradicted=left_out["contradicted"],
        unsuitable=left_out["unsuitable"],
        since=since or BEGINNING,
        received_after=received_after or BEGINNING,
    )


def _is_suitable(labels: tuple[str, ...], manifest: Manifest) -> bool:
    if not set(labels) <= set(manifest.classes):
        return False
    if manifest.task == "multi":
        return True
    return len(labels) == 1 or (not labels and manifest.none_allowed)


def _said_by_id(state: Engine) -> dict[str, dict[tuple[str, ...], datetime]]:
    """The different answers of all clients with the time of the newest, by prediction."""
    query = select(feedback.c.prediction_id, feedback.c.labels, feedback.c.received_at)
    said: dict[str, dict[tuple[str, ...], datetime]] = {}
    with state.connect() as connection:
        for prediction_id, labels, received_at in connection.execute(query):
            answers = said.setdefault(prediction_id, {})
            answer = tuple(json.loads(labels))
            # SQLite keeps times in UTC but forgets that they are.
            answers[answer] = max(answers.get(answer, BEGINNING), received_at.replace(tzinfo=UTC))
    return said
