"""Tuned thresholds hold on rows they were not tuned on, and say when they may not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import f1_score

from model.errors import DataError
from training.objectives import Cost, FScore, Target
from training.thresholds import (
    GRID,
    check_labels_differ,
    tune_global_threshold,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def calibrated(rows: int, classes: int, strength: float, seed: int) -> tuple[Floats, Ints]:
    """Rare labels with probabilities that mean what they say; `strength` 0 knows nothing."""
    rng = np.random.default_rng(seed)
    prior = np.linspace(0.03, 0.2, classes)
    logits = np.log(prior / (1 - prior)) * (1 + strength / 3)
    chance = expit(logits + rng.normal(size=(rows, classes)) * strength)
    return chance.astype(np.float32), (rng.random(chance.shape) < chance).astype(np.int64)


def macro_f1(table: Floats, targets: Ints, threshold: float | NDArray[Any]) -> float:
    return float(f1_score(targets, table >= threshold, average="macro", zero_division=0))


def best_of_each_class(table: Floats, targets: Ints) -> NDArray[np.float64]:
    scores = [
        [f1_score(targets[:, c], table[:, c] >= t, zero_division=0) for t in GRID[4::5]]
        for c in range(table.shape[1])
    ]
    return np.asarray(GRID[4::5][np.argmax(scores, axis=1)])


def test_the_curve_is_that_of_scikit_learn() -> None:
    table, targets = calibrated(300, 6, 3, seed=0)
    choice = tune_global_threshold(table, targets)
    for index in (9, 29, 59):
        expected = macro_f1(table, targets, GRID.astype(np.float32)[index])
        assert choice.curve[index] == pytest.approx(expected)


def test_the_middle_of_the_plateau_beats_half_and_the_best_point_of_each_class() -> None:
    fresh = calibrated(20_000, 12, 3, seed=100)
    gains_over_half, gains_over_each = [], []
    for seed in range(4):
        table, targets = calibrated(200, 12, 3, seed)
        tuned = macro_f1(*fresh, tune_global_threshold(table, targets, bootstrap=2).value)
        gains_over_half.append(tuned - macro_f1(*fresh, 0.5))
        gains_over_each.append(tuned - macro_f1(*fresh, best_of_each_class(table, targets)))
    assert np.mean(gains_over_half) > 0.02
    assert np.mean(gains_over_each) > 0.01


def test_a_clear_curve_is_trusted_and_the_sentence_says_why() -> None:
    choice = tune_global_threshold(*calibrated(3_000, 12, 3, seed=0))
    assert choice.trusted
    assert choice.plateau is not None
    assert choice.half_best_f1 is not None
    assert choice.plateau[0] < choice.value < choice.plateau[1]
    assert abs(choice.value - choice.half_best_f1) < 0.05
    assert choice.spread < 0.03
    assert choice.interval[0] <= choice.value <= choice.interval[1]
    assert choice.sentence.startswith("Can be trusted: 0.3")
    assert "smooth macro F1 plateau" in choice.sentence


def test_few_rows_are_not_trusted() -> None:
    few = tune_global_threshold(*calibrated(60, 4, 2, seed=1))
    many = tune_global_threshold(*calibrated(3_000, 4, 2, seed=1))
    assert not few.trusted
    assert few.sentence.startswith("To be taken with care")
    assert few.wiggle > 3 * max(many.wiggle, 0.01)
    assert few.spread > 3 * many.spread


def test_the_all_positive_optimum_of_a_model_that_knows_nothing_is_refused() -> None:
    choice = tune_global_threshold(*calibrated(3_000, 10, 0.05, seed=0))
    assert choice.refused_all_positive
    assert choice.value == 0.5
    assert not choice.trusted
    assert "nearly everything is called positive" in choice.sentence


def test_probabilities_that_are_not_calibrated_are_found_out_by_half_the_best_f1() -> None:
    table, targets = calibrated(3_000, 12, 3, seed=0)
    shifted = expit(np.log(table / (1 - table)) + 2)
    choice = tune_global_threshold(shifted, targets)
    assert not choice.trusted
    assert "may not be calibrated" in choice.sentence


def test_too_few_positives_fall_back_to_one_half_and_say_so() -> None:
    table, targets = calibrated(300, 3, 3, seed=0)
    targets[:] = 0
    targets[:4, 0] = 1
    choice = tune_global_threshold(table, targets)
    assert (choice.value, choice.trusted) == (0.5, False)
    assert "4 positives are too few" in choice.sentence


def test_a_class_without_positives_does_not_pull_the_curve_down() -> None:
    table, targets = calibrated(1_000, 4, 3, seed=0)
    padded = np.hstack([table, np.full((1_000, 1), 0.4, np.float32)])
    padded_targets = np.hstack([targets, np.zeros((1_000, 1), np.int64)])
    assert tune_global_threshold(padded, padded_targets).curve == pytest.approx(
        tune_global_threshold(table, targets).curve
    )


def test_micro_f1_is_another_curve() -> None:
    table, targets = calibrated(500, 6, 3, seed=0)
    choice = tune_global_threshold(table, targets, objective=FScore(average="micro"))
    expected = f1_score(targets, table >= np.float32(GRID[29]), average="micro")
    assert choice.curve[29] == pytest.approx(expected)


def test_costs_put_the_threshold_where_their_ratio_says() -> None:
    table, targets = calibrated(6_000, 8, 3, seed=0)
    choice = tune_global_threshold(table, targets, objective=Cost((1.0,) * 8, (3.0,) * 8))
    assert choice.belongs_at == 0.25
    assert choice.value == pytest.approx(0.25, abs=0.07)
    assert choice.trusted
    assert "the ratio of the costs (0.25) agrees" in choice.sentence
    assert choice.half_best_f1 is None
    assert choice.lower_is_better
    assert choice.score <= choice.score_at_half


def test_recall_counts_more_in_f2_and_its_threshold_belongs_lower() -> None:
    data = calibrated(3_000, 8, 3, seed=0)
    one, two = (tune_global_threshold(*data, objective=FScore(beta)) for beta in (1, 2))
    assert two.value < one.value - 0.1
    assert two.belongs_at == pytest.approx(max(two.smoothed) / 5)
    assert (two.half_best_f1, one.half_best_f1) == (None, one.belongs_at)
    assert "the best F2 over 5" in two.sentence


def test_a_precision_target_holds_on_fresh_rows() -> None:
    fresh, truth = calibrated(20_000, 6, 3, seed=100)
    held = []
    for seed in range(12):
        target = Target("precision", 0.7)
        choice = tune_global_threshold(*calibrated(500, 6, 3, seed), objective=target, bootstrap=20)
        held.append(truth[fresh >= np.float32(choice.value)].mean() >= 0.7)
        assert choice.target is not None
        assert choice.target.reached
        assert choice.target.assured >= 0.7
    assert sum(held) >= 10


def test_a_target_that_is_met_says_what_it_costs() -> None:
    target = Target("recall", 0.8)
    choice = tune_global_threshold(*calibrated(3_000, 6, 3, seed=0), objective=target)
    assert choice.trusted
    assert choice.sentence.startswith(f"Can be trusted: {choice.value:.2f} gives precision 0.")
    assert "at recall 0.8" in choice.sentence
    assert "(0.8 wanted)" in choice.sentence
    assert choice.curve_name == "precision"


def test_an_unreachable_precision_says_the_best_that_can_be_had() -> None:
    table, targets = calibrated(600, 6, 1.5, seed=0)
    choice = tune_global_threshold(table, targets, objective=Target("precision", 0.97))
    assert (choice.value, choice.trusted, choice.plateau) == (0.5, False, None)
    assert choice.target is not None
    assert not choice.target.reached
    assert "precision>=0.97 cannot be assured at any threshold" in choice.sentence
    assert f"The best is {choice.target.best_at:.2f}" in choice.sentence
    assert f"{choice.target.best_assured:.3f} assured" in choice.sentence
    answers = table >= np.float32(0.5)
    kept = f"This is kept, with precision {targets[answers].mean():.3f}"
    assert f"{kept} and recall {answers[targets == 1].mean():.3f}" in choice.sentence


def test_a_recall_that_only_all_positives_reach_is_refused() -> None:
    rng = np.random.default_rng(0)
    table = 0.2 + 0.02 * rng.random((2_000, 6), np.float32)
    targets = (rng.random(table.shape) < 0.2).astype(np.int64)
    choice = tune_global_threshold(table, targets, objective=Target("recall", 0.9))
    assert (choice.value, choice.trusted) == (0.5, False)
    assert choice.refused_all_positive
    assert "nearly everything is called positive" in choice.sentence


def test_where_costs_cannot_be_tuned_for_their_ratio_is_kept() -> None:
    table, targets = calibrated(300, 2, 3, seed=0)
    targets[:] = 0
    targets[:4, 0] = 1
    choice = tune_global_threshold(table, targets, objective=Cost((3.0, 3.0), (1.0, 1.0)))
    assert (choice.value, choice.trusted) == (0.75, False)
    assert "4 positives are too few" in choice.sentence


def test_saturated_probabilities_are_told_of() -> None:
    targets = (np.random.default_rng(0).random((300, 3)) < 0.3).astype(np.int64)
    table = np.where(np.random.default_rng(1).random((300, 3)) < 0.1, 1 - targets, targets)
    choice = tune_global_threshold(table.astype(np.float32), targets)
    assert choice.value == 0.5
    assert not choice.trusted
    assert "nearly every threshold decides the same" in choice.sentence


def test_the_score_on_rows_left_out_is_that_on_fresh_rows() -> None:
    choice = tune_global_threshold(*calibrated(1_500, 4, 3, seed=0), bootstrap=40)
    fresh = macro_f1(*calibrated(20_000, 4, 3, seed=1), choice.value)
    assert choice.score_left_out == pytest.approx(fresh, abs=0.03)
    for value, interval in (
        (choice.score_left_out, choice.score_left_out_interval),
        (choice.score, choice.score_interval),
    ):
        assert interval is not None
        assert interval[0] < value < interval[1]
        assert interval[0] < fresh < interval[1]
        assert interval[1] - interval[0] < 0.15


def test_the_interval_of_the_score_is_that_of_the_threshold_in_force() -> None:
    table, targets = calibrated(1_500, 4, 3, seed=0)
    choice = tune_global_threshold(table, targets, objective=Cost((1.0,) * 4, (3.0,) * 4))
    rng = np.random.default_rng(7)
    answers = table >= np.float32(choice.value)
    cost = np.where(answers & (targets == 0), 1.0, np.where(~answers & (targets == 1), 3.0, 0.0))
    drawn = [cost[rng.integers(1_500, size=1_500)].sum(axis=1).mean() for _ in range(500)]
    assert choice.score == pytest.approx(cost.sum(axis=1).mean())
    assert choice.score_interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=0.1)


@pytest.mark.parametrize(
    ("value", "says"), [(0, "none of the 20 validation images has any"), (1, "each of the 20")]
)
def test_validation_targets_that_are_all_equal_are_refused(value, says) -> None:
    with pytest.raises(DataError, match=says):
        check_labels_differ(np.full((20, 3), value))
    check_labels_differ(np.eye(20))


def test_a_choice_goes_through_json_and_into_the_bundle() -> None:
    choice = tune_global_threshold(*calibrated(200, 4, 3, seed=0))
    plain = choice.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["value"] == choice.to_thresholds().value
    assert plain["sentence"]
    assert len(plain["curve"]) == len(plain["grid"])


def test_the_same_seed_gives_the_same_choice() -> None:
    data = calibrated(300, 4, 3, seed=0)
    assert tune_global_threshold(*data, seed=5) == tune_global_threshold(*data, seed=5)


def test_ill_input_is_named() -> None:
    table, targets = calibrated(50, 3, 3, seed=0)
    with pytest.raises(DataError, match="expected targets of shape"):
        tune_global_threshold(table, targets[:, 0])
