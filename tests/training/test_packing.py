"""Packing: what the manifest says of thresholds, and what the outlier bank is made of."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from model.bundle import INT8, REPORT, DataSummary
from model.decision import Calibration, Thresholds, decide, probabilities
from model.engines import Outputs, load_engine
from model.errors import DataError, EngineError
from model.images import InputSpec
from model.network import create_network
from model.whole_embedding import WholeEmbedding
from monitoring.discrepancy import load_discrepancy, null_sizes
from monitoring.outlier import KNN_AND_VIM, OutlierModel
from monitoring.sampling import usual_sampler
from monitoring.streams import components_of, reference_records
from training import engine_runs, gates
from training.deciding import _calibrate, _tune, decide_by
from training.evaluate import Decider
from training.export import run_network
from training.findings import Findings, Rows, SplitOutputs, Trained
from training.none_choice import Judged, choose_none
from training.objectives import Cost, FScore, Target
from training.outlier_choice import PENULTIMATE, Candidate, auroc
from training.packing import _prediction_sets, _threshold_evidence, pack
from training.self_check import LEAST_TO_CHOOSE, SelfCheck, deal_halves, made_foreign_images
from training.thresholds import ThresholdChoice
from training.wrong_labels import OWN_PROBABILITIES

TORCH = ("torch-f32", "torch-bf16")
CLASSES = ("a", "b", "c")
SPEC = InputSpec(size=28, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
ARGMAX = Thresholds(objective="most probable class")


def random_images(count: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 256, (count, 1, 1, 3))
    noise = rng.integers(-40, 40, (count, 28, 28, 3))
    images = np.clip(shades + noise, 0, 255).astype(np.uint8)
    return Rows(images, rng.integers(0, 3, count))


@pytest.fixture(scope="module")
def trained() -> Trained:
    """An untrained network; packing does not care."""
    rows = random_images(40, 0)
    return Trained(
        name="gate",
        task="single",
        none_allowed=False,
        classes=CLASSES,
        architecture="small-resnet",
        network=create_network("small-resnet", 3, SPEC, seed=0),
        input=SPEC,
        fit=random_images(200, 1),
        validation=rows,
        calibration=random_images(200, 2),
        test=rows,
        data=DataSummary(source="made up", fingerprint="0", images={}),
        settings={},
        curves={},
        alpha=0.02,
        seed=0,
    )


@pytest.fixture(scope="module")
def decider(trained: Trained) -> Decider:
    fit, calibration = (
        run_network(WholeEmbedding(trained.network), rows.images)
        for rows in (trained.fit, trained.calibration)
    )
    outlier = OutlierModel.fit(fit.embedding, fit.logits)
    return Decider(
        task="single",
        classes=CLASSES,
        calibration=Calibration(method="temperature"),
        thresholds=ARGMAX,
        outlier=outlier.calibrated(outlier.score(calibration.embedding, calibration.logits)[0]),
        alpha=trained.alpha,
    )


def test_every_engine_is_gated_and_int8_kept_where_it_passed(trained: Trained, store) -> None:
    told: list[str] = []
    bundle = pack(replace(trained, int8=True), store, told.append)
    manifest = bundle.manifest
    measured = {*manifest.engines, *manifest.engines_left_out}
    assert measured == {*(f"openvino-{its}" for its in ("f32", "bf16", "int8")), *TORCH}
    for gate in manifest.engines.values():
        assert gate.images == 40
        assert gate.images_per_second > 0
        assert gate.accuracy_lost is not None
        assert set(gate.measured) == {"label_agreement", "accuracy", "flagged_share", "ece"}
        for name, its in gate.measured.items():
            assert its.value == getattr(gate, name)
            assert its.low <= its.value <= its.high
            assert its.count == 40
    assert manifest.engines["torch-f32"].label_agreement == 1
    assert (INT8 in manifest.files) is manifest.engines["openvino-int8"].passed
    assert load_engine("openvino", bundle).run(trained.validation.images[:2]).logits.shape == (2, 3)
    assert set(manifest.outlier.foreign) == set(manifest.outlier.self_check)
    for by_kind in (manifest.outlier.candidates | manifest.outlier.baselines).values():
        assert set(manifest.outlier.self_check) <= set(by_kind)
        for its in by_kind.values():
            assert 0 <= its.low <= its.value <= its.high <= 1
            assert its.count > 0
    for measure in manifest.outlier.foreign.values():
        for its in (measure.auroc, measure.flagged):
            assert 0 <= its.low <= its.value <= its.high <= 1
            assert its.count == 250
    chosen = f"{manifest.outlier.detector} on {manifest.outlier.embedding}"
    for kind in ("noise", "shuffled patches", "rendered shapes"):
        assert manifest.outlier.candidates[chosen][kind].count == 250
    report = bundle.path(REPORT).read_text()
    engines = report.split('<section id="engines">')[1].split("</section>")[0]
    assert engines.count("<tr>") == 1 + len(measured)
    assert ">serves<" in engines
    reference = components_of(reference_records(bundle, usual_sampler()))
    kept = load_discrepancy(bundle, reference)
    assert kept is not None, "the monitor need not draw what chance does to windows"
    assert kept.sizes.tolist() == null_sizes(len(reference))


def test_where_every_gate_fails_the_rest_is_fitted_to_float32_and_int8_goes(
    trained: Trained, store, monkeypatch
) -> None:
    monkeypatch.setattr(gates, "FEW_OTHER_LABELS", -1)
    monkeypatch.setattr(gates, "LEAST_LABEL_AGREEMENT", 1.1)
    told: list[str] = []
    manifest = pack(replace(trained, int8=True), store, told.append).manifest
    assert not any(gate.passed for gate in manifest.engines.values())
    assert not [name for name in manifest.files if "int8" in name]
    assert "running every split with OpenVINO f32" in told
    assert sum("did not pass its gate and is refused: " in line for line in told) == len(
        manifest.engines
    )


def test_what_cannot_be_quantised_leaves_the_other_engines(
    trained: Trained, store, monkeypatch
) -> None:
    def fail(directory, images):
        (directory / INT8).write_text("half")
        raise EngineError("nncf cannot quantise the network: no")

    monkeypatch.setattr(engine_runs, "write_int8", fail)
    manifest = pack(replace(trained, int8=True), store).manifest
    assert manifest.engines_left_out["openvino-int8"] == "nncf cannot quantise the network: no"
    assert "openvino-int8" not in manifest.engines
    assert INT8 not in manifest.files
    assert manifest.engines["openvino-f32"].passed


def findings(decider: Decider, logits: np.ndarray, choice: ThresholdChoice | None) -> Findings:
    nothing = Rows(np.zeros((0, 28, 28, 3), np.uint8), np.zeros(0, np.int64))
    outputs = Outputs(logits, np.zeros((len(logits), 2), np.float32))
    return Findings(
        decider=decider,
        choice=choice,
        none=None,
        self_check=SelfCheck((), True, "", Candidate(PENULTIMATE, KNN_AND_VIM, {}), ()),
        gates={},
        outputs=SplitOutputs(nothing, outputs, outputs, outputs, None, {}, {}, ()),
        test_metrics=None,
        validation_metrics={},
    )


def test_evidence_for_none_counts_the_unlabelled_rows_that_get_no_label(
    trained: Trained, decider: Decider
) -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
    logits = np.array([sure, unsure, unsure, unsure, sure], np.float32)
    targets = np.array([0, 0, -1, -1, -1])  # of the last three, two get no label
    choice = choose_none(Judged(np.full(40, 0.8), np.ones(40)), [], loss=0.05).threshold
    its = replace(decider, thresholds=choice.to_thresholds())
    for rows, share in ((slice(0, 5), 2 / 3), (slice(0, 2), None)):
        validation = Rows(trained.validation.images[:5][rows], targets[rows])
        found = findings(its, logits[rows], choice)
        evidence = _threshold_evidence(replace(trained, validation=validation), found)
        assert evidence["none_share_of_unlabelled"] == share
        assert evidence["value"] == choice.value
        assert (evidence["split"], evidence["images"]) == ("validation", 2)


def test_without_a_threshold_there_is_no_evidence(trained: Trained, decider: Decider) -> None:
    logits = np.zeros((40, 3), np.float32)
    assert _threshold_evidence(trained, findings(decider, logits, None)) == {}


@pytest.mark.parametrize("count", [1, 3, 4, 7, 500])
def test_of_a_foreign_kind_no_image_both_chooses_and_is_reported(count: int) -> None:
    numbers = np.arange(count, dtype=np.float32)[:, None]
    kinds = {"given": Outputs(numbers, numbers)}
    chooses, reported = deal_halves(kinds, seed=0)
    first = chooses["given"].logits.ravel().tolist() if chooses else []
    second = reported["given"].logits.ravel().tolist()
    assert sorted(first + second) == numbers.ravel().tolist()
    assert len(first) == (count // 2 if count >= LEAST_TO_CHOOSE else 0)
    if count == 500:
        assert first != deal_halves(kinds, seed=1)[0]["given"].logits.ravel().tolist()


def test_foreign_images_that_are_reported_choose_neither_detector_nor_threshold(
    trained: Trained,
) -> None:
    its = replace(trained, none_allowed=True, alpha=None)
    whole = WholeEmbedding(trained.network)
    names = ("fit", "validation", "calibration")
    fit, validation, calibration = (run_network(whole, getattr(its, at).images) for at in names)
    kinds = made_foreign_images(its.validation.images, np.random.default_rng(0), count=20)
    foreign = {kind: run_network(whole, images) for kind, images in kinds.items()}
    chooses, reported = deal_halves(foreign, seed=0)
    others = {kind: Outputs(*(0 * part for part in given)) for kind, given in reported.items()}
    decided, again = (
        decide_by(
            its,
            SplitOutputs(its.fit, fit, validation, calibration, None, chooses, told, whole.parts),
        )
        for told in (reported, others)
    )
    assert decided.none is not None
    assert again.none is not None
    assert decided.outlier.candidates == again.outlier.candidates
    assert decided.outlier.chosen == again.outlier.chosen
    assert (decided.none.alpha, decided.none.threshold.value) == (
        again.none.alpha,
        again.none.threshold.value,
    )
    assert decided.foreign != again.foreign
    for kind in kinds:
        assert decided.foreign[kind].count == decided.none.found[kind].count == 10
        scores = (decided.decider.scores(given) for given in (reported[kind], validation))
        assert decided.foreign[kind].value == auroc(*scores)


def several(rows: int = 200) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(3).random((rows, 3)) < 0.3).astype(np.int64)


def tuned(
    trained: Trained, targets: np.ndarray, logits: np.ndarray, **changes: Any
) -> tuple[Calibration, Thresholds, ThresholdChoice]:
    """Of several labels, as packing calibrates and tunes them."""
    images = np.zeros((len(targets), 28, 28, 3), np.uint8)
    its = replace(trained, task="multi", validation=Rows(images, targets), **changes)
    outputs = Outputs(logits.astype(np.float32), np.zeros((len(targets), 2), np.float32))
    calibration = _calibrate(its, outputs)
    choice = _tune(its, probabilities(outputs.logits, calibration, "multi"))
    return calibration, choice.to_thresholds(), choice


@pytest.mark.parametrize("value", [0, 1])
def test_validation_labels_that_are_all_equal_are_one_clear_error(
    trained: Trained, value: int
) -> None:
    with pytest.raises(DataError, match="nothing can be chosen by them; put images both with"):
        tuned(trained, np.full((50, 3), value), np.zeros((50, 3)))


@pytest.mark.parametrize("value", [0, 1])
def test_a_column_of_one_value_is_calibrated_with_the_others_and_named(
    trained: Trained, value: int
) -> None:
    targets = several()
    targets[:, 1] = value
    logits = np.random.default_rng(4).normal(4 * targets - 2, 2)
    calibration, thresholds, choice = tuned(trained, targets, logits)
    assert np.isfinite(calibration.slopes + calibration.intercepts).all()
    assert "on validation: b." in choice.sentence
    assert "b" not in thresholds.per_class
    assert thresholds.value == choice.value


def test_a_label_that_every_judged_row_has_leaves_a_card_that_judges_the_others(
    trained: Trained, store
) -> None:
    def with_labels(rows: Rows, seed: int) -> Rows:
        targets = (np.random.default_rng(seed).random((len(rows), 3)) < 0.3).astype(np.int64)
        targets[:, 1] = 1
        return Rows(rows.images, targets, tuple(str(row) for row in range(len(rows))))

    names = ("fit", "validation", "calibration", "test")
    splits = {name: with_labels(getattr(trained, name), at) for at, name in enumerate(names)}
    bundle = pack(replace(trained, task="multi", **splits), store)  # type: ignore[arg-type]
    card = bundle.path(REPORT).read_text().split("Labels that are likely wrong")[1]
    assert html.unescape(card).count(OWN_PROBABILITIES) == 2  # of validation and of test


def test_saturated_logits_are_calibrated_and_decided_by(trained: Trained) -> None:
    targets = several()
    logits = np.where(targets, 1e4, -1e4)
    logits[:20] *= -1
    calibration, thresholds, choice = tuned(trained, targets, logits)
    assert np.isfinite(calibration.slopes + calibration.intercepts).all()
    chances = probabilities(logits.astype(np.float32), calibration, "multi")
    labels = decide(chances, thresholds, CLASSES, "multi")
    assert labels[30:] == [[CLASSES[at] for at in np.flatnonzero(row)] for row in targets[30:]]
    assert choice.score == pytest.approx(f1_score(targets, logits > 0, average="macro"))


def test_packing_tunes_for_what_was_asked(trained: Trained) -> None:
    targets = several()
    logits = np.random.default_rng(4).normal(4 * targets - 2, 2)
    for objective in (FScore(2), Target("precision", 0.6), Cost((1.0,) * 3, (5.0,) * 3)):
        _, thresholds, choice = tuned(trained, targets, logits, objective=objective)
        assert thresholds.objective == choice.objective == objective.name
    _, thresholds, choice = tuned(trained, targets, logits, per_class_thresholds=False)
    assert [each.reason for each in choice.per_class] == ["one threshold was asked for"] * 3


def test_sets_are_fitted_on_calibration_and_measured_on_test_or_else_on_validation(
    trained: Trained, decider: Decider
) -> None:
    rng = np.random.default_rng(0)
    calibration, validation, test = (
        Outputs(rng.normal(size=(count, 3)).astype(np.float32), np.zeros((count, 2), np.float32))
        for count in (200, 40, 40)
    )
    found = findings(decider, validation.logits, None)
    outputs = replace(found.outputs, calibration=calibration)
    sets, summary = _prediction_sets(trained, replace(found, outputs=outputs))
    true = decider.probabilities(calibration)[np.arange(200), trained.calibration.targets]
    assert np.array_equal(sets.scores, np.sort(true))
    assert (summary.measured_on, summary.measured[0].images) == ("validation", 40)
    outputs = replace(outputs, test=test)
    _, on_test = _prediction_sets(trained, replace(found, outputs=outputs))
    assert on_test.measured_on == "test"
    assert on_test.measured != summary.measured


def test_a_repeated_image_counts_once_for_the_bank() -> None:
    rows = random_images(4, seed=0)
    repeated = Rows(rows.images[[0, 1, 0, 2, 0]], rows.targets[[0, 1, 0, 2, 0]], tuple("abaca"))
    assert repeated.distinct().names == ("a", "b", "c")
    assert np.array_equal(repeated.distinct().images, rows.images[:3])
    assert rows.distinct() is rows
