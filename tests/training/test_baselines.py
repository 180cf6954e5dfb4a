"""What a model has to beat: the class prior, and a linear model in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.datasets

from training.baselines import class_prior, linear_on_pixels
from training.loop import Arrays


def digits() -> tuple[Arrays, Arrays]:
    """Handwritten digits of scikit-learn, as images of 32 px, for fit and validation."""
    loaded = sklearn.datasets.load_digits()
    grey = (loaded.images * 15.9).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(grey[..., None], 3, axis=3)
    return Arrays(images[:800], loaded.target[:800]), Arrays(images[800:], loaded.target[800:])


def test_class_prior_is_the_share_of_the_most_frequent_class() -> None:
    images = np.zeros((10, 4, 4, 3), np.uint8)
    fit = Arrays(images, np.array([0] * 7 + [1] * 3))
    validation = Arrays(images, np.array([0] * 4 + [1] * 6))
    assert class_prior(fit, validation, "single") == pytest.approx(0.4)


def test_class_prior_of_several_labels_has_their_prevalence_as_precision() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8)
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32)
    found = class_prior(Arrays(images, targets), Arrays(images, targets), "multi")
    assert found == pytest.approx((0.75 + 0.25) / 2)


def test_rows_without_a_class_are_left_out() -> None:
    images = np.zeros((6, 4, 4, 3), np.uint8)
    split = Arrays(images, np.array([-1, -1, 0, 0, 0, 1]))
    assert class_prior(split, split, "single") == pytest.approx(0.75)


def test_a_linear_model_on_pixels_knows_digits() -> None:
    fit, validation = digits()
    assert linear_on_pixels(fit, validation, "single", seed=0) > 0.85
