"""Packing: the gates of the engines, and streams that say what decisions say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from sklearn.metrics import f1_score

from model.bundle import NETWORK, DataSummary
from model.decision import Calibration, Thresholds, decide, probabilities
from model.engines import Outputs
from model.errors import DataError
from model.images import InputSpec
from model.network import create_network, weights_of
from monitoring.outlier import OutlierModel
from training.evaluate import Decider
from training.export import run_network
from training.findings import Findings, Rows, SplitOutputs, Trained
from training.objectives import Cost, FScore, Target
from training.packing import (
    _calibrate_and_tune,
    _flags_too_often,
    _gate,
    _threshold_evidence,
    _torch_gate,
)
from training.self_check import SelfCheck
from training.thresholds import ThresholdChoice, tune_none_threshold

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
def by_torch(trained: Trained) -> Outputs:
    return run_network(trained.network, trained.validation.images)


@pytest.fixture(scope="module")
def decider(trained: Trained) -> Decider:
    fit, calibration = (
        run_network(trained.network, rows.images) for rows in (trained.fit, trained.calibration)
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


def test_the_torch_gate_runs_the_exported_weights(
    trained: Trained, by_torch: Outputs, decider: Decider, tmp_path: Path
) -> None:
    save_file(weights_of(trained.network), tmp_path / NETWORK)
    gate = _torch_gate(decider, trained, tmp_path, by_torch)
    assert gate.passed
    assert gate.label_agreement == 1
    other = create_network("small-resnet", 3, SPEC, seed=1)
    save_file(weights_of(other), tmp_path / NETWORK)
    gate = _torch_gate(decider, trained, tmp_path, by_torch)
    assert not gate.passed
    assert gate.largest_probability_difference > 0.001


def test_a_gate_refuses_an_engine_that_flags_far_too_often(
    trained: Trained, by_torch: Outputs, decider: Decider
) -> None:
    # The same labels from embeddings that lie elsewhere.
    moved = Outputs(by_torch.logits, by_torch.embedding + 50)
    right, wrong = (
        _gate("f32", decider, trained.validation, by_torch, outputs)
        for outputs in (by_torch, moved)
    )
    assert right.passed
    assert wrong.label_agreement == 1
    assert wrong.flagged_share == 1
    assert not wrong.passed


def flags(count: int, of: int = 400) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.arange(of) < count


def test_the_flagged_share_may_be_twice_alpha_and_chance_more(decider: Decider) -> None:
    assert not _flags_too_often(flags(16), decider)  # 4 %: twice alpha
    assert not _flags_too_often(flags(26), decider)  # more than 26 of 400 by chance: 0.7 %
    assert _flags_too_often(flags(40), decider)


def test_an_alpha_that_cannot_flag_is_not_held_to_a_rate(decider: Decider) -> None:
    assert not _flags_too_often(flags(400), replace(decider, alpha=0.001))


def findings(decider: Decider, logits: np.ndarray, choice: ThresholdChoice | None) -> Findings:
    nothing = Rows(np.zeros((0, 28, 28, 3), np.uint8), np.zeros(0, np.int64))
    outputs = Outputs(logits, np.zeros((len(logits), 2), np.float32))
    return Findings(
        decider=decider,
        choice=choice,
        self_check=SelfCheck((), True, ""),
        gates={},
        outputs=SplitOutputs(nothing, outputs, outputs, outputs, None),
        test_metrics=None,
        validation_metrics={},
    )


def test_evidence_for_none_counts_the_unlabelled_rows_that_get_no_label(
    trained: Trained, decider: Decider
) -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
    logits = np.array([sure, unsure, unsure, unsure, sure], np.float32)
    targets = np.array([0, 0, -1, -1, -1])  # of the last three, two get no label
    choice = tune_none_threshold(np.array([[0.8, 0.1, 0.1]]), np.array([0]), bootstrap=2)
    its = replace(decider, thresholds=choice.to_thresholds())
    for rows, share in ((slice(0, 5), 2 / 3), (slice(0, 2), None)):
        validation = Rows(trained.validation.images[:5][rows], targets[rows])
        found = findings(its, logits[rows], choice)
        evidence = _threshold_evidence(replace(trained, validation=validation), found)
        assert evidence["none_share_of_unlabelled"] == share
        assert evidence["value"] == choice.value


def test_without_a_threshold_there_is_no_evidence(trained: Trained, decider: Decider) -> None:
    logits = np.zeros((40, 3), np.float32)
    assert _threshold_evidence(trained, findings(decider, logits, None)) == {}


def several(rows: int = 200) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(3).random((rows, 3)) < 0.3).astype(np.int64)


def tuned(
    trained: Trained, targets: np.ndarray, logits: np.ndarray, **changes: Any
) -> tuple[Calibration, Thresholds, ThresholdChoice]:
    """Of several labels, as packing calibrates and tunes them."""
    images = np.zeros((len(targets), 28, 28, 3), np.uint8)
    its = replace(trained, task="multi", validation=Rows(images, targets), **changes)
    outputs = Outputs(logits.astype(np.float32), np.zeros((len(targets), 2), np.float32))
    calibration, thresholds, choice = _calibrate_and_tune(its, outputs)
    assert choice is not None
    return calibration, thresholds, choice


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


def test_a_repeated_image_counts_once_for_the_bank() -> None:
    rows = random_images(4, seed=0)
    repeated = Rows(rows.images[[0, 1, 0, 2, 0]], rows.targets[[0, 1, 0, 2, 0]], tuple("abaca"))
    assert repeated.distinct().names == ("a", "b", "c")
    assert np.array_equal(repeated.distinct().images, rows.images[:3])
    assert rows.distinct() is rows
