"""Mixup and CutMix: every image is blended with another, and so are their targets.

Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix". Targets become shares of the classes,
which cross-entropy takes for one label and binary cross-entropy for several.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def soft_targets(targets: Tensor, class_count: int) -> Tensor:
    """Class indices N as shares, float N x C; shares stay as they are.

    A row of no class, -1, has no share of any.
    """
    if targets.ndim == 2:
        return targets.float()
    return functional.one_hot(targets + 1, class_count + 1)[:, 1:].float()


def mixup(
    images: Tensor, targets: Tensor, alpha: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend every image N x H x W x 3, and its targets N x C, with another of the batch.

    The share of the image itself is drawn from Beta(alpha, alpha), and at least a half.
    """
    partner = torch.from_numpy(random.permutation(len(images))).to(images.device)
    drawn = random.beta(alpha, alpha, len(images))
    share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float().to(images.device)
    kept = share[:, None, None, None]
    mixed = images.float() * kept + images[partner].float() * (1 - kept)
    return mixed, _blend(targets, targets[partner], share)


def cutmix(
    images: Tensor, targets: Tensor, alpha: float, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image of the batch into every one; targets by area.

    The area is drawn from Beta(alpha, alpha), and cut where it would leave the image.
    """
    count, height, width, _ = images.shape
    partner = torch.from_numpy(random.permutation(count)).to(images.device)
    side = np.sqrt(random.beta(alpha, alpha, count))
    rows = _interval(height, side, random)
    columns = _interval(width, side, random)
    inside = torch.from_numpy(rows[:, :, None] & columns[:, None, :]).to(images.device)
    mixed = torch.where(inside[..., None], images[partner], images)
    return mixed, _blend(targets, targets[partner], 1 - inside.float().mean(dim=(1, 2)))


def _blend(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return own * share[:, None] + other * (1 - share[:, None])


def _interval(
    side: int, share: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.bool_]:
    """A stretch of `share` of the side about a random centre per image, as a mask N x side."""
    centre = random.random(len(share))[:, None] * side
    half = share[:, None] * side / 2
    position = np.arange(side)[None] + 0.5
    return np.asarray((position > centre - half) & (position < centre + half))
