"""Recalibration: from a random sample that looks at nothing, and refused for any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from scipy import stats
from sqlalchemy import select

from model.bundle import OUTLIER, REFERENCE, REPORT, save_arrays
from model.conformal_sets import load_sets
from model.decision import Calibration, Thresholds
from model.errors import MonitorError
from model.state import audit, feedback, write_transaction
from monitoring import recalibration
from monitoring.outlier import conformal_p_values
from monitoring.random_sample import Period, random_sample
from monitoring.recalibration import Confirmed, confirmed_of, recalibrate
from monitoring.records import read_records, to_table, write_records
from monitoring.settings import MonitoringSettings
from monitoring.truth import true_targets
from monitoring.watch import Watch

CLASSES = ("circle", "square", "star")
ALL = Period(None, datetime(2026, 11, 1, tzinfo=UTC))


@pytest.fixture
def settings(store) -> MonitoringSettings:
    return MonitoringSettings(home=store.home, false_alarm_images=1e4)


@pytest.fixture
def put(settings) -> Callable[..., None]:
    """`put(records, name)`: as the service would have written them."""

    def write(records, name: str = "a") -> None:
        folder = settings.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{name}.parquet", records)

    return write


@pytest.fixture
def say(store) -> Callable[..., None]:
    """`say(labels by id, client)`."""

    def write(labels: dict[str, list[str]], client: str = "anna") -> None:
        rows = [
            {
                "prediction_id": its,
                "client": client,
                "labels": json.dumps(said),
                "model": "shapes",
                "received_at": datetime.now(UTC),
            }
            for its, said in labels.items()
        ]
        with write_transaction(store.state) as connection:
            connection.execute(feedback.insert(), rows)

    return write


@pytest.fixture
def shifted(of_world):
    """`shifted(bundle, count, seed)`: production that is another, and stays so; with true labels.

    Its flags are those of the bundle.
    """

    def make(bundle, count: int, seed: int):
        made, targets = of_world(bundle.manifest.tag, count, seed)
        known = bundle.arrays(OUTLIER)["calibration"]
        scores = np.array([its.outlier_score for its in made], np.float32) + np.float32(1.5)
        p_values = conformal_p_values(known, scores)
        return [
            replace(
                its,
                outlier_score=float(score),
                p_value=float(p_value),
                flagged=bool(p_value <= 0.01),
                brightness=its.brightness - 0.1,
            )
            for its, score, p_value in zip(made, scores, p_values, strict=True)
        ], targets

    return make


def ids_of(found) -> list[str]:
    return found.records["id"].to_pylist()


# --- the sample ------------------------------------------------------------------------------


def test_the_sample_looks_at_nothing_that_the_model_said(settings, champion, of_world, put):
    bundle = champion()
    made, _ = of_world(bundle.manifest.tag, 400, 1)
    put(made)
    before = random_sample(settings, bundle, 50, ALL)
    order = np.random.default_rng(0).permutation(len(made))
    answers = (
        "logits",
        "labels",
        "confidence",
        "outlier_score",
        "p_value",
        "flagged",
        "components",
    )
    put(
        [
            replace(its, **{name: getattr(made[other], name) for name in answers})
            for its, other in zip(made, order, strict=True)
        ]
    )
    after = random_sample(settings, bundle, 50, ALL)
    assert ids_of(after) == ids_of(before)
    assert after.records["outlier_score"] != before.records["outlier_score"]


def test_more_images_are_the_same_ones_and_some_more(settings, champion, of_world, put):
    bundle = champion()
    made, _ = of_world(bundle.manifest.tag, 300, 1)
    put(made)
    few, more, most = (random_sample(settings, bundle, count, ALL) for count in (20, 200, 900))
    assert ids_of(more)[:20] == ids_of(few)
    assert ids_of(most)[:200] == ids_of(more)
    assert sorted(ids_of(most)) == sorted(its.id for its in made)
    assert (len(few), few.recorded) == (20, 300)


def test_every_prediction_is_as_likely_to_be_drawn(settings, champion, draw, put):
    """Eight kinds of 250, flagged ones among them, over ten versions: chi-squared at 0.1 %."""
    bundle = champion()
    made = draw(bundle.manifest.tag, 2_000, 3)
    kinds = {its.id: place * 8 // 2_000 for place, its in enumerate(sorted(made, key=by_score))}
    put(made)
    seen = np.zeros(8, int)
    for number in range(10):
        version = replace(bundle, manifest_sha256=f"{number:064x}")
        drawn = ids_of(random_sample(settings, version, 200, ALL))
        seen += np.bincount([kinds[its] for its in drawn], minlength=8)
    assert stats.chisquare(seen).pvalue > 0.001


def by_score(record) -> float:
    return record.outlier_score


def test_it_is_the_same_however_records_lie_in_files_and_each_once(
    settings, champion, of_world, put
):
    bundle = champion()
    made, _ = of_world(bundle.manifest.tag, 300, 1)
    put(made)
    whole = ids_of(random_sample(settings, bundle, 60, ALL))
    for place in range(0, 300, 50):
        put(made[place : place + 50], f"part-{place}")  # copies of what lies there already
    assert ids_of(random_sample(settings, bundle, 60, ALL)) == whole


def test_it_is_of_the_champion_and_of_the_period_alone(settings, champion, of_world, draw, put):
    bundle = champion()
    made, _ = of_world(bundle.manifest.tag, 100, 1)
    put(made)
    put(draw("shapes:20200101-00000000", 100, 2), "other")
    misfit = replace(made[0], id="0" * 32, logits=np.zeros(7, np.float32))
    put([misfit], "misfit")
    found = random_sample(settings, bundle, 500, ALL)
    assert sorted(ids_of(found)) == sorted(its.id for its in made)
    since, until = made[20].time, made[30].time
    found = random_sample(settings, bundle, 500, Period(since, until))
    assert sorted(ids_of(found)) == sorted(its.id for its in made[20:30])
    with pytest.raises(MonitorError, match="is recorded from 2026-"):
        random_sample(settings, bundle, 5, Period(since - timedelta(days=9), since - timedelta(8)))


def test_a_period_that_is_none_is_refused():
    now = datetime.now(UTC)
    with pytest.raises(MonitorError, match="the period is empty"):
        Period(now, now)
    with pytest.raises(MonitorError, match="lies in the future"):
        Period(None, now + timedelta(hours=1))


# --- the version -----------------------------------------------------------------------------


def test_it_flags_alpha_of_the_images_that_it_was_recalibrated_for_and_raises_no_alarm(
    settings, store, champion, shifted, put, say
):
    before = champion()
    made, targets = shifted(before, 2_000, 1)
    put(made)
    said = {its.id: [CLASSES[true]] for its, true in zip(made, targets, strict=True)}
    say({its: said[its] for its in ids_of(random_sample(settings, before, 1_000, ALL))})
    done = recalibrate(settings, store, 1_000, ALL, "another camera")
    after = store.load(store.find(done.version))
    fresh, _ = shifted(before, 1_000, 2)
    scores = np.array([its.outlier_score for its in fresh], np.float32)
    flagged = {
        its.manifest.tag: int(
            (conformal_p_values(its.arrays(OUTLIER)["calibration"], scores) <= 0.01).sum()
        )
        for its in (before, after)
    }
    # Of n calibration images the share flagged is beta-binomial.
    low, high = stats.betabinom(1_000, 10, 991).interval(0.99)
    assert low <= flagged[after.manifest.tag] <= high
    assert flagged[before.manifest.tag] > 5 * high
    raised = {
        its.manifest.tag: Watch(its, settings).take(to_table(fresh)) for its in (before, after)
    }
    assert raised[before.manifest.tag]
    assert not raised[after.manifest.tag]


@pytest.fixture
def recalibrated(settings, store, champion, shifted, put, say):
    """The champion, the version, and what was said: 150 of the domain, 6 of none, 4 of nothing."""
    before = champion()
    made, targets = shifted(before, 160, 1)
    put(made)
    ids = ids_of(random_sample(settings, before, 160, ALL))
    true = {its.id: [CLASSES[target]] for its, target in zip(made, targets, strict=True)}
    say({its: true[its] for its in ids[10:]} | {its: [] for its in ids[4:10]})
    return before, recalibrate(settings, store, 160, ALL, "another camera"), true


def test_its_calibration_images_are_the_confirmed_ones(recalibrated, store):
    before, done, true = recalibrated
    after = store.load(store.find(done.version))
    kept = read_records(str(after.path(REFERENCE)))
    assert len(kept) == 150
    assert [CLASSES[its] for its in true_targets(after)] == [
        true[its][0] for its in kept["id"].to_pylist()
    ]
    times = kept["time"].to_pylist()
    assert times == sorted(times), "as the near-duplicate rule reads them"
    assert set(kept["client"].to_pylist()) == {"calibration"}, "no client's name in a bundle"
    scores = after.arrays(OUTLIER)["calibration"]
    assert scores == pytest.approx(np.sort(kept["outlier_score"].to_numpy()))
    # Each counts among those at least as foreign: itself, and the one to be judged.
    assert kept["p_value"].to_numpy().min() == pytest.approx(2 / 151)
    assert kept["flagged"].to_pylist() == [False] * 150
    for name, edges in before.arrays(OUTLIER).items():
        if name.startswith("edges."):
            assert np.array_equal(edges, after.arrays(OUTLIER)[name]), "of the fit split, as before"
    assert load_sets(after).image_count == 150


def test_the_manifest_says_what_it_is_and_what_it_can_promise(recalibrated, store):
    before, done, _ = recalibrated
    manifest = store.load(store.find(done.version)).manifest
    assert manifest.training["recalibrated"] == {
        "from": before.manifest.tag,
        "images": 150,
        "since": None,
        "until": "2026-11-01T00:00:00+00:00",
        "sampled": 160,
        "none_of_the_classes": 6,
        "unanswered": 4,
        "why": "another camera",
    }
    assert manifest.outlier.calibration_images == 150
    assert manifest.outlier.smallest_alpha == pytest.approx(1 / 151)
    assert "Since recalibrated on 150 images of production" in manifest.outlier.statement
    assert manifest.prediction_sets.calibration_images == 150
    assert manifest.metrics_split == "calibration"
    for name in ("calibration", "thresholds", "classes", "engines"):
        assert getattr(manifest, name) == getattr(before.manifest, name)


def test_what_the_unanswered_could_hide_is_said(recalibrated):
    _, done, _ = recalibrated
    # One of 151 would be flagged; with four that are stranger five of 155.
    assert "4 have no usable answer" in done.sentence
    assert f"{5 / 155:.1%} of such images would be flagged and not 0.01" in done.sentence
    assert "6 show none of the classes and are left out" in done.sentence


def test_it_is_registered_as_a_challenger_and_the_champion_stays(recalibrated, store):
    before, done, _ = recalibrated
    assert store.champion("shapes").tag == before.manifest.tag
    with store.state.connect() as connection:
        said = connection.execute(select(audit).where(audit.c.action == "challenger")).one()
    assert (said.subject, said.detail) == (done.version, f"{done.sentence} (another camera)")
    assert "Recalibrated." in store.load(store.find(done.version)).path(REPORT).read_text()
    store.promote(done.version)
    assert store.rollback("shapes").tag == before.manifest.tag


def test_repeats_calibrate_the_flag_and_are_no_evidence(
    settings, store, champion, shifted, put, say
):
    """The flag is for all that is sent; evidence leaves near-duplicates out, here as there."""
    before = champion()
    made, targets = shifted(before, 200, 1)
    same = {"image_sha256": "0" * 64, "perceptual_hash": 1}
    made = [replace(its, **same) if place < 60 else its for place, its in enumerate(made)]
    put(made)
    say({its.id: [CLASSES[true]] for its, true in zip(made, targets, strict=True)})
    after = store.load(store.find(recalibrate(settings, store, 200, ALL, "a test").version))
    assert after.manifest.outlier.calibration_images == 200
    assert Watch(after, settings).calibration_images == 141


def test_a_model_that_is_worse_on_production_is_not_passed_over_in_silence(
    settings, store, asked, say
):
    """Of its calibration images 0.9 were right, by the manifest; of these far fewer."""
    _, _, true, ids = asked
    wrong = {its: [CLASSES[(CLASSES.index(true[its][0]) + 1) % 3]] for its in ids}
    say(wrong)
    done = recalibrate(settings, store, 150, ALL, "a test")
    assert "worse than 0.900 on its test images" in done.sentence
    assert "a retraining may" in done.sentence


def test_chance_alone_is_not_called_worse(settings, store, asked, say):
    _, made, _, ids = asked
    answered = {its.id: its.labels for its in made}
    say({its: answered[its] for its in ids})
    assert "worse than" not in recalibrate(settings, store, 150, ALL, "a test").sentence


# --- refusals --------------------------------------------------------------------------------


@pytest.fixture
def asked(settings, store, champion, shifted, put):
    """The champion's 300 predictions with their true labels, of which 150 are drawn."""
    bundle = champion()
    made, targets = shifted(bundle, 300, 1)
    put(made)
    true = {its.id: [CLASSES[target]] for its, target in zip(made, targets, strict=True)}
    return bundle, made, true, ids_of(random_sample(settings, bundle, 150, ALL))


