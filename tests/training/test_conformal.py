"""Sets are measured as they are defined, and what is said of them can be checked."""

from __future__ import annotations

import numpy as np
import pytest

from model.bundle import SetsSummary
from model.conformal_sets import ConformalSets
from model.errors import CoverageError
from training.conformal import (
    COVERAGES,
    _range_of_one_split,
    coverage_by_class,
    measure_sets,
    summarise_sets,
)

# Ten calibration images that give their label 0.05, 0.15 to 0.95: at 0.5 a class needs 0.45.
CALIBRATION = np.column_stack([np.arange(0.05, 1, 0.1)] * 3).astype(np.float32)


@pytest.fixture(scope="module")
def sets() -> ConformalSets:
    fitted = ConformalSets.fit(CALIBRATION, np.zeros(10, np.int64), "single")
    assert fitted.threshold(0.5) == pytest.approx(0.45)
    return fitted


def test_one_label_is_held_or_not(sets):
    table = np.array(
        [[0.5, 0.1, 0.4], [0.5, 0.5, 0], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1], [0.9, 0, 0]]
    )
    found = measure_sets(sets, table, np.array([0, 1, 0, 0, -1]), "single", 0.5)
    assert (found.images, found.realised.value, found.mean_size.value) == (4, 0.5, 1.0)
    assert found.realised.low == pytest.approx(0.150, abs=1e-3)  # Wilson's for 2 of 4
    assert found.realised.high == pytest.approx(0.850, abs=1e-3)
    assert found.size_one is not None
    assert (found.size_one.value, found.empty.value) == (0.5, 0.25)


def test_of_several_labels_a_share_is_held(sets):
    table = np.array([[0.5, 0.5, 0.1], [0.5, 0.1, 0.1], [0.9, 0.9, 0.9]], np.float32)
    targets = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]])
    found = measure_sets(sets, table, targets, "multi", 0.5)
    assert (found.images, found.mean_size.value, found.size_one) == (2, 1.5, None)
    assert found.realised.value == pytest.approx((2 / 3 + 0) / 2)
    assert found.realised.low is not None
    assert found.realised.high is not None
    assert found.realised.low <= found.realised.value <= found.realised.high


def test_each_class_has_a_coverage_of_its_own(sets):
    table = np.array([[0.9, 0, 0], [0.1, 0.8, 0.1], [0.3, 0.5, 0.2]], np.float32)
    one = coverage_by_class(sets, table, np.array([0, 0, 1]), ("a", "b", "c"), "single", 0.5)
    assert {name: its.value for name, its in one.items()} == {"a": 0.5, "b": 1.0}
    several = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    found = coverage_by_class(sets, table, several, ("a", "b", "c"), "multi", 0.5)
    assert {name: its.value for name, its in found.items()} == {"a": 1.0, "b": 0.5}


@pytest.mark.parametrize("task", ["single", "multi"])
def test_without_a_label_nothing_is_measured(sets, task):
    targets = np.full(2, -1) if task == "single" else np.zeros((2, 3), int)
    found = measure_sets(sets, CALIBRATION[:2], targets, task, 0.5)
    assert (found.images, found.realised.value, found.mean_size.value) == (0, None, None)


def test_what_cannot_be_promised_is_not_measured(sets):
    with pytest.raises(CoverageError, match=r"at most 0\.90909 can"):
        measure_sets(sets, CALIBRATION, np.zeros(10, int), "single", 0.95)
    summary = summarise_sets(sets, CALIBRATION, np.zeros(10, int), "single", "validation")
    assert [its.coverage for its in summary.measured] == [0.8, 0.9]
    assert summary.highest_coverage == pytest.approx(10 / 11, abs=1e-6)
    assert "10 calibration images with a label: up to 0.90909 " in summary.statement


def test_a_large_split_is_measured_at_every_coverage_and_survives_the_manifest():
    random = np.random.default_rng(0)
    table, targets = random.random((600, 3), np.float32), random.integers(0, 3, 600)
    large = ConformalSets.fit(table[:300], targets[:300], "single")
    summary = summarise_sets(large, table[300:], targets[300:], "single", "test")
    assert tuple(its.coverage for its in summary.measured) == COVERAGES
    sizes = [its.mean_size.value for its in summary.measured]
    assert sizes == sorted(sizes)
    assert SetsSummary.model_validate_json(summary.model_dump_json()) == summary


def test_no_label_in_the_calibration_split_is_said():
    none = ConformalSets.fit(CALIBRATION, np.full(10, -1), "single")
    summary = summarise_sets(none, CALIBRATION, np.zeros(10, int), "single", "test")
    assert (summary.highest_coverage, summary.measured) == (0, ())
    assert "no coverage can be promised" in summary.statement


def test_one_split_realises_what_the_statement_says():
    """Scores uniform on 0 to 1, so that a threshold t realises 1 - t exactly."""
    random = np.random.default_rng(1)
    realised = []
    for _ in range(2_000):
        table = random.random((100, 1), np.float32)
        fitted = ConformalSets.fit(table, np.zeros(100, int), "single")
        realised.append(1 - fitted.threshold(0.9))
    low, high = _range_of_one_split(100, 0.9)
    within = np.mean((np.array(realised) >= low) & (np.array(realised) <= high))
    assert within == pytest.approx(0.95, abs=0.02)
