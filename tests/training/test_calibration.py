"""Calibration recovers what a simulation put in, and its measures see what is there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from model.decision import probabilities
from model.errors import DataError
from training.calibration import (
    MIN_SLOPE,
    brier_score,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    mass_bins,
    reliability,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def simulated_single(rows: int, temperature: float, seed: int = 0) -> tuple[Floats, Ints]:
    """Logits that are overconfident by exactly `temperature`."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(0, 2, (rows, 10))
    cumulative = softmax(true_logits, axis=1).cumsum(axis=1)
    targets = (rng.random((rows, 1)) > cumulative).sum(axis=1).clip(max=9)
    return true_logits * temperature, targets


def simulated_multi(
    rows: int, slopes: list[float], intercepts: list[float], seed: int = 0
) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 3, (rows, len(slopes)))
    chance = expit(logits * slopes + intercepts)
    return logits, (rng.random(logits.shape) < chance).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_recovers_the_overconfidence_that_was_put_in(temperature: float) -> None:
    logits, targets = simulated_single(10_000, temperature)
    assert fit_temperature(logits, targets).temperature == pytest.approx(temperature, rel=0.03)


def test_temperature_brings_the_error_of_fresh_rows_near_zero() -> None:
    fitted = fit_temperature(*simulated_single(10_000, 2.5))
    logits, targets = simulated_single(40_000, 2.5, seed=1)
    before = expected_calibration_error(softmax(logits, axis=1), targets)
    table = probabilities(logits.astype(np.float32), fitted, "single")
    after = expected_calibration_error(table, targets)
    assert before > 0.1
    assert after < 0.015


def test_a_flawless_validation_set_does_not_make_the_model_certain() -> None:
    logits = np.eye(5)[np.arange(50) % 5] * 3
    fitted = fit_temperature(logits, np.arange(50) % 5)
    table = probabilities(logits.astype(np.float32), fitted, "single")
    assert 0.9 < table.max() < 0.999


def test_platt_recovers_slope_and_intercept_of_each_class() -> None:
    slopes, intercepts = [0.4, 1.0, 2.0], [-0.5, 0.0, 1.0]
    fitted = fit_platt(*simulated_multi(20_000, slopes, intercepts))
    assert fitted.slopes == pytest.approx(slopes, rel=0.08)
    assert fitted.intercepts == pytest.approx(intercepts, abs=0.12)


def test_platt_finds_the_same_answer_for_logits_far_from_zero() -> None:
    logits, targets = simulated_multi(5_000, [0.5], [0.2])
    near, far = fit_platt(logits, targets), fit_platt(logits * 40 + 900, targets)
    assert far.slopes[0] * 40 == pytest.approx(near.slopes[0], rel=0.01)


def test_a_class_with_too_few_positives_borrows_the_fit_of_all() -> None:
    logits, targets = simulated_multi(3_000, [0.5, 0.5, 0.5], [0.0, 0.0, 0.0])
    targets[:, 1] = 0
    targets[:5, 1] = 1
    targets[:, 2] = 1
    fitted = fit_platt(logits, targets)
    assert fitted.slopes[1] == fitted.slopes[2] != fitted.slopes[0]
    assert fitted.intercepts[1] == fitted.intercepts[2]


def test_a_class_ranked_the_wrong_way_round_keeps_a_positive_slope() -> None:
    logits, targets = simulated_multi(2_000, [1.0], [0.0])
    assert fit_platt(-logits, targets).slopes[0] == pytest.approx(MIN_SLOPE)


def test_the_error_of_a_perfectly_calibrated_model_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    stated = rng.random((20_000, 4))
    targets = (rng.random(stated.shape) < stated).astype(np.int64)
    assert expected_calibration_error(stated, targets) < 0.01


def test_the_error_of_a_boaster_is_the_size_of_the_boast() -> None:
    stated = np.tile([0.9, 0.1], (1000, 1))
    targets = np.repeat([0, 1], [600, 400])
    assert expected_calibration_error(stated, targets) == pytest.approx(0.3)


def test_saturated_probabilities_share_one_bin_whatever_their_order() -> None:
    stated = np.tile([1.0, 0.0], (100, 1))
    targets = np.repeat([0, 1], [90, 10])
    assert reliability(stated, targets).count.tolist() == [100]
    assert expected_calibration_error(stated, targets) == pytest.approx(0.1)


def test_bins_hold_nearly_equal_mass_and_no_bin_is_empty() -> None:
    stated = np.random.default_rng(0).beta(8, 1, 3_000)
    counts = np.bincount(mass_bins(stated, 15))
    assert len(counts) == 15
    assert counts.min() >= 190
    assert counts.max() <= 210


def test_brier_score_of_known_tables() -> None:
    coin = np.full((2, 2), 0.5)
    assert brier_score(coin, np.array([0, 1])) == 0.5
    assert brier_score(coin, np.eye(2, dtype=int)) == 0.25
    assert brier_score(np.eye(2), np.array([0, 1])) == 0.0


@pytest.mark.parametrize(
    ("logits", "targets", "complaint"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "non-empty"),
        (np.zeros((4, 3)), np.zeros(5, int), "do not fit"),
        (np.zeros((4, 3)), np.full(4, 3), "0 to 2"),
        (np.full((4, 3), np.nan), np.zeros(4, int), "not finite"),
        (np.zeros((4, 3)), np.zeros((4, 3), int), "fit_platt"),
    ],
)
def test_ill_input_to_temperature_is_named(logits: Floats, targets: Ints, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        fit_temperature(logits, targets)


def test_ill_input_to_platt_is_named() -> None:
    with pytest.raises(DataError, match="every target is 0"):
        fit_platt(np.zeros((4, 2)), np.zeros((4, 2), int))
    with pytest.raises(DataError, match="shape of the logits"):
        fit_platt(np.zeros((4, 2)), np.zeros(4, int))


def test_logits_given_as_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="are these logits"):
        expected_calibration_error(np.array([[3.0, -2.0]]), np.array([0]))
