"""The monitor follows the champion's records, forgets nothing, and obeys a reset."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet
import pytest
from sqlalchemy import select

from model.errors import MonitorError
from model.state import alarms, audit
from monitoring.evidence import STREAMS
from monitoring.monitor import Monitor, ask_for_reset
from monitoring.promise import LEAST_DEPENDENCE_IMAGES
from monitoring.records import write_records
from monitoring.settings import MonitoringSettings


@pytest.fixture
def settings(store):
    """One writer, whose records need not wait for those of others."""
    return MonitoringSettings(home=store.home, record_merge_seconds=0.0)


@pytest.fixture
def put(store):
    """`put(records)`: one more file, as the service writes it."""
    files = iter(range(1_000_000))

    def write(records) -> None:
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{next(files):06d}.parquet", records)

    return write


def shown(monitor: Monitor) -> dict:
    return monitor.status()


def test_it_waits_for_a_champion_and_then_for_images(store, settings, watched):
    monitor = Monitor(settings, store)
    monitor.poll()
    assert (shown(monitor)["state"], shown(monitor)["model"]) == ("waiting", None)
    tag = watched()
    monitor.poll()
    assert (shown(monitor)["state"], shown(monitor)["model"]) == ("waiting", tag)
    assert "no images" in shown(monitor)["sentence"]


def test_clean_images_raise_no_alarm_and_dark_ones_do_once(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 600, 1))
    assert monitor.poll() == []
    assert shown(monitor)["state"] == "ok"
    assert shown(monitor)["images_sampled"] == shown(monitor)["images_served"] == 600
    put(draw(tag, 300, 2, darker=0.2))
    (alarm,) = monitor.poll()
    assert (alarm.stream, 600 < alarm.after_images < 700) == ("brightness", True)
    status = shown(monitor)
    assert status["state"] == "drift"
    assert "brightness changed" in status["sentence"]
    assert status["accuracy_estimate"]["valid"] is False
    put(draw(tag, 300, 3, darker=0.2))
    assert monitor.poll() == []  # drift stays drift, and is not told again
    with store.state.connect() as connection:
        rows = connection.execute(select(alarms)).all()
    assert [(row.model, row.stream) for row in rows] == [(tag, "brightness")]


def test_drift_stays_until_someone_resets_it_and_says_why(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 300, 1, darker=0.3))
    monitor.poll()
    assert shown(Monitor(settings, store))["model"] is None  # not polled yet
    assert ask_for_reset(settings, "a lamp was out") == tag
    monitor.poll()
    assert (shown(monitor)["state"], shown(monitor)["images_since_reset"]) == ("ok", 0)
    assert len(shown(monitor)["alarms"]) == 1
    again = Monitor(settings, store)
    again.poll()
    assert shown(again)["state"] == "ok"  # the reset is not obeyed twice, nor forgotten
    with store.state.connect() as connection:
        said = connection.execute(select(audit).where(audit.c.action == "monitor reset")).one()
    assert (said.subject, said.detail) == (tag, "a lamp was out")


def test_a_monitor_that_is_killed_goes_on_exactly_where_it_was(
    store, settings, watched, put, draw, monkeypatch
):
    tag = watched()
    steady, killed = Monitor(settings, store), Monitor(settings, store)
    monkeypatch.setattr(steady, "save", lambda: None)  # one state file for the other
    for number in range(1, 6):
        put(draw(tag, 70, number))
        steady.poll()
        killed.poll()
        killed = Monitor(settings, store)
    killed.poll()
    assert shown(killed) == shown(steady)
    assert killed.watch.to_state() == steady.watch.to_state()


def test_an_alarm_that_is_read_again_after_a_crash_is_written_once(
    store, settings, watched, put, draw, monkeypatch
):
    tag = watched()
    put(draw(tag, 300, 1, darker=0.3))
    crashing = Monitor(settings, store)
    monkeypatch.setattr(crashing, "save", lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        crashing.poll()
    assert len(Monitor(settings, store).poll()) == 1
    with store.state.connect() as connection:
        assert len(connection.execute(select(alarms)).all()) == 1


def test_an_alarm_is_written_once_though_records_came_between_a_crash_and_the_next_look(
    store, settings, watched, put, draw, monkeypatch
):
    tag = watched()
    put(draw(tag, 300, 1, darker=0.3))
    crashing = Monitor(settings, store)
    monkeypatch.setattr(crashing, "save", lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        crashing.poll()
    put(draw(tag, 40, 0))  # of earlier times: the alarm falls on another image now
    again = Monitor(settings, store)
    again.poll()
    with store.state.connect() as connection:
        rows = connection.execute(select(alarms)).all()
    assert [row.time for row in rows] == [its.time for its in again.watch.alarms]
    assert len(rows) == 1


def test_an_alarm_that_was_saved_and_not_written_is_written_at_the_next_look(
    store, settings, watched, put, draw, monkeypatch
):
    tag = watched()
    put(draw(tag, 300, 1, darker=0.3))
    crashing = Monitor(settings, store)
    monkeypatch.setattr(crashing, "_write_alarms", lambda: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        crashing.poll()
    for _ in range(2):
        assert Monitor(settings, store).poll() == []
    with store.state.connect() as connection:
        assert [row.model for row in connection.execute(select(alarms))] == [tag]


def test_a_reset_reaches_a_version_that_is_not_the_champion_now(
    store, settings, watched, put, draw
):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 300, 1, darker=0.3))
    monitor.poll()
    ask_for_reset(settings, "a lamp was out")
    watched()
    monitor.poll()
    store.rollback("shapes")
    monitor.poll()
    assert (shown(monitor)["model"], shown(monitor)["state"]) == (tag, "ok")


@pytest.fixture
def after_now(draw):
    """`after_now(tag, count, seed)`: records of images that come after all that was done so far."""

    def after(tag: str, count: int, seed: int) -> list:
        now = datetime.now(UTC)
        return [
            replace(its, time=now + timedelta(milliseconds=number + 1))
            for number, its in enumerate(draw(tag, count, seed))
        ]

    return after


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_reset_falls_between_the_same_records_whenever_the_monitor_looks(
    store, settings, watched, put, draw, after_now, monkeypatch, in_parts
):
    tag = watched()
    steady, late = Monitor(settings, store), Monitor(settings, store)
    monkeypatch.setattr(steady, "save", lambda: None)  # one state file for the other
    if in_parts:
        monkeypatch.setattr("monitoring.monitor.LIMIT_UNFOLDED_BYTES", 1)  # a file at a time
    for seed in (1, 2):
        put(draw(tag, 100, seed, darker=0.3))
        steady.poll()
    ask_for_reset(settings, "a lamp was out")
    steady.poll()
    put(after_now(tag, 80, 3))
    steady.poll()
    for _ in range(3):
        late.poll()
    assert late.watch.to_state() == steady.watch.to_state()
    status = shown(late)
    assert (status["state"], status["images_since_reset"]) == ("ok", 80)
    assert (len(status["alarms"]), status["images_sampled"]) == (1, 280)


def test_images_from_before_a_reset_that_come_after_it_are_no_evidence(
    store, settings, watched, put, draw, after_now
):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 300, 1, darker=0.3))
    monitor.poll()
    ask_for_reset(settings, "a lamp was out")
    put(after_now(tag, 70, 2))
    monitor.poll()
    put(draw(tag, 150, 3, darker=0.3))
    assert monitor.poll() == []
    status = shown(monitor)
    assert (status["state"], status["images_since_reset"]) == ("ok", 70)
    assert status["images_served"] == 520


def test_records_are_left_for_the_champion_that_is_not_known_yet(
    store, settings, watched, put, draw, register
):
    tag = watched()
    store.promote(register("others"))
    monitor = Monitor(settings, store)
    put(draw(tag, 20, 1))
    monitor.poll()
    assert shown(monitor)["state"] == "waiting"
    assert "several models have a champion (others, shapes)" in shown(monitor)["sentence"]
    told = Monitor(settings.model_copy(update={"model": "shapes"}), store)
    told.poll()
    assert shown(told)["images_served"] == 20


def test_evidence_past_the_line_on_few_images_is_not_all_is_well(
    store, settings, watched, put, draw
):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 45, 1, darker=0.4))
    assert monitor.poll() == []
    status = shown(monitor)
    assert max(status["log10_evidence"][name] for name in STREAMS) > status["alarm_line"]
    assert status["state"] == "cannot promise"
    assert f"45 of {LEAST_DEPENDENCE_IMAGES} images" in status["sentence"]
    put(draw(tag, LEAST_DEPENDENCE_IMAGES, 2, darker=0.4))
    (alarm,) = monitor.poll()
    assert alarm.after_images == LEAST_DEPENDENCE_IMAGES


def test_records_of_times_that_cannot_be_are_refused_and_hold_up_nothing(
    store, settings, watched, put, draw
):
    tag = watched()
    monitor = Monitor(settings, store)
    ancient, future = (datetime(year, 1, 1, tzinfo=UTC) for year in (1969, 9999))
    good = draw(tag, 20, 1)
    put([*good, replace(draw(tag, 1, 2)[0], time=ancient), replace(good[0], time=future)])
    monitor.poll()
    assert shown(monitor)["last_image"].startswith("2026-03-04")
    assert monitor.records_total == {"refused": 2, "watched": 20}
    again = Monitor(settings, store)
    again.poll()
    assert again.records_total == {"refused": 2, "watched": 20}


def test_records_of_other_versions_are_counted_apart(store, settings, watched, put, draw):
    former, tag = watched(), watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 10, 1) + draw(former, 5, 2) + draw("shapes:20200101-00000000", 3, 3))
    monitor.poll()
    assert monitor.records_total == {"watched": 10, "other version": 5, "unknown version": 3}
    assert shown(monitor)["images_served"] == 10


def test_records_of_many_unknown_versions_are_looked_up_once_and_told_in_one_line(
    store, settings, watched, put, draw, caplog, monkeypatch
):
    tag = watched()
    monitor = Monitor(settings, store)
    others = [f"shapes:20200101-{number:08x}" for number in range(50)]
    put([replace(its, model=one) for its, one in zip(draw(tag, 50, 1), others, strict=True)])
    looked = []
    versions = store.versions
    monkeypatch.setattr(store, "versions", lambda: looked.append(1) or versions())
    monitor.poll()
    assert monitor.records_total == {"unknown version": 50}
    (said,) = [its for its in caplog.messages if "not in the store" in its]
    assert said.endswith(f"versions not in the store (50): {', '.join(others[:5])}, ...")
    assert looked == [1]


def test_what_is_no_record_of_ours_is_named_counted_and_loses_nothing_beside_it(
    store, settings, watched, put, draw, caplog
):
    tag = watched()
    monitor = Monitor(settings, store)
    good = draw(tag, 30, 1)
    put(good[:10])
    put(good[10:20] + good[5:15])  # ten of them again
    put(good[20:] + draw("shapes:20200101-00000000", 3, 3))
    folder = store.home / "records" / "date=2026-03-04"
    content = (folder / "000000.parquet").read_bytes()
    (folder / "torn.parquet").write_bytes(content[:-50])
    table = pyarrow.parquet.read_table(folder / "000001.parquet", partitioning=None)
    other = table.replace_schema_metadata({"plumbline_schema": "2"})
    pyarrow.parquet.write_table(other, folder / "of-another-version.parquet")
    for _ in range(2):
        monitor.poll()
        monitor = Monitor(settings, store)
    monitor.poll()
    assert monitor.records_total == {"watched": 30, "duplicate": 10, "unknown version": 3}
    assert (monitor.refused_files, shown(monitor)["images_served"]) == (2, 30)
    for said in (
        "torn.parquet is left out",
        "of-another-version.parquet is left out: it holds no prediction records: it is of schema",
        "10 records are left out: those with their ids came before",
        "3 records are left out: they are of versions not in the store (1): shapes:2020",
    ):
        assert caplog.text.count(said) == 1, said


def test_a_reset_waits_for_the_records_from_before_it_that_are_held_back(
    store, settings, watched, put, draw, after_now
):
    tag = watched()
    settings = settings.model_copy(update={"record_merge_seconds": 1.0})
    monitor = Monitor(settings, store)
    put(draw(tag, 300, 1, darker=0.3))
    monitor.poll()
    assert shown(monitor)["state"] == "drift"
    put(after_now(tag, 40, 2))  # within these 40 milliseconds
    time.sleep(0.1)
    ask_for_reset(settings, "a lamp was out")
    monitor.poll()
    assert (shown(monitor)["state"], shown(monitor)["images_served"]) == ("drift", 300)
    time.sleep(1.1)
    monitor.poll()
    status = shown(monitor)
    assert (status["state"], status["images_since_reset"]) == ("ok", 0)
    assert (status["images_served"], status["images_sampled"]) == (340, 340)


def test_records_that_cannot_be_this_versions_are_refused_and_counted(
    store, settings, watched, put, draw, caplog
):
    tag = watched()
    monitor = Monitor(settings, store)
    few, dark, good = draw(tag, 4, 1), draw(tag, 6, 2), draw(tag, 20, 3)
    named, many = draw(tag, 3, 4), draw(tag, 2, 5)
    put(
        [replace(its, logits=its.logits[:2]) for its in few]
        + [replace(its, brightness=float("nan")) for its in dark]
        + [replace(its, labels=["a cat"]) for its in named]
        + [replace(its, labels=its.labels * 4) for its in many]
        + good
    )
    monitor.poll()
    assert monitor.records_total == {"refused": 15, "watched": 20}
    assert "15 records that say they are of" in caplog.text


@pytest.mark.parametrize("logits", [[3e38, -3e38, 0], [float("nan"), 0, 0], [0, float("inf"), 0]])
def test_logits_that_give_no_probabilities_are_refused_and_hold_up_nothing(
    store, settings, watched, put, draw, logits
):
    tag = watched(temperature=0.8)  # 3e38 / 0.8 is more than a float32 holds
    monitor = Monitor(settings, store)
    good = draw(tag, 20, 1)
    put([*good, replace(draw(tag, 1, 2)[0], logits=np.array(logits, np.float32))])
    for _ in range(2):
        monitor.poll()
    assert monitor.records_total == {"refused": 1, "watched": 20}
    assert Monitor(settings, store).records_total == {"refused": 1, "watched": 20}, "it is saved"


def test_what_was_read_and_not_saved_is_read_again(
    store, settings, watched, put, draw, monkeypatch
):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 50, 1))
    monitor.poll()
    put(draw(tag, 30, 2))
    save = Monitor.save
    monkeypatch.setattr(Monitor, "save", lambda self: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        monitor.poll()
    monkeypatch.setattr(Monitor, "save", save)
    monitor.poll()
    assert monitor.records_total == {"watched": 80}
    assert shown(monitor)["images_served"] == 80


def test_a_promotion_begins_anew_and_a_rollback_goes_on(store, settings, watched, put, draw):
    first = watched()
    monitor = Monitor(settings, store)
    put(draw(first, 40, 1))
    monitor.poll()
    second = watched()
    put(draw(second, 25, 2))
    monitor.poll()
    assert (shown(monitor)["model"], shown(monitor)["images_served"]) == (second, 25)
    store.rollback("shapes")
    monitor.poll()
    assert (shown(monitor)["model"], shown(monitor)["images_served"]) == (first, 40)


def test_images_that_come_in_runs_bring_no_alarm_but_no_promise(
    store, settings, watched, put, draw
):
    """Each image three times, a little changed, so that the sampler takes it for another."""
    tag = watched()
    runs = []
    for number, image in enumerate(draw(tag, 600, 1)):
        for copy in range(3):
            its = replace(
                image,
                id=image.id[:-4] + f"{(3 * number + copy) % 65536:04x}",
                image_sha256=f"{number}-{copy}",
                perceptual_hash=image.perceptual_hash ^ (0b1111_1111 << 16 * copy),
            )
            runs.append(its)
    monitor = Monitor(settings, store)
    put(runs)
    assert monitor.poll() == []
    assert shown(monitor)["images_sampled"] == 1800
    assert shown(monitor)["state"] == "cannot promise"
    assert "67% of the last sampled images come again" in shown(monitor)["sentence"]
    put(draw(tag, 600, 2))
    monitor.poll()
    status = shown(monitor)
    assert (status["state"], status["images_since_reset"] < 600) == ("ok", True)


def test_a_camera_that_sends_one_picture_is_no_sample(store, settings, watched, put, draw):
    tag = watched()
    settings = settings.model_copy(update={"sample_window_images": 100})
    monitor = Monitor(settings, store)
    (picture,) = draw(tag, 1, 1)
    put([replace(picture, id=f"{number}") for number in range(200)])
    monitor.poll()
    status = shown(monitor)
    assert (status["state"], status["images_sampled"]) == ("cannot promise", 1)
    assert "repeat others" in status["sentence"]


def test_a_damaged_state_is_refused_with_the_way_back(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 10, 1))
    monitor.poll()
    path = store.home / "monitor" / "state.json"
    path.write_text(path.read_text().replace("watched", "watchet"))
    with pytest.raises(MonitorError, match="is damaged"):
        Monitor(settings, store)
    assert path.is_file()


def test_a_state_of_other_settings_is_refused(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 10, 1))
    monitor.poll()
    other = settings.model_copy(update={"sample_window_images": 77})
    with pytest.raises(MonitorError, match="window was 1000 images and is set to 77"):
        Monitor(other, store).poll()


def test_a_new_normal_is_audited_and_obeyed(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 400, 1, darker=0.3))
    monitor.poll()
    ask_for_reset(settings, "darker packaging", "new normal")
    again = Monitor(settings, store)
    again.poll()
    assert shown(again)["state"] == "ok"
    since = 400 - LEAST_DEPENDENCE_IMAGES
    assert since - 40 <= again.watch.evidence.first_images <= since + 1
    with store.state.connect() as connection:
        said = select(audit.c.detail).where(audit.c.action == "monitor reset, new normal")
        assert connection.scalars(said).all() == ["darker packaging"]


def test_the_promise_is_told_in_days_of_todays_traffic(store, settings, watched, put, draw):
    tag = watched()
    monitor = Monitor(settings, store)
    put(draw(tag, 600, 1))  # one a second
    monitor.poll()
    status = shown(monitor)
    assert status["sampled_a_day"] == pytest.approx(86_400, rel=0.01)
    assert status["false_alarm_promise"]["chance"] == 0.05
    assert status["false_alarm_promise"]["days"] == pytest.approx(5_000 / 86_400, rel=0.01)
    words = "within 1.3 hours is at most 5%."
    assert status["sentence"].endswith(words)
    put(draw(tag, 300, 2, darker=0.3))
    (alarm,) = monitor.poll()
    assert shown(monitor)["sentence"].startswith(alarm.sentence)
    assert "sampled images a day) the chance of a false alarm within" in shown(monitor)["sentence"]


def test_a_small_calibration_split_still_keeps_the_promise_and_says_how_small(
    store, settings, watched, put, draw
):
    tag = watched(20)
    monitor = Monitor(settings, store)
    put(draw(tag, 400, 1))
    assert monitor.poll() == []
    assert shown(monitor)["calibration_images"] == 20
    assert "began with only 20 calibration images: the promise holds" in shown(monitor)["sentence"]
