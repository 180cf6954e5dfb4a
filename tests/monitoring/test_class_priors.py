"""Class shares are found in unlabelled images, by two ways whose intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.class_priors import (
    by_black_box,
    by_expectation_maximisation,
    corrected,
    image_weights,
    odds_ratio,
    threshold_before,
)
from monitoring.truth import as_matrix

SHARES = np.array([0.6, 0.3, 0.1])


def both(reference, images):
    """Shares by both ways."""
    known, seen = reference.sample, images.sample
    found = by_expectation_maximisation(
        seen.chances, known.chances.mean(axis=0), len(known), exclusive=True
    )
    true = as_matrix(known.targets, 3)
    return found, by_black_box(seen.given, known.given, true, exclusive=True)


def test_both_ways_find_the_shares_and_their_intervals_hold_them(world):
    reference = world(3_000, 0)
    held = []
    for seed in range(1, 61):
        images = world(600, seed, SHARES)
        for found in both(reference, images):
            assert found.shares.sum() == pytest.approx(1)
            assert np.abs(found.shares - SHARES).max() < 0.12
            held.append((found.low <= SHARES) & (found.high >= SHARES))
    assert 0.91 <= np.mean(held) <= 0.99


def test_the_reference_itself_has_its_own_shares_exactly(world):
    reference = world(1_000, 0, (0.5, 0.3, 0.2))
    found, checked = both(reference, reference)
    assert found.shares == pytest.approx(reference.sample.chances.mean(axis=0), abs=1e-4)
    shares = np.bincount(reference.targets) / 1_000
    assert checked.shares == pytest.approx(shares, abs=1e-6)


def test_the_sharper_way_has_the_smaller_errors(world):
    found, checked = both(world(3_000, 0), world(600, 1, SHARES))
    assert (found.errors**2).sum() < (checked.errors**2).sum()


def test_a_reference_without_a_class_has_no_confusion_matrix(world):
    found, checked = both(world(500, 0, (0.5, 0.5, 0.0)), world(300, 1))
    assert checked is None
    assert np.isfinite(found.shares).all()


def test_classes_that_do_not_exclude_each_other_are_found_one_by_one():
    rng = np.random.default_rng(0)

    def draw(count, shares):
        true = rng.random((count, 2)) < shares
        logits = 4 * (rng.normal(0, 0.5, true.shape) + true - 0.5)
        return true, 1 / (1 + np.exp(-logits))

    true, reference = draw(4_000, [0.5, 0.5])
    _, seen = draw(2_000, [0.8, 0.5])
    found = by_expectation_maximisation(seen, reference.mean(axis=0), 4_000, exclusive=False)
    checked = by_black_box(seen > 0.5, reference > 0.5, true, exclusive=False)
    for its in (found, checked):
        assert its.shares == pytest.approx([0.8, 0.5], abs=0.04)
        assert (its.errors < 0.03).all()
    unknown = by_black_box(seen > 0.5, reference > 0.5, true & False, exclusive=False)
    assert np.isnan(unknown.shares).all()


def test_corrected_probabilities_are_those_of_the_new_shares(world):
    images = world(40_000, 3, SHARES)
    chances = corrected(images.sample.chances, np.full(3, 1 / 3), SHARES, exclusive=True)
    assert chances.sum(axis=1) == pytest.approx(1)
    sure = chances[:, 0] > 0.9
    assert (images.targets[sure] == 0).mean() == pytest.approx(chances[sure, 0].mean(), abs=0.01)
    before, after = images.sample.chances.argmax(axis=1), chances.argmax(axis=1)
    assert (after == images.targets).mean() > (before == images.targets).mean() + 0.01


def test_an_adjusted_threshold_decides_as_the_old_one_on_corrected_probabilities():
    rng = np.random.default_rng(0)
    chances, before, after = rng.random((500, 1)), np.array([0.2]), np.array([0.5])
    ratio = float(odds_ratio(before, after)[0])
    moved = corrected(chances, before, after, exclusive=False)
    assert ((moved >= 0.4) == (chances >= threshold_before(0.4, ratio))).all()
    assert threshold_before(0.0, ratio) == 0.0


def test_weighted_images_come_in_the_new_shares(world):
    images = world(5_000, 0)
    true = as_matrix(images.targets, 3).astype(float)
    known = true.mean(axis=0)
    weights = image_weights(true, known, SHARES, np.ones(3, bool), exclusive=True)
    assert weights @ true / weights.sum() == pytest.approx(SHARES)
    nothing = image_weights(np.zeros((2, 3)), known, SHARES, np.ones(3, bool), exclusive=True)
    assert nothing.tolist() == [1.0, 1.0]
