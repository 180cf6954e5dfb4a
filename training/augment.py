"""Random changes to a batch of images that do not change what they show.

Whole batches on the device they lie on, another change for every image, all from one seeded
generator on the CPU (so that a seed means the same on every device). Several processes that
share a batch draw for all of it and take their part, so that a seed means the same for them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.world import ALONE, World

_ERASED_AREA = (0.02, 0.25)  # share of the image (Zhong et al. 2020, narrowed)
_ERASED_ASPECT = 3.0  # at most this many times wider than high, or the reverse


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    `flip`: mirrored left to right in half of the cases; leave it off where sides matter (text,
    digits). `shift_share`: moved by up to this share of the side, the border reflected.
    `erase_probability`: how often a rectangle is replaced by noise.
    """

    flip: bool = True
    shift_share: float = 0.07
    erase_probability: float = 0.0


def augment(
    images: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    world: World = ALONE,
) -> Tensor:
    """Augmented copy of uint8 images N x H x W x 3."""
    flip, shift_share = augmentation.flip, augmentation.shift_share
    moved = flip_and_shift(images, flip, shift_share, generator, world)
    return erase(moved, augmentation.erase_probability, generator, world)


def flip_and_shift(
    images: Tensor,
    flip: bool,
    shift_share: float,
    generator: torch.Generator,
    world: World = ALONE,
) -> Tensor:
    """Mirror half of the images and move each by its own whole number of pixels."""
    if not flip and shift_share == 0:
        return images
    count, height, width, _ = images.shape
    drawn = count * world.size
    rows = world.part(_shifted(drawn, height, shift_share, generator))
    columns = world.part(_shifted(drawn, width, shift_share, generator))
    if flip:
        mirrored = world.part(torch.rand(drawn, 1, generator=generator)) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    # One gather for both: flat pixel number N x H x W.
    first = torch.arange(count)[:, None, None] * (height * width)
    pixel = first + rows[:, :, None] * width + columns[:, None, :]
    flat = images.reshape(count * height * width, 3)
    return flat[pixel.reshape(-1).to(images.device)].reshape(images.shape)


def shrink(images: Tensor, side: int) -> Tensor:
    """Antialiased float copy N x side x side x 3, in 0..255, of larger images N x H x H x 3."""
    channels_first = images.permute(0, 3, 1, 2).float()
    shrunk = functional.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
    return shrunk.permute(0, 2, 3, 1)


def erase(
    images: Tensor, probability: float, generator: torch.Generator, world: World = ALONE
) -> Tensor:
    """Replace a random rectangle by noise in a share of the images (Zhong et al. 2020).

    Takes uint8 or float in 0..255, N x H x W x 3.
    """
    if probability == 0:
        return images
    _, height, width, _ = images.shape
    count = len(images) * world.size
    chosen = torch.rand(count, generator=generator) < probability
    area = torch.empty(count).uniform_(*_ERASED_AREA, generator=generator)
    spread = math.log(_ERASED_ASPECT)
    aspect = torch.empty(count).uniform_(-spread, spread, generator=generator).exp()
    inside_rows = _interval(height, (area * aspect).sqrt() * chosen, generator)
    inside_columns = _interval(width, (area / aspect).sqrt() * chosen, generator)
    inside = world.part(inside_rows[:, :, None] & inside_columns[:, None, :]).to(images.device)
    noise = torch.randint(0, 256, (int(inside.sum()), 3), generator=generator, dtype=torch.uint8)
    erased = images.clone()
    erased[inside] = noise.to(images.device, images.dtype)
    return erased


def _shifted(count: int, side: int, share: float, generator: torch.Generator) -> Tensor:
    """For every image and output pixel the source pixel, N x side, reflected at the border."""
    most = round(share * side)
    offset = torch.randint(-most, most + 1, (count, 1), generator=generator)
    source = (torch.arange(side) + offset).abs()
    return side - 1 - (side - 1 - source).abs()


def _interval(side: int, share: Tensor, generator: torch.Generator) -> Tensor:
    """One random interval of `share` of the side per image, as a mask N x side."""
    length = (share * side).clamp(max=side)
    start = torch.rand(len(share), generator=generator) * (side - length)
    position = torch.arange(side)
    return (position >= start[:, None]) & (position < (start + length)[:, None])
