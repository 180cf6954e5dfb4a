"""Test-time augmentation: the views, their weights, and when a mirror image is none of them."""

from __future__ import annotations

import numpy as np
import pytest

from model.views import mean_over_views, means_the_same_mirrored, other_views


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8)


@pytest.mark.parametrize(("mirror", "views", "own"), [(False, 2, 0.5), (True, 5, 0.25)])
def test_the_image_itself_and_its_mirror_have_half_of_the_weight(mirror, views, own, images):
    others = other_views(images, mirror=mirror)
    assert len(others) == views
    assert 1 - sum(weight for weight, _ in others) == own
    for _, view in others:
        assert view.shape == images.shape
        assert view.dtype == np.uint8
        assert view.flags.c_contiguous


def test_views_are_moved_by_one_in_28_pixels_and_reflected_at_the_edge(images):
    up_left, down_right = (view for _, view in other_views(images, mirror=False))
    assert np.array_equal(up_left[:, :-2, :-2], images[:, 2:, 2:])
    assert np.array_equal(down_right[:, 2:, 2:], images[:, :-2, :-2])
    assert np.array_equal(down_right[:, 2:, 1], images[:, :-2, 1])


def test_mirrored_views_are_mirrored_left_to_right(images):
    views = [view for _, view in other_views(images, mirror=True)]
    assert np.array_equal(views[2], images[:, :, ::-1])
    assert np.array_equal(views[3], views[0][:, :, ::-1])


def test_the_mean_of_what_never_changes_is_that(images):
    chances = np.array([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]], np.float32)
    mean = mean_over_views(chances, images, lambda view: chances, mirror=True)
    assert np.allclose(mean, chances)
    assert mean.dtype == np.float32


@pytest.mark.parametrize(
    ("training", "mirrored"),
    [
        ({"flip": True, "kept": "fine-tuned"}, True),
        ({"flip": False, "kept": "fine-tuned"}, False),
        ({"flip": True, "kept": "linear head"}, False),
        ({}, False),
    ],
)
def test_a_mirror_image_counts_where_the_model_was_trained_on_such(training, mirrored):
    assert means_the_same_mirrored(training) is mirrored


def test_the_linear_head_is_called_so_by_training():
    from model.views import _LINEAR_HEAD
    from training.fine_tuning import LINEAR_HEAD_KEPT

    assert _LINEAR_HEAD == LINEAR_HEAD_KEPT
