"""What holds of every threshold that is found, whatever the rows and the objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from training.objectives import Cost, FScore, Objective, Target
from training.threshold_choice import ThresholdChoice
from training.threshold_search import (
    ALL_POSITIVE_RATE,
    GRID,
    PLATEAU_DEPTH,
    CountTable,
    nearest,
)
from training.thresholds import tune_global_threshold

Table = NDArray[np.float32]
Targets = NDArray[np.int64]
CLASSES = 3
ROWS = st.integers(12, 60)
CHANCES = np.linspace(0, 1, 21, dtype=np.float32).tolist()
F_SCORES = st.builds(FScore, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(["macro", "micro"]))
PRICES = st.tuples(*[st.sampled_from([0.25, 1.0, 2.0, 8.0])] * CLASSES)
COSTS = st.builds(Cost, PRICES, PRICES)
TARGETS = st.builds(
    Target, st.sampled_from(["precision", "recall"]), st.sampled_from([0.2, 0.5, 0.8])
)
ANY: st.SearchStrategy[Objective] = st.one_of(F_SCORES, COSTS, TARGETS)


@st.composite
def validation(draw: st.DrawFn, *, informed: bool | None = None) -> tuple[Table, Targets]:
    """Probabilities, ends and ties among them, and targets that they know of, or not."""
    rows = draw(ROWS)
    table = draw(arrays(np.float32, (rows, CLASSES), elements=st.sampled_from(CHANCES)))
    rng = np.random.default_rng(draw(st.integers(0, 1_000)))
    knows = draw(st.booleans()) if informed is None else informed
    chance = table if knows else np.full(table.shape, draw(st.sampled_from([0.1, 0.5, 0.9])))
    return table, (rng.random(table.shape) < chance).astype(np.int64)


def tune(table: Table, targets: Targets, objective: Objective) -> ThresholdChoice:
    return tune_global_threshold(table, targets, objective=objective, bootstrap=2)


def false_positive_rate(table: Table, targets: Targets, threshold: float) -> float:
    answers = table >= np.float32(threshold)
    rates = [
        answers[targets[:, c] == 0, c].mean()
        for c in range(table.shape[1])
        if (targets[:, c] == 0).any()
    ]
    return float(np.mean(rates)) if rates else 0.0


@given(validation(), ANY)
def test_a_threshold_lies_in_the_grid_and_its_score_is_that_of_the_curve(data, objective) -> None:
    choice = tune(*data, objective)
    assert choice.value in GRID
    assert choice.score == choice.curve[nearest(choice.value)]
    assert np.isfinite(choice.curve).all()
    if choice.plateau is not None:
        assert choice.plateau[0] <= choice.value <= choice.plateau[1]
    else:
        assert not choice.trusted
        assert "kept" in choice.sentence


@given(validation(), ANY)
def test_a_tuned_threshold_never_says_yes_to_anything(data, objective) -> None:
    choice = tune(*data, objective)
    if choice.plateau is not None:
        assert false_positive_rate(*data, choice.value) < ALL_POSITIVE_RATE
    if choice.refused_all_positive:
        assert choice.value == pytest.approx(GRID[nearest(objective.fallback)]) or (
            choice.value == 0.5
        )


@given(validation(), ANY, st.integers(0, 100))
def test_the_order_of_rows_does_not_matter(data, objective, seed) -> None:
    table, targets = data
    order = np.random.default_rng(seed).permutation(len(table))
    choice, moved = tune(table, targets, objective), tune(table[order], targets[order], objective)
    assert moved.value == choice.value
    assert moved.curve == choice.curve


@given(validation(), st.one_of(F_SCORES, COSTS))
def test_every_row_twice_gives_the_same_curve_and_threshold(data, objective) -> None:
    table, targets = data
    assume(10 <= targets.sum() <= targets.size - 10)  # else there was too little, and is not twice
    once = tune(table, targets, objective)
    twice = tune(np.vstack([table, table]), np.vstack([targets, targets]), objective)
    assert twice.value == once.value
    assert twice.curve == once.curve


@given(validation(), TARGETS)
def test_every_row_twice_assures_more_of_a_target(data, objective) -> None:
    table, targets = data
    once = tune(table, targets, objective)
    twice = tune(np.vstack([table, table]), np.vstack([targets, targets]), objective)
    assert once.target is not None
    assert twice.target is not None
    assert twice.target.best_assured >= once.target.best_assured - 1e-12
    if once.plateau is not None:
        assert twice.plateau is not None or twice.refused_all_positive


@given(validation(informed=True), st.sampled_from([0.5, 1.0, 2.0]))
def test_micro_and_macro_are_one_for_one_class(data, beta) -> None:
    table, targets = data[0][:, :1], data[1][:, :1]
    micro, macro = (tune(table, targets, FScore(beta, its)) for its in ("micro", "macro"))
    assert micro.value == macro.value
    assert micro.curve == macro.curve


@given(validation(), COSTS)
def test_costs_are_at_most_those_of_always_all_or_none_and_the_depth(data, objective) -> None:
    table = np.clip(data[0], 0.05, 0.95)  # so that both ends of the grid are all and none
    targets = data[1]
    choice = tune(table, targets, objective)
    every = (objective.false_positive * (targets == 0)).sum() / len(targets)
    none = (objective.false_negative * (targets == 1)).sum() / len(targets)
    assert choice.curve[0] == pytest.approx(every)
    assert choice.curve[-1] == pytest.approx(none)
    if choice.plateau is not None:
        most = min(every, none) * (1 + PLATEAU_DEPTH)
        assert choice.smoothed[nearest(choice.value)] <= most + 1e-9


@given(validation(), COSTS, st.sampled_from([0.125, 4.0, 1024.0]))
def test_the_unit_of_costs_does_not_matter(data, objective, unit) -> None:
    times = {
        name: tuple(unit * its for its in getattr(objective, name))
        for name in ("false_positive", "false_negative")
    }
    assert tune(*data, replace(objective, **times)).value == tune(*data, objective).value


@given(validation(), TARGETS)
def test_a_target_is_met_where_it_is_said_to_be(data, objective) -> None:
    table, targets = data
    choice = tune(table, targets, objective)
    assert choice.target is not None
    answers = table >= np.float32(choice.value)
    right = (answers & (targets == 1)).sum()
    trials = (answers if objective.of == "precision" else targets).sum()
    if choice.plateau is not None:
        assert choice.target.reached
        assert right / trials >= objective.least
        assert choice.target.assured <= right / trials
    if not choice.target.reached:
        assert not choice.trusted


@given(validation(informed=True), st.floats(0.3, 0.9))
@settings(max_examples=50)
def test_a_higher_precision_never_gives_more_recall(data, least) -> None:
    low, high = (tune(*data, Target("precision", its)) for its in (least - 0.1, least))
    if low.plateau is not None and high.plateau is not None:
        depth = PLATEAU_DEPTH + 1e-9
        at_low, at_high = nearest(low.value), nearest(high.value)
        assert low.smoothed[at_low] >= high.smoothed[at_high] - depth


@given(validation())
def test_counts_are_those_of_a_comparison(data) -> None:
    table, targets = data
    counts = CountTable(table, targets).whole()
    for place, threshold in enumerate(GRID.astype(np.float32)):
        answers = table >= threshold
        assert counts.answered[:, place].tolist() == answers.sum(axis=0).tolist()
        assert counts.true[:, place].tolist() == (answers & (targets == 1)).sum(axis=0).tolist()
