"""What counts as enough labels to train on: pictures, not ids, and not one client's flood."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from model.state import feedback, write_transaction
from monitoring.image_store import FOLDERS
from monitoring.labels import BEGINNING, LabelCounter, count_images, labelled_images
from monitoring.records import write_records
from monitoring.settings import MonitoringSettings

LEAST = 20


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home, retrain_least_labels=LEAST)


@pytest.fixture
def label(store, settings):
    """`label(records, client)`: stored images, recorded, with a label each; `""` says nothing."""

    def put(records, client: str = "anna", name: str = "a") -> None:
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{name}.parquet", records)
        images = settings.images / FOLDERS[0]
        images.mkdir(parents=True, exist_ok=True)
        for its in records:
            (images / f"{its.id}.png").write_bytes(its.id.encode())
            say(store, its.id, client)

    return put


def say(store, prediction_id: str, client: str) -> None:
    with write_transaction(store.state) as connection:
        connection.execute(
            feedback.insert().values(
                prediction_id=prediction_id,
                client=client,
                labels=json.dumps(["star"]),
                model="m",
                received_at=datetime.now(UTC),
            )
        )


@pytest.fixture
def counted(store, settings, watched):
    """`counted(**settings)`: by the monitor's counter and by the retraining itself; the tag."""
    manifest = store.load(store.find(watched())).manifest

    def count(**changes) -> tuple[int, int]:
        given = settings.model_copy(update=changes)
        counter = LabelCounter(given, store.state, manifest, since=BEGINNING)
        labels = labelled_images(given, store.state, manifest)
        return counter.count(), labels.counted(LEAST, given.trusted_clients)

    return count, manifest.tag


def test_one_client_alone_counts_in_full(counted, label, draw):
    count, tag = counted
    label(draw(tag, 30, 1))
    assert count() == (30, 30)


def test_a_picture_sent_a_hundred_times_counts_once_in_whatever_file(counted, label, draw):
    count, tag = counted
    (picture,) = draw(tag, 1, 1)
    again = [
        replace(picture, id=str(uuid.UUID(int=place)), image_sha256=f"{place:064x}")
        for place in range(100)
    ]
    label(again)
    assert count() == (1, 1)


def test_labels_of_ids_that_nobody_was_given_add_nothing(counted, label, draw, store):
    count, tag = counted
    label(draw(tag, 5, 1))
    for place in range(200):
        say(store, str(uuid.UUID(int=place)), "mallory")
    assert count() == (5, 5)


def test_a_flood_from_one_of_several_clients_is_half_of_enough_at_most(counted, label, draw):
    count, tag = counted
    label(draw(tag, 200, 1), "mallory", "flood")
    label(draw(tag, 4, 2), "anna", "few")
    assert count() == (14, 14)  # 4, and half of 20
    assert count(retrain_trusted_clients="qa, mallory") == (204, 204)
    label(draw(tag, 6, 3), "ben", "more")
    assert count() == (20, 20)


def test_what_two_clients_agree_on_is_nobodys_flood():
    agreed = [(picture, frozenset({"anna", "ben"})) for picture in range(50)]
    assert count_images(agreed, 20) == 50


def test_what_is_left_out_is_known_for_the_telling(store, settings, watched, label, draw):
    tag = watched()
    label(draw(tag, 200, 1), "mallory", "flood")
    label(draw(tag, 4, 2), "anna", "few")
    manifest = store.load(store.find(tag)).manifest
    counter = LabelCounter(settings, store.state, manifest, since=BEGINNING)
    assert counter.count() == 14
    assert counter.left_out == 190
