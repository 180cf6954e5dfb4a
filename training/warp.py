"""Crop, zoom, rotation, shear, flip and perspective as one matrix, sampled once.

The second step of presizing (fastai book, chapter 5): every image gets a 3 x 3 matrix of its own
that maps the output onto the larger, presized image; all pixels are read once, by one
`grid_sample`, straight at the final size. Several warps in a row would blur at every step.
Coordinates run from -1 to 1 over an image, as in `torch.nn.functional.grid_sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.world import ALONE, World

_SHRINK = 1.5  # source pixels per output pixel, above which more samples are averaged
_SHRINK_OF_THREE = 2.0  # up to which three do
# Three samples are nearer to the truth than 2 x 2 there, and take half the time
# (bench/presizing.py).
_TRIANGLE = ((-0.25, -0.2), (0.25, -0.2), (0.0, 0.3))
_PIXELS_AT_ONCE = 2**19
_CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Warp:
    """How far images are warped, each by its own amounts drawn evenly from these ranges.

    `least_crop` is the share of the area that the smallest crop keeps; `aspect` how many times
    wider than high it is at most, or the reverse. `perspective` is the share by which one side
    of the image may come nearer. Angles are in degrees. `lighting` is the share by which
    brightness (of the full range) and contrast change.
    """

    flip: bool = True
    least_crop: float = 0.5
    aspect: float = 4 / 3
    rotation: float = 10.0
    shear: float = 5.0
    perspective: float = 0.15
    lighting: float = 0.2


def warp(
    images: Tensor, size: int, how: Warp, generator: torch.Generator, world: World = ALONE
) -> Tensor:
    """Warped copy, float N x size x size x 3 in 0..255, of uint8 images N x H x H x 3."""
    count, drawn = len(images), len(images) * world.size
    matrices = world.part(draw_matrices(drawn, how, generator))
    contrast, shift = map(world.part, draw_lighting(drawn, how.lighting, generator))
    warped = torch.empty(count, 3, size, size, device=images.device)
    for start in range(0, count, step := _images_at_once(images)):
        block = slice(start, start + step)
        channels_first = images[block].permute(0, 3, 1, 2).float()
        sampled = sample(channels_first, matrices[block], size)
        warped[block] = light(sampled, contrast[block], shift[block])
    return warped.permute(0, 2, 3, 1)


def _images_at_once(images: Tensor) -> int:
    """On a CPU few enough to stay in its cache: 20 ms for 32 images of 340 px, not 60."""
    if images.device.type != "cpu":
        return len(images)
    return max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))


def draw_matrices(count: int, how: Warp, generator: torch.Generator) -> Tensor:
    """One matrix per image, float32 N x 3 x 3, from output to source coordinates.

    None leads outside the source: whatever rotation, shear and perspective were drawn, the
    quadrilateral they make is scaled and moved to lie inside.
    """

    def evenly(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    aspect = evenly(-1, 1).mul(math.log(how.aspect) / 2).exp()
    mirrored = 1 - 2 * (torch.rand(count, generator=generator) < 0.5 * how.flip).float()
    shape = (
        _rotation(evenly(-1, 1) * math.radians(how.rotation))
        @ _shear(evenly(-1, 1) * math.radians(how.shear))
        @ _scaling(aspect * mirrored, 1 / aspect)
        @ _perspective(evenly(-1, 1) * how.perspective, evenly(-1, 1) * how.perspective)
    )
    side = evenly(how.least_crop, 1.0).sqrt()
    across, down = evenly(0, 1), evenly(0, 1)
    return _placed_inside(shape, side, torch.stack([across, down], dim=1))


def draw_lighting(count: int, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factor of the contrast and shift of the brightness (0..255) per image, each N."""
    contrast = ((torch.rand(count, generator=generator) * 2 - 1) * most).exp()
    shift = (torch.rand(count, generator=generator) * 2 - 1) * most / 2 * 255
    return contrast, shift


