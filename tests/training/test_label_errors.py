"""Planted label errors are found, and come first."""

from __future__ import annotations

import numpy as np
import pytest

from training.label_errors import can_be_judged, find_label_errors, held_out_probabilities

PLANTED = [3, 40, 77]


def chances_of(targets: np.ndarray, classes: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.7, (len(targets), classes)) + 4 * np.eye(classes)[targets]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_planted_errors_of_one_label_are_first_with_what_is_right() -> None:
    truth = np.random.default_rng(1).integers(4, size=200)
    given = truth.copy()
    given[PLANTED] = (given[PLANTED] + 1) % 4
    given[5] = -1  # has no label to doubt
    found = find_label_errors(chances_of(truth, 4), given, "single")
    assert sorted(its.row for its in found[:3]) == PLANTED
    assert all(its.suggested == (truth[its.row],) for its in found[:3])
    assert [its.score for its in found] == sorted(its.score for its in found)
    assert 5 not in {its.row for its in found}


@pytest.mark.parametrize(
    "always", [(), (0,), (1,), (0, 1), (0, 0, 1)], ids=lambda values: f"columns of {values}"
)
@pytest.mark.parametrize("differing", [1, 3])
def test_planted_errors_of_several_labels_are_first(
    differing: int, always: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((200, differing)) < 0.4).astype(np.float32)
    truth = np.hstack([np.tile(np.float32(always), (200, 1)), truth])
    chances = np.clip(truth * 0.8 + 0.1 + rng.normal(0, 0.04, truth.shape), 0.01, 0.99)
    chances[PLANTED, -1] = np.where(truth[PLANTED, -1] > 0, 0.97, 0.03)
    chances[:, : len(always)] = 0.5  # the model may think what it likes of these
    given = truth.copy()
    given[PLANTED, -1] = 1 - given[PLANTED, -1]
    found = find_label_errors(chances, given, "multi")
    assert sorted(its.row for its in found[:3]) == PLANTED
    for its in found[:3]:
        assert its.suggested == tuple(np.flatnonzero(truth[its.row]))


def test_where_every_label_is_on_all_rows_or_on_none_nothing_is_doubted() -> None:
    given = np.tile([1, 0, 1], (50, 1))
    assert not can_be_judged(given)
    assert find_label_errors(np.full((50, 3), 0.5), given, "multi") == []


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_hardly_any_rows_are_no_error(rows: int) -> None:
    chances = np.full((rows, 2), 0.5)
    assert find_label_errors(chances, np.zeros(rows, np.int64), "single") == []
    assert find_label_errors(chances, np.zeros((rows, 2)), "multi") == []


def test_held_out_heads_do_not_repeat_the_labels_they_are_asked_about() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=150)
    embedding = (2 * np.eye(8)[truth] + rng.normal(0, 0.3, (150, 8))).astype(np.float32)
    given = truth.copy()
    given[PLANTED] = (given[PLANTED] + 1) % 3
    options = {"class_count": 4, "seed": 0}
    chances = held_out_probabilities(embedding, given, task="single", **options)  # type: ignore[arg-type]
    assert chances[PLANTED].argmax(axis=1).tolist() == truth[PLANTED].tolist()
    assert (chances[:, 3] == 0).all()  # no row has that class
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    table = np.eye(4, dtype=np.float32)[given]
    several = held_out_probabilities(embedding, table, task="multi", **options)  # type: ignore[arg-type]
    assert several[PLANTED].argmax(axis=1).tolist() == truth[PLANTED].tolist()
