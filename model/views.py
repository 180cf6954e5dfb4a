"""Test-time augmentation: one image looked at several times, and the mean of what is seen.

Half of the weight lies on the image as it is, a quarter each on it moved a little up and left, and
down and right; where mirrored images mean the same, each of them counts half for its mirror image
(as in KellerJordan/cifar10-airbench). What is averaged are calibrated probabilities. Thresholds
and temperature were fitted to single looks: the mean is milder than these, so more images fall
below a threshold. `plumbline evaluate --tta` shows both. The outlier score keeps to the image as
it is, since its calibration holds for that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.images import Pixels

_SHIFTED_PER_SIDE = 28  # sides over pixels moved: 1 of 28, 8 of 224
_LINEAR_HEAD = "linear head"  # fitted to images as they are, whatever the settings of the rest


def means_the_same_mirrored(training: Mapping[str, Any]) -> bool:
    """Whether a model was trained on mirrored images, by the settings in its manifest."""
    return bool(training.get("flip")) and training.get("kept") != _LINEAR_HEAD


def other_views(images: Pixels, *, mirror: bool) -> list[tuple[float, Pixels]]:
    """Weights and batches, uint8 N x H x W x 3, of all views but the images as they are.

    What is missing of 1 in the weights is the weight of those.
    """
    pixels = max(1, images.shape[1] // _SHIFTED_PER_SIDE)
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    moved = [
        (0.25, np.ascontiguousarray(padded[:, 2 * pixels :, 2 * pixels :])),
        (0.25, np.ascontiguousarray(padded[:, : -2 * pixels, : -2 * pixels])),
    ]
    if not mirror:
        return moved
    halves = [(weight / 2, view) for weight, view in moved]
    mirrored = [
        (weight, np.ascontiguousarray(view[:, :, ::-1]))
        for weight, view in [(0.25, images), *halves]
    ]
    return [*halves, *mirrored]


def mean_over_views(
    plain: NDArray[np.float32],
    images: Pixels,
    chances_of: Callable[[Pixels], NDArray[np.float32]],
    *,
    mirror: bool,
) -> NDArray[np.float32]:
    """Mean probabilities N x C; `plain` are those of the images as they are.

    >>> images = np.zeros((1, 28, 28, 3), np.uint8)
    >>> sure, unsure = np.array([[1, 0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    >>> mean_over_views(sure, images, lambda view: unsure, mirror=False).tolist()
    [[0.75, 0.25]]
    """
    others = other_views(images, mirror=mirror)
    mean = (1 - sum(weight for weight, _ in others)) * plain
    for weight, view in others:
        mean = mean + weight * chances_of(view)
    return np.asarray(mean, np.float32)