def sample(images: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Read float images N x 3 x H x H where the matrices lead: N x 3 x size x size.

    Where a warp shrinks more than 1.5 times, several samples are averaged per output pixel, so
    that fine patterns do not turn into false ones.
    """
    counts = _sample_counts(matrices, images.shape[-1] / size)
    if counts.unique().numel() == 1:
        return _sample(images, matrices, size, int(counts[0]))
    sampled = images.new_empty(len(images), images.shape[1], size, size)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero()[:, 0]
        on_device = rows.to(images.device)
        sampled[on_device] = _sample(images[on_device], matrices[rows], size, int(count))
    return sampled


def light(images: Tensor, contrast: Tensor, shift: Tensor) -> Tensor:
    """Contrast about the mean of each image, and brightness, in place, on N x 3 x H x W."""
    mean = images.mean(dim=(1, 2, 3))
    factor = contrast.to(images.device)
    offset = shift.to(images.device) + mean * (1 - factor)
    by_image = (slice(None), None, None, None)
    return images.mul_(factor[by_image]).add_(offset[by_image]).clamp_(0, 255)


def _sample(images: Tensor, matrices: Tensor, size: int, count: int) -> Tensor:
    """The average of `count` samples per output pixel."""
    sampled: Tensor | None = None
    for across, down in _places_in_pixel(count):
        moving = torch.eye(3)
        moving[:2, 2] = torch.tensor([across, down]) * 2 / size
        grid = _grid((matrices @ moving).to(images.device), size)
        # The border is only met by rounding: no matrix leads outside.
        one = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        sampled = one if sampled is None else sampled.add_(one)
    assert sampled is not None
    return sampled.div_(count) if count > 1 else sampled


def _places_in_pixel(count: int) -> list[tuple[float, float]]:
    """Where in an output pixel to sample, from its centre: a triangle, or a square grid."""
    if count == len(_TRIANGLE):
        return list(_TRIANGLE)
    side = math.isqrt(count)
    places = [(index + 0.5) / side - 0.5 for index in range(side)]
    return [(across, down) for down in places for across in places]


def _grid(matrices: Tensor, size: int) -> Tensor:
    """Source coordinates N x size x size x 2 of the centres of the output's pixels."""
    centre = (2 * torch.arange(size, device=matrices.device) + 1) / size - 1
    down, across = torch.meshgrid(centre, centre, indexing="ij")
    output = torch.stack([across, down, torch.ones_like(down)], dim=-1).reshape(1, -1, 3)
    source = output @ matrices.transpose(1, 2)
    return (source[..., :2] / source[..., 2:]).reshape(len(matrices), size, size, 2)


def _sample_counts(matrices: Tensor, ratio: float) -> Tensor:
    """Samples per output pixel, int N: 1 up to a shrinkage of 1.5, 3 up to 2, then squares."""
    corners = _corners(matrices)
    # The longest edge of the quadrilateral, in source pixels per output pixel.
    shrink = (corners - corners.roll(1, dims=1)).norm(dim=2).amax(dim=1) / 2 * ratio - 1e-3
    squares = (shrink / _SHRINK).ceil().clamp(min=1).int() ** 2
    few = (shrink > _SHRINK) & (shrink <= _SHRINK_OF_THREE)
    return torch.where(few, torch.full_like(squares, len(_TRIANGLE)), squares)


def _placed_inside(shape: Tensor, side: Tensor, place: Tensor) -> Tensor:
    """Scale and move each quadrilateral into the source.

    `side` is its share of the largest that fits, `place` 0 to 1 across and down the room left.
    """
    corners = _corners(shape)
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    scale = side * 2 / (high - low).amax(dim=1)
    start, room = -1 - low * scale[:, None], 2 - (high - low) * scale[:, None]
    moved = start + place * room
    placing = _scaling(scale, scale)
    placing[:, :2, 2] = moved
    return placing @ shape


def _corners(matrices: Tensor) -> Tensor:
    """Where the output's corners come from, N x 4 x 2."""
    corners = torch.tensor([(x, y, 1.0) for x, y in _CORNERS])
    source = corners @ matrices.transpose(1, 2)
    return source[..., :2] / source[..., 2:]


def _rotation(angle: Tensor) -> Tensor:
    matrix = _identity(len(angle))
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
    return matrix


def _shear(angle: Tensor) -> Tensor:
    matrix = _identity(len(angle))
    matrix[:, 0, 1] = angle.tan()
    return matrix


def _scaling(across: Tensor, down: Tensor) -> Tensor:
    matrix = _identity(len(across))
    matrix[:, 0, 0], matrix[:, 1, 1] = across, down
    return matrix


def _perspective(across: Tensor, down: Tensor) -> Tensor:
    matrix = _identity(len(across))
    matrix[:, 2, 0], matrix[:, 2, 1] = across, down
    return matrix


def _identity(count: int) -> Tensor:
    return torch.eye(3).repeat(count, 1, 1)