def refused(settings, store, images: int = 150) -> str:
    with pytest.raises(MonitorError) as caught:
        recalibrate(settings, store, images, ALL, "a test")
    assert len(store.versions()) == 1
    return str(caught.value)


def test_labels_of_flagged_images_alone_are_refused(settings, store, asked, say):
    _, made, true, _ = asked
    flagged = [its.id for its in made if its.flagged]
    assert len(flagged) > 30
    say({its: true[its] for its in flagged})
    told = refused(settings, store)
    assert "At most 10% may be without a usable answer" in told
    assert "of 150 sampled predictions of shapes:" in told


def test_so_are_labels_of_all_but_the_flagged(settings, store, asked, say):
    _, made, true, _ = asked
    say({its.id: true[its.id] for its in made if not its.flagged})
    assert "they may be the strange ones" in refused(settings, store)


def test_a_few_left_out_for_their_flag_are_refused_though_under_a_tenth(
    settings, store, asked, say
):
    _, made, true, ids = asked
    flagged = {its.id for its in made if its.flagged}
    left_out = [its for its in ids if its in flagged][:8]
    say({its: true[its] for its in ids if its not in left_out})
    told = refused(settings, store)
    assert "Of the 8 without a usable answer 8 are flagged" in told
    assert "images chosen by their flag are no random sample" in told
    say({its: [] for its in left_out})
    assert recalibrate(settings, store, 150, ALL, "a test").images.foreign == 8


