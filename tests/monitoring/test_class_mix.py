"""A watch tells a change of the class mix from its own window, and adjusts a version to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from model.bundle import CONFORMAL_SETS, OUTLIER, REFERENCE, REPORT, TRUTH, SetsSummary, save_arrays
from model.conformal_sets import ConformalSets, load_sets
from model.decision import Calibration, Thresholds, probabilities
from model.errors import MonitorError
from model.state import audit
from monitoring import class_mix as class_mix_module
from monitoring.adjusted_version import make_adjusted_version
from monitoring.evidence import STREAMS
from monitoring.records import read_records, to_table, write_records
from monitoring.reference_accuracy import atc_reference
from monitoring.settings import MonitoringSettings
from monitoring.streams import logits_of
from monitoring.truth import true_targets, truth_arrays
from monitoring.watch import Watch

CLASSES = ("circle", "square", "star")
SHARES = (0.6, 0.3, 0.1)
AS_IT_IS = Calibration(method="temperature", temperature=1.0)
MOST_PROBABLE = Thresholds(objective="most probable class")


@pytest.fixture
def records(world, draw):
    """`records(tag, count, seed, shares)`: of a world; gives them with their classes."""

    def make(tag: str, count: int, seed: int, shares=(1 / 3, 1 / 3, 1 / 3)):
        its = world(count, seed, shares)
        sample = its.sample
        p_values = np.random.default_rng(seed).random(count)
        made = [
            replace(
                record,
                logits=its.logits[row],
                labels=[CLASSES[int(its.logits[row].argmax())]],
                confidence=float(sample.chances[row].max()),
                brightness=float(sample.numbers["brightness"][row]),
                sharpness=float(sample.numbers["sharpness"][row]),
                outlier_score=float(sample.numbers["outlier_score"][row]),
                p_value=float(p_values[row]),
                flagged=bool(p_values[row] <= 0.01),
            )
            for row, record in enumerate(draw(tag, count, seed))
        ]
        return made, its.targets

    return make


@pytest.fixture
def champion(store, make_manifest, fill_bundle, records):
    """`champion(truth=True)`: a bundle whose calibration split is of a world."""

    def make(*, truth: bool = True):
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            made, targets = records("calibration", 3_000, 99)
            arrays = {
                f"edges.{name}": np.linspace(-3, 3, 31, dtype=np.float32)
                for name in STREAMS
                if name != "predicted_class"
            }
            arrays["edges.confidence"] = np.linspace(0.35, 0.99, 31, dtype=np.float32)
            arrays["edges.brightness"] = np.linspace(0.2, 0.9, 31, dtype=np.float32)
            arrays["edges.sharpness"] = np.linspace(0.01, 0.4, 31, dtype=np.float32)
            arrays["calibration"] = np.sort([its.outlier_score for its in made]).astype(np.float32)
            save_arrays(directory / OUTLIER, arrays)
            write_records(Path(directory / REFERENCE), made)
            (directory / REPORT).write_text("<html><main>the card</main></html>")
            chances = probabilities(np.stack([its.logits for its in made]), AS_IT_IS, "single")
            sets = ConformalSets.fit(chances, targets, "single")
            save_arrays(directory / CONFORMAL_SETS, sets.to_arrays())
            if truth:
                save_arrays(directory / TRUTH, truth_arrays(targets))
            seal(
                make_manifest(
                    version=version,
                    classes=CLASSES,
                    calibration=AS_IT_IS,
                    thresholds=MOST_PROBABLE,
                    prediction_sets=SetsSummary(
                        calibration_images=3_000,
                        highest_coverage=0.999,
                        promise="a promise",
                        statement="a statement",
                        measured_on="test",
                    ),
                )
            )
        return store.load(store.promote(f"shapes:{version}"))

    return make


@pytest.fixture
def watch(store, champion):
    """At its beginning."""
    return Watch(champion(), MonitoringSettings(home=store.home, false_alarm_images=1e12))


def test_it_is_told_of_the_last_images_whether_or_not_they_were_sampled(watch, records):
    assert "0 images are too few" in watch.class_mix_change()["sentence"]
    made, _ = records(watch.manifest.tag, 400, 1)
    watch.take(to_table(made))
    assert not watch.class_mix_change()["recognised"]
    made, _ = records(watch.manifest.tag, 1_500, 2, SHARES)
    for start in range(0, 1_500, 300):
        watch.take(to_table(made[start : start + 300]))
    found = watch.class_mix_change()
    assert found["recognised"]
    assert 900 <= found["images"] <= 1_000, "since the change, where that is seen in the window"
    json.dumps(found, allow_nan=False)
    watch.reset(1, 0.0)
    assert not watch.class_mix_change()["recognised"]


def test_it_is_not_computed_anew_for_every_image(watch, records, monkeypatch):
    made, _ = records(watch.manifest.tag, 300, 1)
    watch.take(to_table(made[:250]))
    first = watch.class_mix_change()
    watch.take(to_table(made[250:260]))
    assert watch.class_mix_change() is first
    monkeypatch.setattr(class_mix_module, "EXPLAINED_EVERY_IMAGES", 5)
    assert watch.class_mix_change() is not first


def test_images_that_depend_on_each_other_tell_no_class_mix(watch, records):
    made, _ = records(watch.manifest.tag, 300, 1, SHARES)
    copies = [
        replace(its, image_sha256=f"{place}-{copy}", perceptual_hash=(7919 * place + copy) ** 3)
        for place, its in enumerate(made)
        for copy in range(3)
    ]
    watch.take(to_table(copies))
    assert watch.why_no_promise is not None
    assert watch.class_mix_change()["sentence"].startswith("The class mix cannot be told: ")


def test_atc_takes_its_accuracy_from_the_true_labels_or_else_from_the_manifest(champion):
    labelled, bare = champion(), champion(truth=False)
    assert true_targets(bare) is None
    right = np.mean(
        [
            its["labels"][0] == CLASSES[target]
            for its, target in zip(
                read_records(str(labelled.path(REFERENCE)), ["labels"]).to_pylist(),
                true_targets(labelled).tolist(),
                strict=True,
            )
        ]
    )
    sure = read_records(str(bare.path(REFERENCE)), ["confidence"])["confidence"].to_numpy()
    assert (sure > atc_reference(labelled).at_value).mean() == pytest.approx(right, abs=0.001)
    assert (sure > atc_reference(bare).at_value).mean() == pytest.approx(0.9, abs=0.001)
    assert (sure > atc_reference(bare).at_low).mean() == pytest.approx(0.88, abs=0.001)


# The adjusted version


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


def test_its_evidence_does_not_find_the_class_mix_changed(adjusted, store, records):
    before, after, _ = adjusted
    settings = MonitoringSettings(home=store.home, false_alarm_images=1e5)
    made, _ = records(before.manifest.tag, 600, 7, SHARES)
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
    assert found == pytest.approx(probabilities(logits, AS_IT_IS, "single"), abs=0.02)


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
