"""Metrics agree with hand counts and scikit-learn, carry intervals, and are never NaN."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score

from model.decision import Thresholds
from model.errors import DataError
from training.metrics import (
    _weighted_average_precision,
    auroc_interval,
    bootstrap,
    evaluate,
    wilson_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALWAYS = Thresholds(objective="none")
HALF = Thresholds(objective="macro_f1", value=0.5)
CLASSES = ["cat", "dog", "owl"]


def single_example(rows: int = 600) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=rows)
    logits = rng.normal(0, 1, (rows, 3)) + 2 * np.eye(3)[targets]
    table = np.exp(logits)
    return table / table.sum(axis=1, keepdims=True), targets


def multi_example(rows: int = 600) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(0)
    targets = (rng.random((rows, 3)) < [0.4, 0.2, 0.1]).astype(np.int64)
    return expit(rng.normal(-1.5, 1, (rows, 3)) + 2.5 * targets), targets


def evaluate_single(table: Floats, targets: Ints, **options: Any) -> dict[str, Any]:
    settings = {"classes": CLASSES, "thresholds": ALWAYS, "task": "single", **options}
    return evaluate(table, targets, **settings)


def evaluate_multi(table: Floats, targets: Ints, **options: Any) -> dict[str, Any]:
    settings = {"classes": CLASSES, "thresholds": HALF, "task": "multi", **options}
    return evaluate(table, targets, **settings)


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in numbers(value)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in numbers(value)]
    return [tree] if isinstance(tree, float) else []


def test_single_label_figures_equal_those_counted_by_hand() -> None:
    table = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    found = evaluate_single(table, np.array([0, 1, 1, 2]))
    assert found["accuracy"] == 0.75
    assert found["confusion"]["counts"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["per_class"]["dog"]["recall"] == 0.5
    assert found["per_class"]["cat"]["precision"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_an_empty_answer_is_a_wrong_answer_and_has_its_own_column() -> None:
    table = np.array([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]])
    may_say_none = Thresholds(objective="in_class_loss", value=0.5)
    found = evaluate_single(table, np.array([0, 0]), thresholds=may_say_none)
    assert (found["accuracy"], found["accuracy_argmax"], found["none_rate"]) == (0.5, 1.0, 0.5)
    assert found["confusion"]["columns"][-1] == "(none)"
    assert found["confusion"]["counts"][0] == [1, 0, 0, 1]


def test_multi_label_figures_equal_those_of_scikit_learn() -> None:
    table, targets = multi_example()
    tuned = Thresholds(objective="macro_f1", value=0.3)
    found = evaluate_multi(table, targets, thresholds=tuned)
    assert found["macro_f1"] == pytest.approx(f1_score(targets, table >= 0.3, average="macro"))
    assert found["micro_f1"] == pytest.approx(f1_score(targets, table >= 0.3, average="micro"))
    assert found["macro_f1_at_half"] == pytest.approx(
        f1_score(targets, table >= 0.5, average="macro")
    )
    assert found["map"] == pytest.approx(average_precision_score(targets, table))
    assert found["accuracy_multi"] == pytest.approx(((table >= 0.5) == targets).mean())
    assert np.sum(found["confusion"]["counts"]) == targets.size


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (
            evaluate_single(*single_example()),
            ["accuracy", "macro_f1", "none_rate", "ece", "brier"],
        ),
        (
            evaluate_multi(*multi_example()),
            ["accuracy_multi", "macro_f1", "micro_f1", "macro_f1_at_half", "map", "ece", "brier"],
        ),
    ],
    ids=["single", "multi"],
)
def test_every_headline_lies_inside_its_interval(found: dict[str, Any], names: list[str]) -> None:
    for name in names:
        low, high = found["intervals"][name]
        assert 0 <= low <= found[name] <= high <= 1, name
        assert high - low < 0.2, name


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        targets = (rng.random((200, 1)) < 0.5).astype(np.int64)
        table = np.where(rng.random((200, 1)) < 0.8, targets, 1 - targets).astype(float)
        found = evaluate_multi(table, targets, classes=["cat"], seed=seed, resamples=200)
        low, high = found["intervals"]["macro_f1"]
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_weighted_average_precision_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(12, size=200) / 12, rng.integers(2, size=200)
    weights = rng.integers(0, 4, size=(5, 200)).astype(np.float32)
    ours = _weighted_average_precision(scores, targets)(weights)
    theirs = [average_precision_score(targets, scores, sample_weight=w) for w in weights]
    assert ours == pytest.approx(theirs)


def test_a_class_without_rows_is_named_and_left_out() -> None:
    table, targets = single_example()
    kept = targets != 2
    found = evaluate_single(table[kept], targets[kept])
    assert found["per_class"]["owl"]["recall"] is None
    assert "no rows" in found["per_class"]["owl"]["reason"]
    assert found["notes"] == ["no rows, left out of macro averages: owl"]
    assert found["macro_f1"] > 0.7


def test_labels_that_are_all_absent_give_null_and_the_reason() -> None:
    table, targets = multi_example()
    found = evaluate_multi(table, np.zeros_like(targets))
    assert found["map"] is None
    assert found["macro_f1"] is None
    assert found["reasons"]["map"] == "no row carries any label"


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 1], [0]])
def test_what_comes_out_is_json_without_nan(present: list[int]) -> None:
    table, targets = multi_example(60)
    targets[:, [i for i in range(3) if i not in present]] = 0
    for found in (evaluate_multi(table, targets), evaluate_single(*single_example(5))):
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert all(math.isfinite(number) for number in numbers(found))


def test_the_same_seed_gives_the_same_intervals() -> None:
    table, targets = multi_example()
    assert evaluate_multi(table, targets, seed=3) == evaluate_multi(table, targets, seed=3)


def test_bootstrap_spread_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    draws = bootstrap(lambda weights: weights @ values / 400, 400, resamples=2000)
    assert draws.shape == (2000,)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.1)


def test_wilson_interval_stays_inside_zero_and_one() -> None:
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(5, 5)[1] == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"classes": ["cat"]}, "3 columns of probabilities for 1 classes"),
        ({"task": "multi"}, "task is 'multi'"),
        ({"classes": ["cat", "cat", "owl"]}, "class names must differ"),
    ],
)
def test_ill_input_is_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        evaluate_single(*single_example(), **options)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="non-empty"):
        evaluate_single(np.zeros((0, 3)), np.zeros(0, int))


@pytest.mark.parametrize(("foreign", "domestic"), [(500, 200), (40, 2_000)])
def test_the_interval_of_an_auroc_holds_the_true_one_in_about_95_of_100_draws(foreign, domestic):
    """Two normal distributions a deviation apart: the true AUROC is that of their difference."""
    truth, held = 0.7602, 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        strange, usual = random.normal(1, 1, foreign), random.normal(0, 1, domestic)
        seen = (np.searchsorted(np.sort(usual), strange) / domestic).mean()
        low, high = auroc_interval(float(seen), foreign, domestic)
        held += low <= truth <= high
    assert 0.92 <= held / 300 <= 0.99
