"""Prediction sets hold the true labels as often as was promised, whatever the model is worth."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom

from model.bundle import CONFORMAL_SETS, load, save_arrays, seal, writing
from model.conformal_sets import ConformalSets, label_set, load_sets, no_sets, parse_coverage
from model.errors import CoverageError

CLASSES = 4
# Few different values, so that most bags hold ties; and every decimal that someone may type.
chances = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0])
coverages = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)


def tables(count):
    return hnp.arrays(np.float32, (count, CLASSES), elements=chances.map(np.float32))


@st.composite
def single_bags(draw):
    """Probabilities and class indices of exchangeable images, -1 for no label."""
    count = draw(st.integers(2, 14))
    table = draw(tables(count))
    targets = draw(hnp.arrays(np.int64, count, elements=st.integers(-1, CLASSES - 1)))
    return table, targets, "single"


@st.composite
def multi_bags(draw):
    """Probabilities and 0/1 rows, some of them without a label."""
    count = draw(st.integers(2, 14))
    table = draw(tables(count))
    targets = draw(hnp.arrays(np.int64, (count, CLASSES), elements=st.integers(0, 1)))
    return table, targets, "multi"


bags = st.one_of(single_bags(), multi_bags())


def labels_of(targets, row, task):
    if task == "multi":
        return np.flatnonzero(targets[row])
    return targets[row : row + 1][targets[row : row + 1] >= 0]


def missed(inside, targets, row, task):
    """The share of a row's true labels that its set lacks."""
    labels = labels_of(targets, row, task)
    return Fraction(int((~inside[labels]).sum()), len(labels))


# The promise


@given(bags, coverages)
def test_each_of_exchangeable_images_is_missed_no_more_than_was_promised(bag, coverage):
    """Every image is the new one in turn: that average is the chance, exactly and with ties."""
    table, targets, task = bag
    losses = []
    for row in range(len(table)):
        others = np.arange(len(table)) != row
        sets = ConformalSets.fit(table[others], targets[others], task)
        if not len(labels_of(targets, row, task)):
            continue
        assume(coverage <= sets.highest_coverage)
        losses.append(missed(sets.contains(table[row : row + 1], coverage)[0], targets, row, task))
    assume(losses)
    assert sum(losses) / len(losses) <= 1 - Fraction(str(coverage))


@settings(max_examples=10)
@given(st.integers(5, 60), coverages, st.integers(0, 2**32 - 1))
def test_without_ties_a_single_label_is_covered_just_as_often_as_the_count_allows(
    count, coverage, seed
):
    assume(coverage <= count / (count + 1))
    random = np.random.default_rng(seed)
    draws, covered = 300, 0
    for _ in range(draws):
        table = random.random((count + 1, CLASSES), np.float32)
        targets = random.integers(0, CLASSES, count + 1)
        sets = ConformalSets.fit(table[:-1], targets[:-1], "single")
        covered += sets.contains(table[-1:], coverage)[0, targets[-1]]
    chance = 1 - floor((1 - Fraction(str(coverage))) * (count + 1)) / (count + 1)
    assert chance >= coverage - 1e-12
    low, high = binom.ppf([1e-7, 1 - 1e-7], draws, chance)
    assert low <= covered <= high


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("task", ["single", "multi"])
def test_ten_thousand_images_are_covered_as_stated(task, coverage):
    table, targets = drawn(task, 30_000, seed=1)
    sets = ConformalSets.fit(table[:20_000], targets[:20_000], task)
    inside = sets.contains(table[20_000:], coverage)
    shares = [
        missed(inside[row], targets[20_000:], row, task)
        for row in range(10_000)
        if len(labels_of(targets[20_000:], row, task))
    ]
    assert 1 - np.mean([float(share) for share in shares]) == pytest.approx(coverage, abs=0.01)


