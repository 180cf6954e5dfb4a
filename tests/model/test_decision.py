"""Logits become calibrated probabilities and labels, possibly none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from model.decision import (
    Calibration,
    Thresholds,
    confidence,
    decide,
    predicted_class,
    probabilities,
    sigmoid,
    softmax,
)

CLASSES = ("circle", "square", "star")
FREE = Thresholds(objective="none")
LOGITS = arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32))


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


@given(LOGITS)
def test_single_label_probabilities_are_positive_and_sum_to_one(logits):
    chances = probabilities(logits, Calibration(method="temperature", temperature=2), "single")
    assert chances.dtype == np.float32
    assert (chances >= 0).all()
    assert chances.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)


@given(LOGITS)
def test_multi_label_probabilities_lie_in_the_unit_interval(logits):
    platt = Calibration(method="platt", slopes=(1, 2, 0.5), intercepts=(0, -1, 1))
    chances = probabilities(logits, platt, "multi")
    assert chances.dtype == np.float32
    assert ((chances >= 0) & (chances <= 1)).all()


def test_temperature_divides_the_logits():
    logits = rows([2.0, 1.0, 0.0])
    hot = probabilities(logits, Calibration(method="temperature", temperature=2), "single")
    expected = np.exp([1, 0.5, 0]) / np.exp([1, 0.5, 0]).sum()
    assert hot[0] == pytest.approx(expected, abs=1e-6)


def test_priors_multiply_the_probabilities_of_a_temperature():
    logits = rows([2.0, 1.0, 0.0])
    hot = probabilities(logits, Calibration(method="temperature", temperature=2), "single")
    added = tuple(np.log([1.0, 3.0, 0.5]).tolist())
    calibration = Calibration(method="temperature and priors", temperature=2, intercepts=added)
    found = probabilities(logits, calibration, "single")
    expected = hot[0] * [1.0, 3.0, 0.5]
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(expected / expected.sum(), abs=1e-6)


def test_platt_scales_and_shifts_each_class_by_itself():
    platt = Calibration(method="platt", slopes=(1, 2, 3), intercepts=(0, -1, 1))
    chances = probabilities(rows([1.0, 1.0, -1.0]), platt, "multi")
    assert chances[0] == pytest.approx(1 / (1 + np.exp([-1.0, -1.0, 2.0])), abs=1e-6)


def test_the_functions_do_not_overflow():
    huge = rows([3e38, -3e38, 0.0])
    with np.errstate(over="raise", invalid="raise"):
        assert softmax(huge / 2)[0].tolist() == [1, 0, 0]
        assert sigmoid(huge)[0].tolist() == [1, 0, 0.5]


def test_without_a_threshold_the_most_probable_class_is_named_however_unsure():
    assert decide(rows([0.34, 0.33, 0.33]), FREE, CLASSES, "single") == [["circle"]]


def test_a_single_label_under_its_threshold_is_none_and_at_it_is_named():
    by_half = Thresholds(objective="macro_f1", value=0.5)
    given = rows([0.5, 0.3, 0.2], [0.49, 0.3, 0.21])
    assert decide(given, by_half, CLASSES, "single") == [["circle"], []]


def test_a_single_label_model_never_names_a_second_class():
    low = Thresholds(objective="macro_f1", value=0.1)
    assert decide(rows([0.3, 0.5, 0.2]), low, CLASSES, "single") == [["square"]]


def test_several_labels_come_in_class_order():
    by_half = Thresholds(objective="macro_f1", value=0.5)
    given = rows([0.6, 0.1, 0.9], [0.1, 0.1, 0.1])
    assert decide(given, by_half, CLASSES, "multi") == [["circle", "star"], []]


def test_a_class_with_a_threshold_of_its_own_uses_it():
    own = Thresholds(objective="macro_f1", value=0.5, per_class={"star": 0.9})
    given = rows([0.6, 0.1, 0.8], [0.4, 0.1, 0.95])
    assert decide(given, own, CLASSES, "multi") == [["circle"], ["star"]]
    assert own.as_array(CLASSES).tolist() == pytest.approx([0.5, 0.5, 0.9])


def test_a_probability_just_at_a_float32_threshold_counts():
    third = Thresholds(objective="macro_f1", value=0.1)
    assert decide(rows([0.1, 0.0, 0.0]), third, CLASSES, "multi") == [["circle"]]


def test_confidence_of_a_single_label_is_its_probability():
    assert confidence(rows([0.2, 0.7, 0.1]), "single").tolist() == pytest.approx([0.7])


def test_confidence_of_several_labels_is_that_of_the_least_sure_class():
    assert confidence(rows([0.95, 0.4, 0.1]), "multi").tolist() == pytest.approx([0.6])


@pytest.mark.parametrize(
    "bad", [{"value": 1.5}, {"value": -0.1}, {"level": 0.5}, {"per_class": {"star": 1.5}}]
)
def test_thresholds_beyond_one_and_unknown_fields_are_refused(bad):
    with pytest.raises(ValidationError):
        Thresholds(objective="macro_f1", **bad)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValidationError):
        Calibration(method="temperature", temperature=0)


@pytest.mark.parametrize("task", ["single", "multi"])
@pytest.mark.parametrize("per_class", [{}, {"a": 0.9, "c": 0.05}])
def test_the_predicted_class_is_what_decide_says(task, per_class):
    classes = ("a", "b", "c")
    thresholds = Thresholds(objective="", value=0.5, per_class=per_class)
    chances = np.random.default_rng(0).dirichlet(np.full(3, 0.5), 300).astype(np.float32)
    found = predicted_class(chances, thresholds, classes, task)
    labels = decide(chances, thresholds, classes, task)
    for row, names in enumerate(labels):
        if not names:
            assert found[row] == 3
        else:
            best = max(names, key=lambda name: chances[row, classes.index(name)])
            assert found[row] == classes.index(best)
    assert len(set(found.tolist())) == 4


def test_a_single_label_row_whose_best_class_falls_short_is_none():
    """Not the next class, though that one reaches its own lower threshold."""
    thresholds = Thresholds(objective="", value=0.5, per_class={"a": 0.9, "c": 0.05})
    chances = np.array([[0.8, 0.0, 0.2]], np.float32)
    assert predicted_class(chances, thresholds, ("a", "b", "c"), "single").tolist() == [3]
