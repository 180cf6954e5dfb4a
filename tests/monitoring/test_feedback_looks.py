"""Feedback is joined to the newest records of one version, and what cannot be is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from model.state import feedback, write_transaction
from monitoring import feedback_looks
from monitoring.feedback_looks import FeedbackAccuracy, FeedbackLooks
from monitoring.records import write_records
from monitoring.settings import MonitoringSettings


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home)


@pytest.fixture
def production(store, draw):
    """`production(tag, count, seed)`: records of today."""

    def put(tag: str, count: int, seed: int):
        now = datetime.now(UTC)
        records = [
            replace(its, time=now + timedelta(milliseconds=place))
            for place, its in enumerate(draw(tag, count, seed))
        ]
        folder = store.home / "records" / f"date={now:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{seed}.parquet", records)
        return records

    return put


def say(store, prediction_id: str, labels, client: str = "anna", ago=timedelta()) -> None:
    with write_transaction(store.state) as connection:
        connection.execute(
            feedback.insert().values(
                prediction_id=prediction_id,
                client=client,
                labels=json.dumps(list(labels)),
                model="m",
                received_at=datetime.now(UTC) - ago,
            )
        )


def test_what_cannot_be_joined_is_left_out_and_counted(store, settings, watched, production):
    former, tag = watched(), watched()
    records = production(tag, 40, 1)
    others = production(former, 5, 2)
    follow = FeedbackAccuracy(settings, store.state, store.load(store.find(tag)).manifest)
    assert follow.look()["labelled"] == 0
    for its in records[:10]:
        say(store, its.id, its.labels)
    for its in records[10:14]:
        say(store, its.id, ["circle"] if its.labels != ["circle"] else ["star"])
    say(store, records[0].id, records[0].labels, client="ben")  # agrees: counts once
    say(store, records[1].id, [], client="ben")  # contradicts
    say(store, records[20].id, ["hexagon"])
    say(store, records[21].id, ["circle", "star"])
    say(store, others[0].id, others[0].labels)  # another version's
    say(store, "0196a000-0000-7000-8000-000000000000", ["star"])  # nobody's
    say(store, records[30].id, ["star"], ago=timedelta(days=8))  # expired
    found = follow.look()
    assert found["left_out"] == {
        "contradicted": 1,
        "unknown": 1,
        "unsuitable": 1,
        "without record": 2,
    }
    assert (found["labelled"], found["of_images"]) == (13, 40)
    assert found["value"] == pytest.approx(9 / 13)


def test_of_many_images_the_newest_are_kept_and_read_in_pieces(
    store, settings, watched, production, monkeypatch
):
    tag = watched()
    records = [its for seed in range(1, 5) for its in production(tag, 30, seed)]
    for its in records:
        say(store, its.id, its.labels)
    monkeypatch.setattr(feedback_looks, "_ROWS_AT_ONCE", 30)
    monkeypatch.setattr(feedback_looks, "IMAGES_KEPT", 50)
    manifest = store.load(store.find(tag)).manifest
    looks = FeedbackLooks(settings, store.state)
    assert looks.of(manifest) is None
    for _ in range(4):
        looks.consider(manifest)
    found = looks.of(manifest)
    assert (found["labelled"], found["of_images"]) == (50, 50)
    assert found["left_out"] == {"without record": 70}
    assert looks.of(manifest.model_copy(update={"version": "20260101-00000000"})) is None
