"""A watch withdraws its promise for images that come again, and for no others."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from monitoring.alarm import Alarm
from monitoring.discrepancy import Discrepancy
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.records import to_table
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch

SECOND = timedelta(seconds=1)


@pytest.fixture
def watch(store, watched):
    """`watch(seed)`: one of the same version, at its beginning; the manifest's hash is the seed."""
    tag = watched()
    bundle = store.load(store.find(tag))

    def begin(seed: int = 0, **settings: float) -> Watch:
        seeded = replace(bundle, manifest_sha256=f"{seed:016x}")
        return Watch(seeded, MonitoringSettings(home=store.home, **settings))

    return begin


def past_the_sampler(records, seed: int):
    """The same images, as the sampler cannot know them again."""
    rng = np.random.default_rng(seed)
    return [
        replace(its, image_sha256=rng.bytes(32).hex(), perceptual_hash=int.from_bytes(rng.bytes(8)))
        for its in records
    ]


def a_little_changed(records, seed: int):
    """No answer is the same to the second decimal, none is far from it."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            its,
            logits=(its.logits + rng.normal(0, 0.1, 3)).astype(np.float32),
            brightness=its.brightness + float(rng.normal(0, 0.005)),
            sharpness=abs(its.sharpness + float(rng.normal(0, 0.003))),
        )
        for its in records
    ]


@pytest.mark.parametrize("change", [None, a_little_changed])
@pytest.mark.parametrize("group", [10, 40])
def test_groups_that_come_three_times_bring_no_alarm_but_no_promise(watch, draw, group, change):
    its = watch(seed=57)  # by which evidence grew fastest, of eighty
    images = draw(its.manifest.tag, 480, 1)
    withdrawn_at = None
    for start in range(0, len(images), group):
        for copy in range(3):
            records = past_the_sampler(images[start : start + group], 3 * start + copy)
            records = change(records, 3 * start + copy) if change else records
            assert its.take(to_table(records)) == []
            if its.state == "cannot promise":
                withdrawn_at = withdrawn_at or its.images_sampled
    assert its.images_sampled == its.images_served == 1440
    assert its.state == "cannot promise"
    assert withdrawn_at <= 240


def test_runs_of_ten_images_of_one_class_bring_no_alarm_but_no_promise(watch, draw):
    its = watch(seed=57)
    by_class: dict[str, list] = {}
    for record in draw(its.manifest.tag, 900, 1):
        by_class.setdefault(record.labels[0], []).append(record)
    runs = [group[start : start + 10] for group in by_class.values() for start in range(0, 250, 10)]
    order = np.random.default_rng(0).permutation(len(runs))
    assert its.take(to_table([record for place in order for record in runs[place]])) == []
    assert its.state == "cannot promise"
    assert "depend on each other" in its.sentence


def test_a_client_with_nine_tenths_of_the_traffic_does_not_make_up_the_evidence(watch, draw):
    its = watch(seed=57, sample_client_images=10)
    many, few = draw(its.manifest.tag, 1_800, 1), draw(its.manifest.tag, 200, 2)
    start = many[0].time
    records = sorted(
        [
            *(replace(one, client="loud", time=start + n * SECOND) for n, one in enumerate(many)),
            *(
                replace(one, client=f"quiet {n % 5}", time=start + 9 * n * SECOND + SECOND / 2)
                for n, one in enumerate(few)
            ),
        ],
        key=lambda its: its.time,
    )
    assert its.take(to_table(records)) == []
    assert its.state == "ok"
    # Ten a minute of it, in half an hour, beside all of the others'.
    assert 500 <= its.images_sampled <= 200 + 10 * 31


@pytest.mark.parametrize("darker", [0.0, 0.15])
def test_it_makes_no_difference_how_many_records_come_at_once(watch, draw, darker):
    """Over a mark to go back to, an alarm in the middle, or images that come again."""
    one, many = watch(), watch()
    tag = one.manifest.tag
    clean = draw(tag, 480, 1)
    records = to_table([*clean, *clean[:100], *draw(tag, 150, 2, darker=darker)])
    alarms = many.take(records)
    sizes = np.random.default_rng(0).integers(1, 45, 60).cumsum()
    starts = [0, *(int(its) for its in sizes if its < len(records))]
    found = []
    for start, end in pairwise([*starts, len(records)]):
        found += one.take(records.slice(start, end - start))
        if start == starts[len(starts) // 2]:
            again = watch()
            again.restore(json.loads(json.dumps(one.to_state())))
            again.window = one.window  # it only explains, and is not kept over a restart
            one = again
    assert found == alarms
    assert bool(alarms) == (darker > 0)
    assert one.images_sampled == 630
    assert one.to_state() == many.to_state()


@pytest.mark.slow
def test_independent_images_keep_their_promise(watch, draw):
    # How often alarms are false is `test_evidence`'s: here the line is out of their reach.
    for seed in range(20):
        its = watch(false_alarm_images=1e12)
        records = to_table(draw(its.manifest.tag, 2_000, seed + 1))
        for start in range(0, 2_000, 100):
            assert its.take(records.slice(start, 100)) == []
            assert its.state == "ok"
        assert its.promise.repeats.share == 0


def at(records, first: datetime):
    """The same images, a second apart from then on."""
    return [replace(its, time=first + number * SECOND) for number, its in enumerate(records)]


def test_images_of_a_clock_an_hour_behind_are_no_evidence_and_no_silence(watch, draw):
    its = watch()
    tag, now = its.manifest.tag, datetime.now(UTC)
    its.take(to_table(at(draw(tag, 200, 1), now - timedelta(hours=2))))
    its.reset(1, now.timestamp())
    behind = at(draw(tag, 1_000, 2), now - timedelta(hours=1))
    its.take(to_table(behind[:150]))  # may be late
    assert its.state == "ok"
    its.take(to_table(behind[150:300]))
    again = watch()
    again.restore(json.loads(json.dumps(its.to_state())))
    for one in (its, again):
        assert (one.state, one.evidence.images) == ("cannot promise", 0)
        assert "300 say that they are from before it: a clock may be behind" in one.sentence
    its.take(to_table(at(draw(tag, 201, 3), now + SECOND)))  # it was set right
    assert (its.state, its.evidence.images) == ("ok", 201)


@pytest.mark.parametrize(
    ("minutes", "images", "state"),
    [(9, 50, "ok"), (11, 50, "cannot promise"), (11, 10, "ok")],
)
def test_late_records_are_taken_for_a_clock_behind_when_the_reset_is_long_ago(
    watch, draw, minutes, images, state
):
    its = watch()
    reset = datetime.now(UTC) - timedelta(minutes=minutes)
    its.reset(1, reset.timestamp())
    its.take(to_table(at(draw(its.manifest.tag, images, 1), reset - timedelta(hours=1))))
    assert its.state == state


@pytest.mark.parametrize("keeping", [False, True])
def test_after_a_reset_clean_images_are_held_to_clean_ones_unless_told_otherwise(
    watch, draw, keeping
):
    its = watch()
    tag = its.manifest.tag
    assert its.take(to_table(draw(tag, 1_000, 1))) == []
    (alarm,) = its.take(to_table(draw(tag, 300, 2, darker=0.3)))
    its.reset(1, alarm_seconds(alarm) - 1e9, "keep" if keeping else "back")
    held = sum(its.evidence.to_state()["counts"][0])
    assert (held > its.calibration_images + 1_000) == keeping
    alarms = its.take(to_table(draw(tag, 2_000, 3)))
    assert bool(alarms) == keeping


def test_images_that_come_again_in_a_drift_do_not_keep_it_in_the_bag(watch, draw):
    its = watch()
    tag = its.manifest.tag
    its.take(to_table(draw(tag, 1_600, 1)))
    (_,) = its.take(to_table(draw(tag, 300, 2, darker=0.3)))
    again = draw(tag, 60, 3, darker=0.3)
    for copy in range(4):
        its.take(to_table(past_the_sampler(again, copy)))
    assert its.promise.holds is False
    its.take(to_table(draw(tag, 600, 4, darker=0.3)))
    assert its.promise.holds is True
    its.reset(1, 0.0)
    assert sum(its.evidence.held("brightness")) <= its.calibration_images + 600


def test_a_new_normal_holds_images_to_those_since_the_alarm_alone(watch, draw):
    its = watch()
    tag = its.manifest.tag
    its.take(to_table(draw(tag, 600, 1)))
    dark = draw(tag, 600, 2, darker=0.3)
    (alarm,) = its.take(to_table(dark))
    since = 1_200 - alarm.after_images
    its.reset(1, alarm_seconds(alarm) - 1e9, "new normal")
    assert since - 20 < its.evidence.first_images <= since
    assert its.take(to_table(draw(tag, 1_000, 3, darker=0.3))) == []
    assert its.state == "ok"
    (back,) = its.take(to_table(draw(tag, 300, 4)))  # the old normal is a drift now
    assert back.stream == "brightness"


def test_an_alarm_in_the_first_minute_says_nothing_of_days(watch, draw):
    its = watch()
    records = draw(its.manifest.tag, 120, 1, darker=0.3)
    first = records[0].time
    half = [replace(record, time=first + (record.time - first) / 2) for record in records]
    (alarm,) = its.take(to_table(half))
    assert its.sentence == alarm.sentence


def test_a_new_normal_right_after_the_alarm_begins_with_next_to_nothing_and_says_so(watch, draw):
    its = watch()
    tag = its.manifest.tag
    its.take(to_table(draw(tag, 120, 1, darker=0.3)))
    assert its.state == "drift"
    its.reset(1, 0.0, "new normal")
    its.take(to_table(draw(tag, 100, 2, darker=0.3)))
    assert "The evidence began with only 0 images: the promise holds" in its.sentence


def alarm_seconds(alarm: Alarm) -> float:
    return datetime.fromisoformat(alarm.time).timestamp()


# What changed


def test_an_alarm_is_explained_and_the_explanation_outlives_a_restart(watch, draw):
    its = watch()
    tag = its.manifest.tag
    its.take(to_table(draw(tag, 400, 1)))
    assert its.explain()["sentence"] == "The last images look like those of calibration."
    assert its.explained is None
    (_, *_) = its.take(to_table(draw(tag, 300, 2, darker=0.3)))
    assert its.explained is not None
    assert "brightness" in [one["name"] for one in its.explained["columns"] if one["changed"]]
    assert its.explained["first"]["stream"] == "brightness"
    assert its.explained["images"] <= its.drift.after_images - 390, "since the change alone"
    again = watch()
    again.restore(its.to_state())
    assert again.explained == its.explained
    assert again.explain() == {"images": 0}  # the window begins anew
    its.reset(1, 0.0)
    assert (its.explained, len(its.window)) == (None, 0)


@pytest.fixture
def of_components(store, watched, draw, monkeypatch):
    """`of_components(kept, **settings)`: what is told of them, and how often a null was drawn.

    Of the same images with the same reference, by a bundle that keeps such a discrepancy.
    """

    def tell(kept, **settings):
        bundle = store.load(store.find(watched(discrepancy=kept)))
        its = Watch(bundle, MonitoringSettings(home=store.home, **settings))
        its.take(to_table(draw(its.manifest.tag, 200, 1)))
        drawn, fit = [], Discrepancy.fit
        with monkeypatch.context() as patch:
            patch.setattr(Discrepancy, "fit", lambda given: drawn.append(given) or fit(given))
            columns = its.explain()["columns"]
        return next(one for one in columns if one["name"] == "components"), len(drawn)

    return tell


def test_components_are_held_to_the_null_that_the_bundle_keeps(of_components):
    told, drawn = of_components(True)
    assert drawn == 0
    older, drawn_then = of_components(None)
    assert drawn_then == 1
    assert told == older


def test_a_null_of_other_images_is_not_used(of_components):
    """The sampler of the monitor leaves fewer; or the bundle was put together by hand."""
    rng = np.random.default_rng(0)
    others = Discrepancy.fit(rng.normal(9, 1, (500, RECORD_COMPONENTS)))
    assert of_components(others.to_arrays()) == of_components(None)
    assert of_components(True, sample_near_bits=20) == of_components(None, sample_near_bits=20)


def test_a_damaged_null_is_told_and_the_monitor_draws_its_own(of_components, caplog):
    with caplog.at_level(logging.WARNING, "plumbline.monitor"):
        damaged = of_components({"null": np.zeros((8, 500), np.float32)})
    assert "discrepancy.safetensors cannot be used: it lacks digest, directions" in caplog.text
    assert "; the monitor draws its own" in caplog.text
    assert damaged == of_components(None)


def test_a_state_of_before_there_were_intervals_is_gone_on_with(watch, draw):
    its = watch()
    its.take(to_table(draw(its.manifest.tag, 100, 1)))
    state = its.to_state()
    state["expected"] = [row[:3] for row in state["expected"]]
    again = watch()
    again.restore(state)
    assert again.accuracy_estimate()["cbpe"] is None
    again.take(to_table(draw(its.manifest.tag, 50, 2)))
    estimate = again.accuracy_estimate()
    low, high = estimate["atc_interval"]
    assert low < estimate["atc"] < high


def test_a_state_of_before_there_were_explanations_is_gone_on_with(watch, draw):
    its = watch()
    its.take(to_table(draw(its.manifest.tag, 100, 1)))
    state = its.to_state()
    del state["explained"]
    again = watch()
    again.restore(state)
    assert again.images_served == 100
