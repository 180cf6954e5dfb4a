"""A version adjusted to another class mix: as good as it says, consistent, and no champion yet."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import select

from model.bundle import OUTLIER, REFERENCE, REPORT, TRUTH, save_arrays
from model.conformal_sets import load_sets
from model.decision import Calibration, Thresholds, probabilities
from model.errors import MonitorError
from model.state import audit
from monitoring.adjusted_version import make_adjusted_version
from monitoring.records import read_records, to_table, write_records
from monitoring.settings import MonitoringSettings
from monitoring.streams import logits_of
from monitoring.truth import true_targets, truth_arrays
from monitoring.watch import Watch

CLASSES = ("circle", "square", "star")
SHARES = (0.6, 0.3, 0.1)
AS_IT_IS = Calibration(method="temperature", temperature=1.0)


@pytest.fixture
def adjusted(store, champion):
    """The champion, and the version adjusted to `SHARES`."""
    before = champion()
    shares = dict(zip(CLASSES, SHARES, strict=True))
    tag, sentence = make_adjusted_version(store, before, shares, CLASSES, "a test")
    return before, store.load(store.find(tag)), sentence


def test_it_is_as_much_better_on_the_new_class_mix_as_it_says(adjusted, world):
    before, after, sentence = adjusted
    fresh = world(20_000, 5, SHARES)
    accuracy = {
        its.manifest.tag: float(
            (
                probabilities(fresh.logits, its.manifest.calibration, "single").argmax(axis=1)
                == fresh.targets
            ).mean()
        )
        for its in (before, after)
    }
    assert accuracy[after.manifest.tag] > accuracy[before.manifest.tag] + 0.01
    metric = after.manifest.metrics["accuracy"]
    assert metric.low <= accuracy[after.manifest.tag] <= metric.high
    assert f"{metric.value:.3f}" in sentence
    assert after.manifest.metrics_split == "calibration"


def test_its_reference_comes_in_the_new_class_mix_with_the_new_answers(adjusted):
    _, after, sentence = adjusted
    targets = true_targets(after)
    assert np.bincount(targets) / len(targets) == pytest.approx(SHARES, abs=0.03)
    kept = read_records(str(after.path(REFERENCE)))
    assert len(kept) == len(targets) < 3_000
    chances = probabilities(logits_of(kept), after.manifest.calibration, "single")
    assert kept["confidence"].to_numpy() == pytest.approx(chances.max(axis=1))
    assert kept["labels"].to_pylist() == [[CLASSES[its]] for its in chances.argmax(axis=1)]
    assert len(after.arrays(OUTLIER)["calibration"]) == len(kept)
    assert after.manifest.outlier.calibration_images == len(kept)
    assert load_sets(after).image_count == after.manifest.prediction_sets.calibration_images
    assert "Adjusted." in after.path(REPORT).read_text()
    assert f"evidence begins from {len(kept)} calibration images" in sentence


def test_its_evidence_does_not_find_the_class_mix_changed(adjusted, store, of_world):
    before, after, _ = adjusted
    settings = MonitoringSettings(home=store.home, false_alarm_images=1e5)
    made, _ = of_world(before.manifest.tag, 600, 7, SHARES)
    raised = {}
    for its in (before, after):
        watch = Watch(its, settings)
        chances = probabilities(
            np.stack([one.logits for one in made]), its.manifest.calibration, "single"
        )
        answered = [
            replace(one, labels=[CLASSES[int(row.argmax())]], confidence=float(row.max()))
            for one, row in zip(made, chances, strict=True)
        ]
        raised[its.manifest.tag] = bool(watch.take(to_table(answered)))
    assert raised == {before.manifest.tag: True, after.manifest.tag: False}


def test_it_is_registered_as_a_challenger_and_the_champion_stays(adjusted, store):
    before, after, sentence = adjusted
    assert store.champion("shapes").tag == before.manifest.tag
    assert after.manifest.training["adjusted"]["from"] == before.manifest.tag
    with store.state.connect() as connection:
        said = connection.execute(select(audit).where(audit.c.action == "challenger")).one()
    assert said.subject == after.manifest.tag
    assert said.detail == f"{sentence} (a test)"
    store.promote(after.manifest.tag)
    assert store.rollback("shapes").tag == before.manifest.tag


def test_adjusting_twice_goes_on_from_the_first(adjusted, store, world):
    _, after, _ = adjusted
    back = dict.fromkeys(CLASSES, 1 / 3)
    tag, _ = make_adjusted_version(store, after, back, CLASSES, "it changed back")
    again = store.load(store.find(tag)).manifest
    logits = world(500, 5).logits
    found = probabilities(logits, again.calibration, "single")
    assert found == pytest.approx(probabilities(logits, AS_IT_IS, "single"), abs=0.05)


def test_a_bundle_without_true_labels_is_refused_with_a_way_out(store, champion):
    shares = dict(zip(CLASSES, SHARES, strict=True))
    with pytest.raises(MonitorError, match="before bundles kept the true labels"):
        make_adjusted_version(store, champion(truth=False), shares, CLASSES, "a test")
    with pytest.raises(MonitorError, match="name 1 classes"):
        make_adjusted_version(store, champion(), {"circle": 1.0}, CLASSES, "a test")
    with pytest.raises(MonitorError, match="not between 0 and 1"):
        make_adjusted_version(store, champion(), shares | {"star": float("nan")}, (), "a test")


def test_a_full_disk_leaves_no_half_of_it(store, champion, monkeypatch):
    bundle = champion()
    known = {its.tag for its in store.versions()}
    monkeypatch.setattr(
        shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    shares = dict(zip(CLASSES, SHARES, strict=True))
    with pytest.raises(Exception, match="No space left"):
        make_adjusted_version(store, bundle, shares, CLASSES, "a test")
    assert {its.tag for its in store.versions()} == known


def test_of_several_labels_the_odds_of_those_that_changed_are_multiplied(
    store, make_manifest, fill_bundle, draw
):
    rng = np.random.default_rng(0)
    true = rng.random((2_000, 3)) < 0.5
    logits = (4 * (rng.normal(0, 0.5, true.shape) + true - 0.5)).astype(np.float32)
    as_it_is = Calibration(method="platt", slopes=(1, 1, 1), intercepts=(0, 0, 0))
    made = [
        replace(
            its,
            logits=logits[row],
            labels=[name for name, logit in zip(CLASSES, logits[row], strict=True) if logit >= 0],
        )
        for row, its in enumerate(draw("calibration", 2_000, 1))
    ]
    with store.registering("shapes") as (version, directory, seal):
        fill_bundle(directory)
        scores = np.sort([its.outlier_score for its in made]).astype(np.float32)
        save_arrays(directory / OUTLIER, {"calibration": scores})
        write_records(directory / REFERENCE, made)
        save_arrays(directory / TRUTH, truth_arrays(true.astype(np.float32)))
        thresholds = Thresholds(objective="macro_f1", value=0.5)
        changes = {"task": "multi", "calibration": as_it_is, "thresholds": thresholds}
        seal(make_manifest(version=version, classes=CLASSES, **changes))
    before = store.load(store.find(f"shapes:{version}"))
    shares = {"circle": 0.1, "square": 0.5, "star": 0.5}
    tag, sentence = make_adjusted_version(store, before, shares, ["circle"], "a test")
    after = store.load(store.find(tag))
    added = after.manifest.calibration.intercepts
    assert added == pytest.approx((np.log(1 / 9), 0, 0), abs=0.02)
    assert true_targets(after).mean(axis=0) == pytest.approx([0.1, 0.5, 0.5], abs=0.04)
    metric = after.manifest.metrics["micro_f1"]
    assert metric.low < metric.value < metric.high
    assert "micro F1" in sentence
