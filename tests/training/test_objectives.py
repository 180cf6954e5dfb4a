"""An objective scores what its name says, and says what it cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import fbeta_score, precision_score, recall_score

from model.errors import DataError, SettingsError
from training.cost_matrix import read_cost_matrix
from training.objectives import Cost, Counts, FScore, Target, parse_objective, wilson_lower
from training.threshold_search import GRID, CountTable

PLACES = (9, 29, 59)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    table = rng.random((200, 4)).astype(np.float32)
    return table, (rng.random((200, 4)) < table**2).astype(np.int64)


@pytest.fixture(scope="module")
def counts(rows: tuple[np.ndarray, np.ndarray]) -> Counts:
    return CountTable(*rows).whole()


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_f_beta_is_that_of_scikit_learn(rows, counts, average, beta) -> None:
    table, targets = rows
    score = FScore(beta, average).score(counts)
    for place in PLACES:
        answers = table >= np.float32(GRID[place])
        expected = fbeta_score(targets, answers, beta=beta, average=average, zero_division=0)
        assert score[place] == pytest.approx(expected)


def test_costs_are_those_of_each_mistake_by_class(rows, counts) -> None:
    table, targets = rows
    wrong, missed = (1.0, 2.0, 0.5, 0.0), (3.0, 0.0, 4.0, 7.0)
    score = Cost(wrong, missed).score(counts)
    for place in PLACES:
        answers = table >= np.float32(GRID[place])
        each = wrong * (answers & (targets == 0)) + missed * (~answers & (targets == 1))
        assert -score[place] == pytest.approx(each.sum(axis=1).mean())


@pytest.mark.parametrize("of", ["precision", "recall"])
def test_a_target_is_assured_by_the_lower_end_of_a_one_sided_interval(rows, counts, of) -> None:
    table, targets = rows
    target = Target(of, 0.5)
    measured = {"precision": precision_score, "recall": recall_score}
    for place in PLACES:
        answers = table >= np.float32(GRID[place])
        share = measured[of](targets, answers, average="micro")
        assert target.measured(counts)[place] == pytest.approx(share)
        free = measured["recall" if of == "precision" else "precision"]
        assert target.score(counts)[place] == pytest.approx(free(targets, answers, average="micro"))
        right = int((answers & (targets == 1)).sum())
        trials = int((answers if of == "precision" else targets).sum())
        # Both sides of 90 % leave 5 % below.
        interval = binomtest(right, trials).proportion_ci(0.9, method="wilson")
        assert target.assured(counts)[place] == pytest.approx(interval.low, abs=1e-4)


def test_where_nothing_is_answered_no_precision_is_assured() -> None:
    nothing = CountTable(np.zeros((20, 2)), np.ones((20, 2), int)).whole()
    target = Target("precision", 0.5)
    assert (target.assured(nothing) == 0).all()
    assert np.isnan(wilson_lower(np.array([0.0]), np.array([0.0]))).all()


def test_in_micro_a_class_is_judged_with_the_others_where_they_are(rows, counts) -> None:
    table, targets = rows
    micro = FScore(average="micro")
    score = micro.for_class(2).score(micro.counts_for_class(counts, 2, 49))
    thresholds = np.full(4, GRID[49])
    thresholds[2] = GRID[19]
    answers = table >= thresholds.astype(np.float32)
    assert score[19] == pytest.approx(fbeta_score(targets, answers, beta=1, average="micro"))


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("macro_f1", FScore()),
        ("micro_f0.5", FScore(0.5, "micro")),
        ("macro_f2", FScore(2)),
        ("precision>=0.9", Target("precision", 0.9)),
        ("recall >= .75", Target("recall", 0.75)),
    ],
)
def test_objectives_by_name(text, objective) -> None:
    assert parse_objective(text) == objective
    assert parse_objective(objective.name) == objective


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy", "valid are macro_f1, micro_f1"),
        ("macro_f0", r"beta must lie in 0\.01 to 100, got 0"),
        ("macro_f-1", "valid are macro_f1"),
        ("precision>=1", "over 0 and under 1"),
        ("precision>=0", "over 0 and under 1"),
        ("recall>=90", "over 0 and under 1"),
        ("precision>0.9", "valid are macro_f1"),
        ("cost", "--cost-matrix"),
    ],
)
def test_what_is_no_objective_is_refused(text, says) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_objective(text)


def test_a_cost_matrix_serves_no_other_objective() -> None:
    with pytest.raises(SettingsError, match=r"--objective macro_f1.*--cost-matrix"):
        parse_objective("macro_f1", Cost((1.0,), (1.0,)))


CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def matrix(tmp_path: Path):
    """`matrix(text)`: a file of it."""

    def write(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "costs.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_costs_are_read_by_class_in_any_order_with_a_star_for_the_others(matrix) -> None:
    text = "false_negative,class,false_positive\n5,dog,1\n\n 2 , * ,3\n"
    cost = read_cost_matrix(matrix(text, "utf-8-sig"), CLASSES)
    assert cost == Cost((3.0, 1.0, 3.0), (2.0, 5.0, 2.0))
    assert cost.to_dict(CLASSES)["dog"] == {"false_positive": 1.0, "false_negative": 5.0}


HEADER = "class,false_positive,false_negative\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        (HEADER, "no rows below its header"),
        ("class,false_positive\n*,1\n", "its first line must be class,false_positive,false_neg"),
        ("0,1\n1,0\n", "its first line must be"),
        (HEADER + "cat,1\n", "row 2: expected 3 cells"),
        (HEADER + "\n*,1,-2\n", "row 3: false_negative is '-2'; it must be a number of 0 or more"),
        (HEADER + "*,nan,2\n", "row 2: false_positive is 'nan'"),
        (HEADER + "*,inf,2\n", "row 2: false_positive is 'inf'"),
        (HEADER + "*,,2\n", "row 2: false_positive is ''"),
        (HEADER + "*,dear,2\n", "row 2: false_positive is 'dear'"),
        (HEADER + "cat,1,2\ncat,1,3\n", "row 3: the class 'cat' has costs above already"),
        (HEADER + "cow,1,2\n*,1,3\n", "costs of 'cow', which the data do not have"),
        (HEADER + "cat,1,2\n", "no costs of 'dog', 'owl'; add a row for each"),
        (HEADER + "*,0,2\n", "every false_positive costs 0.*always answers every class"),
        (HEADER + "*,1,0\n", "every false_negative costs 0.*always answers none"),
    ],
)
def test_a_cost_matrix_of_wrong_shape_is_one_clear_error(matrix, text, says) -> None:
    with pytest.raises(DataError, match=says):
        read_cost_matrix(matrix(text), CLASSES)


def test_a_cost_matrix_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_bytes(b"\xff\xfe\x00class")
    with pytest.raises(DataError, match="cannot be read as a CSV in UTF-8"):
        read_cost_matrix(path, CLASSES)