@settings_of_hypothesis(max_examples=50)
@given(st.integers(1, 60), st.data())
def test_the_chance_of_so_many_flags_is_fishers(sampled, data):
    flagged = data.draw(st.integers(0, sampled))
    unanswered = data.draw(st.integers(0, sampled))
    seen = data.draw(st.integers(max(0, flagged + unanswered - sampled), min(flagged, unanswered)))
    none = np.empty(0, np.int64)
    its = Confirmed(none, none, sampled, 0, unanswered, 0, flagged, seen)
    rest = sampled - flagged - unanswered + seen
    table = [[seen, unanswered - seen], [flagged - seen, rest]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    assert recalibration._chance_of_flags(its) == pytest.approx(expected, abs=1e-9)


def test_a_tenth_without_an_answer_is_taken_and_one_more_is_not(settings, store, asked, say):
    _, _, true, ids = asked
    say({its: true[its] for its in ids[16:]})
    assert "134 are confirmed to be of the domain" in (told := refused(settings, store))
    assert "16 have no answer" in told
    say({ids[15]: true[ids[15]]})
    assert len(recalibrate(settings, store, 150, ALL, "a test").images.rows) == 135


def test_contradicted_and_unknown_answers_confirm_nothing(settings, store, asked, say):
    bundle, _, true, ids = asked
    say({its: true[its] for its in ids})
    say({its: [] for its in ids[:10]}, "ben")
    say({ids[10]: ["oval"], ids[11]: ["star", "circle"]}, "carl")
    found = confirmed_of(store.state, bundle.manifest, random_sample(settings, bundle, 150, ALL))
    assert (len(found.rows), found.unusable, found.silent) == (138, 12, 0)
    say({its: [] for its in ids[12:16]}, "ben")
    assert "and 16 one that is contradicted" in refused(settings, store)


def test_fewer_than_99_confirmed_images_are_refused(settings, store, asked, say):
    _, _, true, ids = asked
    say({its: true[its] for its in ids[:98]})
    assert "At least 99 confirmed ones are needed" in refused(settings, store, images=98)
    say({its: [] for its in ids[98:]})
    told = refused(settings, store)
    assert "98 are confirmed to be of the domain, 52 show none of the classes" in told
    assert "nothing is ever flagged at 0.01" in told


def test_a_smaller_alpha_needs_more_of_them(settings, store, asked, say):
    _, _, true, ids = asked
    say({its: true[its] for its in ids})
    strict = settings.model_copy(update={"alpha": 0.005})
    assert "At least 199 confirmed ones are needed" in refused(strict, store)


def test_where_several_labels_may_apply_none_is_an_answer(
    settings, store, make_manifest, fill_bundle, of_world, put, say
):
    with store.registering("shapes") as (version, directory, seal):
        fill_bundle(directory)
        write_records(directory / REFERENCE, of_world("calibration", 100, 9)[0])
        platt = Calibration(method="platt", slopes=(1, 1, 1), intercepts=(0, 0, 0))
        thresholds = Thresholds(objective="macro_f1", value=0.5)
        changes = {"task": "multi", "calibration": platt, "thresholds": thresholds}
        save_arrays(directory / OUTLIER, {"calibration": np.zeros(100, np.float32)})
        seal(make_manifest(version=version, classes=CLASSES, **changes))
    bundle = store.load(store.promote(f"shapes:{version}"))
    made, _ = of_world(bundle.manifest.tag, 120, 1)
    put(made)
    say({its.id: [] if place % 3 else ["circle", "star"] for place, its in enumerate(made)})
    done = recalibrate(settings, store, 120, ALL, "a test")
    after = store.load(store.find(done.version))
    assert (done.images.foreign, len(done.images.rows)) == (0, 120)
    assert true_targets(after).sum(axis=0).tolist() == [40, 0, 40]
    assert "micro F1 of" in done.sentence


def test_a_full_disk_leaves_no_half_of_it(settings, store, asked, say, monkeypatch):
    _, _, true, ids = asked
    say({its: true[its] for its in ids})
    monkeypatch.setattr(
        shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(Exception, match="No space left"):
        recalibrate(settings, store, 150, ALL, "a test")
    assert len(store.versions()) == 1
    folder = store.bentoml_home / "models" / "shapes"
    assert len([its for its in folder.iterdir() if its.is_dir()]) == 1
