"""Accuracy without labels is right where probabilities are, and says when not to be believed."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.accuracy import atc, atc_threshold, believable, cbpe, expected_labels


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
    nothing = np.zeros((0, 3))
    assert (cbpe(nothing, "single"), cbpe(nothing, "multi")) == (None, None)
    assert atc(np.zeros(0), 0.5) is None
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
