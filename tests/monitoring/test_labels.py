"""What counts as enough labels to train on: pictures, not ids, and not one client's flood.

What one client alone labelled is at most half of enough, wherever nobody has named it as trusted.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from model.state import feedback, write_transaction
from monitoring.image_store import FOLDERS
from monitoring.label_count import Answered, count_images
from monitoring.labels import BEGINNING, LabelCounter, labelled_images
from monitoring.records import write_records
from monitoring.settings import THIS_MACHINE, MonitoringSettings

LEAST = 20


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home, retrain_least_labels=LEAST)


@pytest.fixture
def label(store, settings):
    """`label(records, client)`: stored images, recorded, with a label each; `""` says nothing."""

    def put(records, client: str = "anna", name: str = "a", labels=("star",)) -> None:
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{name}.parquet", records)
        images = settings.images / FOLDERS[0]
        images.mkdir(parents=True, exist_ok=True)
        for its in records:
            (images / f"{its.id}.png").write_bytes(its.id.encode())
            say(store, its.id, client, labels)

    return put


def say(store, prediction_id: str, client: str, labels=("star",)) -> None:
    with write_transaction(store.state) as connection:
        connection.execute(
            feedback.insert().values(
                prediction_id=prediction_id,
                client=client,
                labels=json.dumps(labels),
                model="m",
                received_at=datetime.now(UTC),
            )
        )


def said_by(clients: str, pictures, label: str = "star") -> list[Answered]:
    """The same of all pictures."""
    return [Answered(its, (label,), frozenset(clients.split())) for its in pictures]


@pytest.fixture
def counted(store, settings, watched):
    """`counted(**settings)`: by the monitor's counter and by the retraining itself; the tag."""
    manifest = store.load(store.find(watched())).manifest

    def count(**changes) -> tuple[int, int]:
        given = settings.model_copy(update=changes)
        counter = LabelCounter(given, store.state, manifest, since=BEGINNING)
        labels = labelled_images(given, store.state, manifest)
        return counter.count().images, labels.counted(LEAST, given.trusted_clients).images

    return count, manifest.tag


def test_one_client_alone_is_half_of_enough_at_most_unless_it_is_trusted(counted, label, draw):
    count, tag = counted
    label(draw(tag, 200, 1), "mallory")
    assert count() == (10, 10)
    assert count(retrain_trusted_clients="qa, mallory") == (200, 200)


def test_nobody_is_trusted_who_is_not_named(counted, label, draw):
    count, tag = counted
    label(draw(tag, 30, 1), THIS_MACHINE)
    assert count() == (10, 10)
    assert count(retrain_trusted_clients=THIS_MACHINE) == (30, 30)


def test_two_clients_make_up_what_one_cannot(counted, label, draw):
    count, tag = counted
    label(draw(tag, 200, 1), "mallory", "flood")
    label(draw(tag, 10, 2), "anna", "few")
    assert count() == (20, 20)


@pytest.mark.parametrize("least", [2, 3, 300, 301])
def test_so_it_is_however_many_are_wanted(least):
    flood = said_by("mallory", range(1_000))
    others = said_by("anna", range(1_000, 2_000))
    assert count_images(flood, least).images < least
    assert count_images([*flood, *others], least).images >= least


def test_a_picture_sent_a_hundred_times_counts_once_in_whatever_file(counted, label, draw):
    count, tag = counted
    (picture,) = draw(tag, 1, 1)
    again = [
        replace(picture, id=str(uuid.UUID(int=place)), image_sha256=f"{place:064x}")
        for place in range(100)
    ]
    label(again, "anna")
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
    assert count_images(said_by("anna ben", range(50)), 20).images == 50
    each = [*said_by("anna", range(50)), *said_by("ben", range(50))]
    assert count_images(each, 20).images == 50


def test_a_picture_of_which_different_things_are_said_does_not_count_under_whatever_ids(
    counted, label, draw, store, settings
):
    count, tag = counted
    pictures = draw(tag, 10, 1)
    label(pictures, "anna")
    again = [
        replace(its, id=str(uuid.UUID(int=place)), image_sha256=f"{place:064x}")
        for place, its in enumerate(pictures[:4])
    ]
    label(again, "mallory", "again", labels=["circle"])
    assert count() == (6, 6)
    labels = labelled_images(settings, store.state, store.load(store.find(tag)).manifest)
    assert labels.contradicted == 8
    assert {its.prediction_id for its in labels.images} == {its.id for its in pictures[4:]}


def test_different_things_of_one_picture_are_nobodys_agreement():
    said = [*said_by("anna", range(8)), *said_by("mallory", range(5), "circle")]
    found = count_images(said, 20)
    assert (found.images, found.contradicted) == (3, 10)
    assert found.left_out == "10 are of a picture of which different things are said"


def test_what_is_left_out_is_told_with_whose_it_is_and_what_to_do():
    flood = said_by("mallory", range(200))
    few = said_by("anna", (200, 201, 202, 202))
    found = count_images([*flood, *few], 20)
    assert (found.images, found.waiting) == (13, 190)
    assert found.left_out == (
        "1 more repeat a picture; 190 more wait for trust: of what one client alone labelled, at"
        " most 10 count, and 'mallory' labelled 200; name those that you trust in"
        " PLUMBLINE_RETRAIN_TRUSTED_CLIENTS, or let another client label too"
    )
    assert count_images(few[:3], 20).left_out == ""


def test_what_is_told_has_few_names_and_short_ones_however_they_are_chosen():
    names = ["\x1b[2J\n\u202e" + "x" * 120, *(f"client {number}" for number in range(1_000))]
    labelled = [
        Answered(hash((name, picture)), ("star",), frozenset({name}))
        for place, name in enumerate(names)
        for picture in range(9 if place == 0 else 5)
    ]
    told = count_images(labelled, 4).left_out
    assert r"'\x1b[2J\n\u202exx" in told
    assert "'client 0' labelled 5, 'client 1' labelled 5, 998 more clients likewise" in told
    assert told.isprintable()
    assert len(told) < 400
