"""The gates of the engines: what each of them refuses, and what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.bundle import EngineGate
from model.decision import Calibration, Thresholds
from model.engines import Outputs
from monitoring.outlier import OutlierModel
from training.engine_runs import EngineRun
from training.evaluate import Decider
from training.findings import Rows
from training.gates import _flags_too_often, hold_to_torch, paired_loss

CLASSES = ("a", "b", "c")
COUNT = 2_000
SURE = 5.0


def one_hot(answers: np.ndarray, sure: float = SURE) -> np.ndarray:
    return (sure * np.eye(3)[answers]).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    return Rows(np.zeros((COUNT, 2, 2, 3), np.uint8), rng.integers(0, 3, COUNT))


@pytest.fixture(scope="module")
def by_torch(rows: Rows) -> Outputs:
    """Right for nine of ten images."""
    rng = np.random.default_rng(1)
    wrong = np.arange(COUNT) % 10 == 0
    answers = np.where(wrong, (rows.targets + 1) % 3, rows.targets)
    return Outputs(one_hot(answers), rng.normal(size=(COUNT, 8)).astype(np.float32))


@pytest.fixture(scope="module")
def decider(by_torch: Outputs) -> Decider:
    outlier = OutlierModel.fit(by_torch.embedding, by_torch.logits)
    fresh = np.random.default_rng(2).normal(size=(COUNT, 8)).astype(np.float32)
    return Decider(
        task="single",
        classes=CLASSES,
        calibration=Calibration(method="temperature", temperature=SURE / np.log(18)),  # to 0.9
        thresholds=Thresholds(objective="most probable class"),
        outlier=outlier.calibrated(outlier.score(fresh, by_torch.logits)[0]),
        alpha=0.02,
    )


def changed(by_torch: Outputs, rows: Rows, lost: int = 0, won: int = 0) -> Outputs:
    """Other labels: `lost` images that torch gets right are wrong, `won` the other way round."""
    answers = by_torch.logits.argmax(axis=1)
    right = np.flatnonzero(answers == rows.targets)[:lost]
    wrong = np.flatnonzero(answers != rows.targets)[:won]
    answers[right] = (answers[right] + 1) % 3
    answers[wrong] = rows.targets[wrong]
    return Outputs(one_hot(answers), by_torch.embedding)


@pytest.fixture
def gate_of(by_torch, rows, decider):
    def judge(outputs: Outputs, chosen: np.ndarray | None = None) -> EngineGate:
        run = EngineRun("openvino-int8", "int8", outputs, 100.0, chosen)
        return hold_to_torch(run, by_torch, rows, decider)

    return judge


def test_an_engine_like_torch_passes(gate_of, by_torch):
    gate = gate_of(by_torch)
    assert (gate.passed, gate.reason) == (True, "")
    assert (gate.label_agreement, gate.accuracy, gate.images) == (1, 0.9, COUNT)
    assert gate.accuracy_lost.value == 0
    assert gate.accuracy_lost.low < 0 < gate.accuracy_lost.high
    assert gate.ece < 0.01
    assert gate.images_per_second == 100


@pytest.mark.parametrize(("others", "passed"), [(10, True), (12, False)])
def test_half_a_percent_of_other_labels_is_the_most(others, passed, gate_of, by_torch, rows):
    gate = gate_of(changed(by_torch, rows, lost=others // 2, won=others // 2))
    assert gate.passed is passed
    assert gate.label_agreement == 1 - others / COUNT
    if not passed:
        assert gate.reason.startswith("12 of 2000 images get other labels than by torch")


@pytest.mark.parametrize(("others", "passed"), [(2, True), (3, False)])
def test_of_few_images_two_may_get_other_labels(others, passed, gate_of, by_torch, rows):
    chosen = np.arange(1, 41)
    few = Outputs(*(part[chosen] for part in by_torch))
    its_rows = rows.take(chosen)
    assert gate_of(changed(few, its_rows, lost=others), chosen).passed is passed


def test_a_loss_that_is_a_habit_is_refused_and_one_by_chance_is_not(gate_of, by_torch, rows):
    lost = gate_of(changed(by_torch, rows, lost=10))  # agrees on 99.5 %
    assert not lost.passed
    assert lost.reason.startswith("0.50% of accuracy are lost, by more than chance")
    assert "other labels" not in lost.reason
    assert lost.accuracy_lost.low > 0.001
    assert gate_of(changed(by_torch, rows, lost=6, won=4)).passed


def test_probabilities_that_no_longer_mean_what_they_say_are_refused(gate_of, by_torch):
    unsure = Outputs(0.8 * by_torch.logits, by_torch.embedding)
    gate = gate_of(unsure)
    assert gate.label_agreement == 1
    assert gate.reason.startswith("its calibration error is 0.0")
    assert gate_of(Outputs(0.98 * by_torch.logits, by_torch.embedding)).passed


def test_an_engine_that_flags_far_too_often_is_refused(gate_of, by_torch):
    # The same labels from embeddings that lie elsewhere.
    gate = gate_of(Outputs(by_torch.logits, by_torch.embedding + 50))
    assert gate.label_agreement == gate.flagged_share == 1
    assert gate.reason == "it flags 100.0% of the images as out of domain; at most 4.0% may"


def test_rows_without_a_label_are_not_calibrated(by_torch, rows, decider):
    unlabelled = replace(rows, targets=np.full(COUNT, -1))
    run = EngineRun("torch-f32", "f32", by_torch, 1.0)
    assert hold_to_torch(run, by_torch, unlabelled, decider).ece is None


def flags(count: int, of: int = 400) -> np.ndarray:
    return np.arange(of) < count


def test_the_flagged_share_may_be_twice_alpha_and_chance_more(decider):
    assert not _flags_too_often(flags(16), decider)  # 4 %: twice alpha
    assert not _flags_too_often(flags(26), decider)  # more than 26 of 400 by chance: 0.7 %
    assert _flags_too_often(flags(40), decider)


def test_an_alpha_that_cannot_flag_is_not_held_to_a_rate(decider):
    assert not _flags_too_often(flags(400), replace(decider, alpha=0.0001))


def test_the_paired_interval_covers_the_true_loss():
    """Images that one of two alone gets right, drawn at random: 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    lost, won, held = 0.01, 0.004, []
    for _ in range(1_000):
        kind = rng.random(500)
        right = kind >= lost
        torch_right = (kind < lost) | (kind >= lost + won)
        loss = paired_loss(right, torch_right)
        held.append(loss.low <= lost - won <= loss.high)
    assert 0.93 <= np.mean(held) <= 1


def test_negatives_among_the_validation_images_are_flagged_rightly(by_torch, rows, decider):
    """They are images of none of the classes: that they are flagged holds against no engine."""
    negatives = np.arange(0, COUNT, 10)
    targets, embedding = rows.targets.copy(), by_torch.embedding.copy()
    targets[negatives] = -1
    embedding[negatives] += 50
    outputs = Outputs(by_torch.logits, embedding)
    run = EngineRun("torch-f32", "f32", outputs, 1.0)
    gate = hold_to_torch(run, outputs, replace(rows, targets=targets), decider)
    assert decider.flags(outputs)[negatives].all()
    assert (gate.passed, gate.reason) == (True, "")
    assert gate.flagged_share < 0.04
