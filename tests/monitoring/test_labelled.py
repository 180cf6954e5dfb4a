"""What people say shows a concept drift, under a promise that they alone can break."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
from sqlalchemy import select

from model.errors import MonitorError
from model.state import alarms, feedback
from monitoring.alarm import LABELLED_MISTAKES
from monitoring.launcher import Launcher
from monitoring.monitor import Monitor, ask_for_reset
from monitoring.predictions import Prediction, Predictions
from monitoring.records import to_table, write_records
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch

CLASSES = ("circle", "square", "star")
LONG_AGO = datetime(2026, 3, 5, tzinfo=UTC)


@pytest.fixture
def say(store):
    """`say(records, truth)`: feedback of what they really show, a second apart."""
    seconds = count()

    def insert(records, truth, *, client="anna") -> None:
        rows = [
            {
                "prediction_id": its.id,
                "client": client,
                "labels": json.dumps(labels),
                "model": its.model,
                "received_at": LONG_AGO + timedelta(seconds=next(seconds)),
            }
            for its, labels in zip(records, truth, strict=True)
        ]
        with store.state.begin() as connection:
            connection.execute(feedback.insert(), rows)

    return insert


@pytest.fixture
def watch(store, watched, tmp_path):
    """`watch(**settings)`: one of a version that is wrong on a tenth of its calibration split."""
    tags: list[str] = []

    def begin(*, mistakes: bool = True, **settings) -> Watch:
        tags[:] = tags or [watched(mistakes=mistakes)]
        # The manifest's hash is the seed.
        bundle = replace(store.load(store.find(tags[0])), manifest_sha256="0" * 64)
        predictions = Predictions(tmp_path / "predictions.sqlite")
        return Watch(bundle, MonitoringSettings(home=store.home, **settings), predictions)

    return begin


def truth_of(records, wrong: float, seed: int = 0) -> list[list[str]]:
    """What they show, where the model is wrong on this share of them, at random."""
    rng = np.random.default_rng(seed)
    return [[other(its.labels[0])] if rng.random() < wrong else its.labels for its in records]


def other(label: str) -> str:
    return CLASSES[(CLASSES.index(label) + 1) % 3]


def join_all(its: Watch, store) -> list:
    found = its.join(store.state, datetime.now(UTC))
    its.saved()
    while its.labelled.has_read:
        found += its.join(store.state, datetime.now(UTC))
        its.saved()
    return found


@pytest.mark.parametrize("at_random", [False, True])
def test_a_concept_drift_raises_the_alarm_though_no_image_changes(
    watch, store, draw, say, at_random
):
    its = watch(labelled_at_random=at_random)
    clean, drifted = (draw(its.manifest.tag, 300, seed) for seed in (1, 2))
    its.take(to_table([*clean, *drifted]))
    say(clean, truth_of(clean, 0.1))
    assert join_all(its, store) == []
    assert "No drift in 300 labelled images: the model is wrong on" in its.labelled.sentence
    say(drifted, [[other(one.labels[0])] for one in drifted])
    (alarm,) = join_all(its, store)
    assert (alarm.stream, alarm.after_images) == (LABELLED_MISTAKES, 600)
    assert 300 < alarm.labelled_images < 340
    assert (its.state, its.drift) == ("drift", None)
    assert "What people say has drifted from what the model says" in its.sentence
    assert ("drawn at random" if at_random else "as they did before") in its.sentence
    assert its.accuracy_estimate()["valid"] is False


def test_a_new_normal_is_of_what_drifted(watch, store, draw, say):
    """Of darker images people go on expecting the right answers."""
    its = watch(labelled_at_random=True)
    images, dark, later = (
        draw(its.manifest.tag, 300, seed, darker=darker)
        for seed, darker in ((1, 0.0), (2, 0.3), (3, 0.3))
    )
    (alarm,) = its.take(to_table([*images, *dark]))
    assert not alarm.is_of_labels
    its.reset(1, 0.0, "new normal")
    its.take(to_table(later))
    say(later, [[other(one.labels[0])] for one in later])
    (found,) = join_all(its, store)
    assert found.is_of_labels
    its.reset(2, 0.0, "new normal")
    assert its.evidence.first_images < 600, "the images keep what they were held to"
    again = draw(its.manifest.tag, 300, 4, darker=0.3)
    its.take(to_table(again))
    say(again, [[other(one.labels[0])] for one in again])
    assert join_all(its, store) == [], "that is how it is called now"


@pytest.mark.parametrize("at_random", [False, True])
def test_labels_like_those_of_calibration_raise_none(watch, store, draw, say, at_random):
    its = watch(labelled_at_random=at_random)
    records = draw(its.manifest.tag, 800, 1)
    its.take(to_table(records))
    say(records, truth_of(records, 0.1))
    assert join_all(its, store) == []
    assert its.labelled.evidence.images == 800
    assert its.state == "ok"
    assert 0 < its.labelled.status()["mistaken_share"] < 0.25


def test_drawn_at_random_labels_are_held_to_calibration_from_the_first(watch, store, draw, say):
    its = watch(labelled_at_random=True)
    records = draw(its.manifest.tag, 100, 1)
    its.take(to_table(records))
    say(records, truth_of(records, 0.9))
    (alarm,) = join_all(its, store)
    assert alarm.labelled_images == 60  # fewer say nothing of their dependence
    assert its.labelled.status()["held_to"] == "calibration"


def test_people_who_label_mistakes_alone_break_no_promise(watch, store, draw, say):
    its, unlabelled = watch(), watch()
    records = draw(its.manifest.tag, 800, 1)
    for one in (its, unlabelled):
        one.take(to_table(records))
    say(records, truth_of(records, 0.95))
    assert join_all(its, store) == []
    assert its.state == "ok"
    assert its.evidence.to_state() == unlabelled.evidence.to_state()


def test_an_alarm_of_labels_buys_no_retraining(watch, store, draw, say):
    """One client could raise it by itself, and would have given all the labels for it, too."""
    its = watch(labelled_at_random=True)
    records = draw(its.manifest.tag, 100, 1)
    its.take(to_table(records))
    say(records, truth_of(records, 1.0))
    join_all(its, store)
    assert its.state == "drift"
    launcher = Launcher(MonitoringSettings(home=store.home, retrain_least_labels=2), store)
    launcher.consider(its)
    assert launcher.waiting_for is None
    assert launcher.recent("shapes") == []


def test_a_bundle_that_does_not_tell_its_mistakes_is_held_to_the_labels_before(
    watch, store, draw, say
):
    its = watch(labelled_at_random=True, mistakes=False)
    records = draw(its.manifest.tag, 100, 1)
    its.take(to_table(records))
    say(records, truth_of(records, 0.9))
    assert join_all(its, store) == []
    assert its.labelled.status()["held_to"] == "labels before"


def test_an_image_counts_once_and_what_is_no_evidence_is_left_out(watch, store, draw, say):
    its = watch(sample_client_images=10)
    records = draw(its.manifest.tag, 80, 1)
    copies = [replace(one, id=one.id[:-1] + "x") for one in records[:5]]  # not sampled
    its.take(to_table([*records, *copies]))
    right = [one.labels for one in records]
    say(records[:10], right[:10])
    say(records[:10], right[:10], client="ben")
    say(records[10:15], right[10:15])
    say(records[10:15], [[other(one)] for (one,) in right[10:15]], client="ben")
    say(records[15:20], [["circle", "star"]] * 5)
    say(records[20:22], [["triangle"]] * 2)
    say(copies, right[:5])
    assert join_all(its, store) == []
    status = its.labelled.status()
    assert status["images"] == 10
    assert status["left_out"] == {
        "of no sampled image": 10 + 5,  # ben's of images that had counted, and the copies
        "contradicted by another client": 10,
        "with labels that the task does not know": 5,
        "of classes that the model has not": 2,
    }
    say(records[:10], right[:10], client="cleo")  # once more, later
    assert join_all(its, store) == []
    assert its.labelled.evidence.images == 10


def test_a_flood_of_one_client_counts_for_no_more_than_its_share(watch, store, draw, say):
    its = watch(sample_client_images=10, sample_client_seconds=86_400.0)
    records = draw(its.manifest.tag, 300, 1)
    its.take(to_table(records))
    for start in range(0, 30, 2):  # the others
        say(records[start : start + 2], truth_of(records[start : start + 2], 0.1), client="ben")
        say(records[200:202], [["star"]] * 2, client=f"{start}")
    say(records[30:200], [[other(one.labels[0])] for one in records[30:200]], client="flood")
    assert join_all(its, store) == []
    assert its.labelled.left_out["over the share of a client"] >= 160


def test_labels_that_come_in_runs_bring_no_alarm_but_no_promise(watch, store, draw, say):
    its = watch()
    records = draw(its.manifest.tag, 600, 1)
    its.take(to_table(records))
    truth = [
        [other(one.labels[0])] if place // 5 % 2 else one.labels
        for place, one in enumerate(records)
    ]
    say(records, truth)
    assert join_all(its, store) == []
    assert its.labelled.promise.holds is False


def test_a_reset_after_an_alarm_of_images_leaves_the_labels_what_they_are_held_to(
    watch, store, draw, say
):
    its = watch()
    clean, dark = draw(its.manifest.tag, 300, 1), draw(its.manifest.tag, 300, 2, darker=0.3)
    its.take(to_table(clean))
    say(clean, truth_of(clean, 0.1))
    join_all(its, store)
    (alarm,) = its.take(to_table(dark))
    its.reset(1, datetime.fromisoformat(alarm.time).timestamp() - 1e9)
    assert sum(its.labelled.evidence.held(LABELLED_MISTAKES)) == 300
    later = draw(its.manifest.tag, 200, 3)
    its.take(to_table(later))
    say(later, truth_of(later, 0.9))
    (found,) = join_all(its, store)
    assert found.is_of_labels


def test_images_from_before_a_reset_are_labelled_for_nothing_after_it(watch, store, draw, say):
    its = watch()
    before, after = (draw(its.manifest.tag, 50, seed) for seed in (1, 2))
    its.take(to_table(before))
    its.reset(1, before[-1].time.timestamp())
    its.take(to_table(after))
    for records in (before, after):
        say(records, truth_of(records, 0.1))
    join_all(its, store)
    assert its.labelled.evidence.images == 50
    assert its.labelled.left_out == {"of images from before a reset": 50}


def test_another_setting_of_how_images_are_chosen_begins_the_labels_anew(watch, store, draw, say):
    its = watch()
    records = draw(its.manifest.tag, 50, 1)
    its.take(to_table(records))
    say(records, truth_of(records, 0.1))
    join_all(its, store)
    again = watch(labelled_at_random=True)
    again.restore(json.loads(json.dumps(its.to_state())))
    assert join_all(again, store) == []
    assert (again.labelled.log10, again.images_sampled) == (None, 50)


# The whole monitor


@pytest.fixture
def put(store):
    """`put(records)`: one more file, as the service writes it."""
    files = count()

    def write(records) -> None:
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{next(files):06d}.parquet", records)

    return write


def test_the_monitor_tells_of_labels_and_goes_on_after_every_kill(
    store, watched, draw, say, put, tmp_path
):
    tag = watched()
    settings = MonitoringSettings(home=store.home, record_merge_seconds=0.0)
    monitor = Monitor(settings, store)
    monitor.poll()
    assert monitor.status()["log10_evidence"][LABELLED_MISTAKES] is None
    for seed in range(1, 6):
        records = draw(tag, 60, seed)
        put(records)
        say(records, truth_of(records, 1.0 if seed > 3 else 0.1, seed))
        monitor.poll()
        monitor = Monitor(settings, store)
    monitor.poll()
    status = monitor.status()
    assert [its["stream"] for its in status["alarms"]] == [LABELLED_MISTAKES]
    assert status["state"] == "drift"
    assert status["log10_evidence"][LABELLED_MISTAKES] > status["labels"]["alarm_line"]
    with store.state.connect() as connection:
        assert [row.stream for row in connection.execute(select(alarms))] == [LABELLED_MISTAKES]
    # One that was never killed and reads all of it at once comes to the same.
    (store.home / "monitor").rename(tmp_path / "elsewhere")
    steady = Monitor(settings, store)
    steady.poll()
    one, same = (its.watch.labelled.to_state() for its in (monitor, steady))
    for state in (one, same):
        del state["used"]
        state["drift"] = None if state["drift"] is None else state["drift"]["labelled_images"]
    assert one == same
    ask_for_reset(settings, "another packaging")
    steady.poll()
    assert steady.status()["state"] == "ok"


@pytest.mark.parametrize("broken", ["save", "mark"])
def test_a_label_is_neither_lost_nor_counted_twice_by_a_crash(
    store, watched, draw, say, put, monkeypatch, broken
):
    tag = watched()
    settings = MonitoringSettings(home=store.home, record_merge_seconds=0.0)
    records = draw(tag, 80, 1)
    put(records)
    say(records, truth_of(records, 0.1))
    crashing = Monitor(settings, store)

    def crash(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        if broken == "save":
            patch.setattr(Monitor, "save", crash)
        else:
            patch.setattr(Predictions, "mark_used", crash)
        with pytest.raises(RuntimeError, match="killed"):
            crashing.poll()
    again = Monitor(settings, store)
    again.poll()
    say(records[:30], truth_of(records[:30], 1.0), client="ben")
    again.poll()
    assert again.status()["labels"]["images"] == 80


def test_a_label_that_came_before_its_record_waits_for_it(store, watched, draw, put):
    tag = watched()
    monitor = Monitor(MonitoringSettings(home=store.home, record_merge_seconds=0.0), store)
    record = draw(tag, 1, 1)[0]
    monitor.poll()
    with store.state.begin() as connection:
        connection.execute(
            feedback.insert().values(
                prediction_id=record.id,
                client="anna",
                labels='["star"]',
                model=tag,
                received_at=datetime.now(UTC),
            )
        )
    monitor.poll()
    put([record])
    monitor.poll()
    assert monitor.watch.labelled.left_out == {}
    watch = monitor.watch
    watch.join(store.state, datetime.now(UTC) + timedelta(minutes=1))
    assert watch.labelled.evidence.images == 1


def test_a_damaged_file_of_predictions_is_refused_with_the_way_back(store, watched, draw, put):
    tag = watched()
    monitor = Monitor(MonitoringSettings(home=store.home, record_merge_seconds=0.0), store)
    (store.home / "monitor").mkdir()
    (store.home / "monitor" / "predictions.sqlite").write_bytes(b"no database" * 500)
    put(draw(tag, 10, 1))
    with pytest.raises(MonitorError, match=r"cannot be used: file is not a database; move it away"):
        monitor.poll()


def test_predictions_are_kept_in_bounded_number_each_once(tmp_path):
    its = Predictions(tmp_path / "predictions.sqlite", kept=50)
    rows = [Prediction(f"{number:03d}", 0.0, "[]") for number in range(120)]
    for start in range(0, 120, 20):
        its.add("a:1", rows[start : start + 20])
        its.add("a:1", rows[start : start + 20])
    ids = [one.id for one in rows]
    assert list(its.unused("a:1", ids)) == ids[70:]
    assert its.unused("b:1", ids) == {}
    its.mark_used(ids[:100])
    its.add("a:1", rows[90:100])  # read again
    assert list(its.unused("a:1", ids)) == ids[100:]


@pytest.mark.parametrize("merge_seconds", [0.0, 120.0])
def test_quick_labels_are_read_once_records_have_waited_for_each_other(
    watch, store, draw, merge_seconds
):
    """The record of an image is held back as long; before it is given, its label is of nothing."""
    its = watch(record_merge_seconds=merge_seconds)
    records = draw(its.manifest.tag, 20, 1)
    now = datetime.now(UTC)
    with store.state.begin() as connection:
        connection.execute(
            feedback.insert(),
            [
                {
                    "prediction_id": one.id,
                    "client": "anna",
                    "labels": json.dumps(one.labels),
                    "model": one.model,
                    "received_at": now,
                }
                for one in records
            ],
        )
    for seconds in (9, merge_seconds, merge_seconds + 9):  # it is not known yet
        assert its.join(store.state, now + timedelta(seconds=seconds)) == []
    its.take(to_table(records))
    its.join(store.state, now + timedelta(seconds=merge_seconds + 11))
    assert (its.labelled.evidence.images, its.labelled.left_out) == (20, {})
