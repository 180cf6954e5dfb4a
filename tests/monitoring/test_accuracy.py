"""Accuracy without labels is right where probabilities are, and says when not to be believed."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.accuracy import (
    AtcReference,
    atc,
    atc_interval,
    atc_threshold,
    believable,
    cbpe,
    cbpe_interval,
    expected_labels,
    why_invalid,
    wilson_interval,
)


def test_cbpe_expects_what_calibrated_probabilities_come_to():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(5, 0.5), 20_000)
    truth = np.array([rng.choice(5, p=row) for row in chances])
    given = chances == chances.max(axis=1, keepdims=True)
    right = float((chances.argmax(axis=1) == truth).mean())
    assert cbpe(expected_labels(chances, given), "single") == pytest.approx(right, abs=0.01)


def test_cbpe_of_several_labels_is_micro_f1():
    rng = np.random.default_rng(0)
    chances = rng.random((20_000, 4))
    truth = rng.random(chances.shape) < chances
    given = chances >= 0.4
    f1 = 2 * (truth & given).sum() / (truth.sum() + given.sum())
    assert cbpe(expected_labels(chances, given), "multi") == pytest.approx(f1, abs=0.01)


def test_without_images_there_is_no_estimate():
    nothing = np.zeros((0, 5))
    assert (cbpe(nothing, "single"), cbpe(nothing, "multi")) == (None, None)
    assert cbpe_interval(nothing, "single", 1_000) is None
    assert atc(np.zeros(0), 0.5) is None
    assert atc_interval(np.zeros(0), AtcReference(0.5, 0.6, 0.4), np.zeros(0)) is None
    assert not believable(0, 0, 0.01)


def test_atc_is_the_accuracy_on_the_reference_itself():
    confidences = np.random.default_rng(0).random(5_000)
    threshold = atc_threshold(confidences, 0.83)
    assert atc(confidences, threshold) == pytest.approx(0.83, abs=0.001)
    assert atc(confidences - 0.2, threshold) < 0.7


@pytest.mark.parametrize(
    ("flagged", "images", "held"),
    [(10, 1000, True), (30, 1000, True), (40, 1000, True), (60, 1000, False), (5, 10, False)],
)
def test_a_flagged_share_over_three_alphas_is_not_believed(flagged, images, held):
    assert believable(flagged, images, 0.01) is held


# Intervals: how often they hold what comes out, where nothing changed


def share_held(intervals, truths) -> float:
    return float(
        np.mean([low <= true <= high for (low, high), true in zip(intervals, truths, strict=True)])
    )


def a_window(rng, images: int):
    """Probabilities, labels given and true labels of so many images of five classes."""
    chances = rng.dirichlet(np.full(5, 0.5), images)
    truth = (rng.random((images, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=4)
    return chances, chances == chances.max(axis=1, keepdims=True), truth


def test_cbpe_holds_the_accuracy_of_the_window_in_95_of_100():
    rng = np.random.default_rng(0)
    intervals, truths, narrow = [], [], []
    for _ in range(400):
        chances, given, truth = a_window(rng, 300)
        expected = expected_labels(chances, given)
        intervals.append(cbpe_interval(expected, "single", 10**9))
        narrow.append(cbpe_interval(expected, "single", 300))
        truths.append((chances.argmax(axis=1) == truth).mean())
    assert 0.92 <= share_held(intervals, truths) <= 0.98
    wide = [high - low for low, high in narrow]
    assert np.mean(wide) == pytest.approx(2**0.5 * np.mean([b - a for a, b in intervals]), rel=0.01)


def test_cbpe_holds_the_micro_f1_of_the_window_in_95_of_100():
    rng = np.random.default_rng(0)
    intervals, truths = [], []
    for _ in range(400):
        chances = rng.random((200, 4))
        truth, given = rng.random(chances.shape) < chances, chances >= 0.4
        intervals.append(cbpe_interval(expected_labels(chances, given), "multi", 10**9))
        truths.append(2 * (truth & given).sum() / (truth.sum() + given.sum()))
    assert 0.92 <= share_held(intervals, truths) <= 0.98


def test_atc_holds_the_accuracy_of_the_window_though_the_reference_is_small():
    rng = np.random.default_rng(0)
    intervals, truths = [], []
    for _ in range(200):
        chances, _, truth = a_window(rng, 500)
        right = int((chances.argmax(axis=1) == truth).sum())
        low, high = wilson_interval(right, 500)
        reference = AtcReference.of(chances.max(axis=1), right / 500, low, high)
        chances, _, truth = a_window(rng, 300)
        sure = chances.max(axis=1)
        intervals.append(atc_interval(sure, reference, sure))
        truths.append((chances.argmax(axis=1) == truth).mean())
    assert 0.92 <= share_held(intervals, truths) <= 0.99


def test_why_an_estimate_is_not_to_be_believed_is_told_in_words():
    assert why_invalid(10, 1_000, 0.01) is None
    assert why_invalid(0, 0, 0.01) == "no images have been recorded yet"
    flagged = why_invalid(60, 1_000, 0.01)
    assert "60 of the last 1000 images are flagged" in flagged
    assert "6.0% where 0.01 is usual" in flagged
    assert "drifted (outlier score)" in why_invalid(10, 1_000, 0.01, "outlier_score")
    assert why_invalid(60, 1_000, 0.01, "brightness").count(";") == 1