def drawn(task, count, seed):
    """Images whose probabilities mean what they say."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (count, 10))
    if task == "multi":
        table = 1 / (1 + np.exp(2 - logits))
        return table.astype(np.float32), (random.random(table.shape) < table).astype(np.int64)
    table = np.exp(logits)
    table /= table.sum(axis=1, keepdims=True)
    targets = (table.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    return table.astype(np.float32), targets


def test_a_model_that_knows_nothing_is_covered_by_large_sets():
    random = np.random.default_rng(2)
    table, targets = random.random((4_000, 10), np.float32), random.integers(0, 10, 4_000)
    sets = ConformalSets.fit(table[:2_000], targets[:2_000], "single")
    inside = sets.contains(table[2_000:], 0.9)
    assert inside[np.arange(2_000), targets[2_000:]].mean() == pytest.approx(0.9, abs=0.03)
    assert inside.sum(axis=1).mean() == pytest.approx(9, abs=0.3)


# How sets relate


@settings(max_examples=40)
@given(bags, coverages, coverages)
def test_a_set_lies_in_that_of_a_higher_coverage(bag, one, other):
    table, targets, task = bag
    sets = ConformalSets.fit(table, targets, task)
    low, high = sorted((one, other))
    assume(high <= sets.highest_coverage)
    assert not (sets.contains(table, low) & ~sets.contains(table, high)).any()
    assert sets.threshold(low) >= sets.threshold(high)


@settings(max_examples=40)
@given(bags, coverages, st.permutations(range(CLASSES)))
def test_the_order_of_classes_and_of_images_does_not_matter(bag, coverage, order):
    table, targets, task = bag
    sets = ConformalSets.fit(table, targets, task)
    assume(coverage <= sets.highest_coverage)
    columns = np.array(order)
    if task == "multi":
        moved = targets[:, columns]
    else:
        moved = np.where(targets >= 0, np.argsort(columns)[targets], -1)
    again = ConformalSets.fit(table[::-1, columns], moved[::-1], task)
    assert np.array_equal(
        again.contains(table[:, columns], coverage), sets.contains(table, coverage)[:, columns]
    )
    names = np.array(["a", "b", "c", "d"])
    for one, other in zip(
        sets.prediction_sets(table, coverage, names),
        again.prediction_sets(table[:, columns], coverage, names[columns]),
        strict=True,
    ):
        assert sorted(one) == sorted(other)


@settings(max_examples=40)
@given(bags, coverages)
def test_classes_of_equal_probability_are_in_a_set_together(bag, coverage):
    table, targets, task = bag
    sets = ConformalSets.fit(table, targets, task)
    assume(coverage <= sets.highest_coverage)
    inside = sets.contains(table, coverage)
    for value in np.unique(table):
        assert len(np.unique(inside[table == value])) == 1


def test_a_model_that_cannot_tell_classes_apart_names_all_of_them():
    sets = ConformalSets.fit(np.full((99, 4), 0.25, np.float32), np.arange(99) % 4, "single")
    assert sets.prediction_sets(np.full((1, 4), 0.25), 0.5, "abcd") == [["a", "b", "c", "d"]]


def test_the_sets_are_those_of_split_conformal_prediction_for_one_label():
    table, targets = drawn("single", 999, seed=3)
    scores = np.sort(1 - table[np.arange(999), targets])
    quantile = scores[900 - 1]  # the ceil((n + 1) 0.9)-th smallest (Sadinle et al. 2019)
    sets = ConformalSets.fit(table, targets, "single")
    assert 1 - sets.threshold(0.9) == pytest.approx(quantile)


def test_a_coverage_under_the_accuracy_leaves_the_least_sure_without_a_set():
    table, targets = drawn("single", 4_000, seed=4)
    table = table**4 / (table**4).sum(axis=1, keepdims=True)
    targets = np.where(np.arange(4_000) % 20 == 0, targets, table.argmax(axis=1))
    sets = ConformalSets.fit(table, targets, "single")
    given_sets = sets.prediction_sets(table, 0.8, "abcdefghij")
    empty = np.array([not its for its in given_sets])
    assert 0.1 < empty.mean() < 0.25
    assert table[empty].max() < table[~empty].max(axis=1).min()
    assert not any(not its for its in sets.prediction_sets(table, 0.99, "abcdefghij"))


def test_a_set_names_the_most_probable_class_first():
    row = np.array([0.2, 0.5, 0.2, 0.1], np.float32)
    assert label_set(row, 0.2, "abcd") == ["b", "a", "c"]
    assert label_set(row, 0.6, "abcd") == []


# What can be asked for


@settings(max_examples=30)
@given(st.integers(1, 300))
def test_the_highest_coverage_can_be_had_and_no_higher(count):
    table = np.linspace(0.1, 0.9, count, dtype=np.float32)[:, None].repeat(2, axis=1)
    sets = ConformalSets.fit(table, np.zeros(count, np.int64), "single")
    assert sets.threshold(sets.highest_coverage) == table.min()
    above = count / (count + 1) + 1e-6
    with pytest.raises(
        CoverageError, match=f"{count} calibration.*at most {sets.highest_coverage:g}"
    ):
        sets.threshold(above)


@pytest.mark.parametrize(("count", "coverage"), [(9, 0.9), (19, 0.95), (99, 0.99), (999, 0.999)])
def test_just_enough_images_are_enough(count, coverage):
    """1 - 0.9 is under a tenth in binary: ten images would be needed where nine are enough."""
    sets = ConformalSets.fit(
        np.eye(2, dtype=np.float32)[[0] * count], np.zeros(count, int), "single"
    )
    assert sets.threshold(coverage) == 1
    with pytest.raises(CoverageError):
        sets.threshold(coverage + 0.0005)


def test_images_without_a_label_do_not_count():
    table, targets = drawn("single", 50, seed=5)
    with_others = ConformalSets.fit(
        np.concatenate([table, table]), np.concatenate([targets, np.full(50, -1)]), "single"
    )
    assert with_others.image_count == 50
    alone = ConformalSets.fit(table, targets, "single")
    assert with_others.threshold(0.9) == alone.threshold(0.9)


def test_without_any_label_nothing_can_be_promised():
    for targets, task in ((np.full(5, -1), "single"), (np.zeros((5, 4), int), "multi")):
        sets = ConformalSets.fit(np.full((5, 4), 0.25, np.float32), targets, task)
        assert sets.highest_coverage == 0
        with pytest.raises(CoverageError, match="no calibration image has a label"):
            sets.threshold(0.5)


@pytest.mark.parametrize("coverage", [0, 1, -0.5, 2, float("nan"), float("inf")])
def test_no_share_between_0_and_1_is_refused(coverage):
    sets = ConformalSets.fit(np.eye(4, dtype=np.float32), np.arange(4), "single")
    with pytest.raises(CoverageError, match="valid is a number between 0 and 1"):
        sets.threshold(coverage)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "nan", "inf", "2", "0", "1", "-0.5", "half", "0,9", "0.9 ", "0_9", "0.9_5"),
        *("٠.٩", "90%", "0.9.1", "1e400", "1e-400", "9" * 5000, "0x1p-1"),
    ],
)
def test_text_that_is_no_coverage_is_refused(text):
    with pytest.raises(CoverageError, match="valid is a number between 0 and 1") as raised:
        parse_coverage(text)
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(("text", "value"), [("0.9", 0.9), (".5", 0.5), ("1e-3", 0.001)])
def test_numbers_as_people_and_programs_write_them_are_read(text, value):
    assert parse_coverage(text) == value


@given(coverages)
def test_a_coverage_is_read_as_it_was_written(coverage):
    assert parse_coverage(str(coverage)) == coverage


# In a bundle


def test_what_is_kept_in_a_bundle_gives_the_same_sets(tmp_path, make_manifest, fill_bundle):
    table, targets = drawn("multi", 200, seed=6)
    sets = ConformalSets.fit(table, targets, "multi")
    with writing(tmp_path / "bundle") as partial:
        fill_bundle(partial)
        save_arrays(partial / CONFORMAL_SETS, sets.to_arrays())
        seal(partial, make_manifest())
    again = load_sets(load(tmp_path / "bundle"))
    assert again is not None
    assert np.array_equal(again.contains(table, 0.9), sets.contains(table, 0.9))


def test_an_older_bundle_loads_and_says_which_command_mends_it(bundle_directory: Path):
    bundle = load(bundle_directory)
    assert load_sets(bundle) is None
    assert bundle.manifest.prediction_sets is None
    assert "plumbline train --data ... --name shapes" in str(no_sets(bundle))
