"""The warp: one matrix per image, nothing from outside, no false patterns, one seed one result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional

from training.warp import Warp, draw_matrices, light, sample, warp

STRONG = Warp(rotation=30, shear=20, perspective=0.4, least_crop=0.2, aspect=2.0)
STILL = Warp(flip=False, least_crop=1.0, aspect=1.0, rotation=0, shear=0, perspective=0, lighting=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(side: int = 336) -> torch.Tensor:
    """The astronaut, float 1 x 3 x side x side."""
    pixels = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None].float()
    return functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


def rotation(degrees: float, scale: float = 1.0) -> torch.Tensor:
    turn = math.radians(degrees)
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    return torch.tensor([[[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]]])


@pytest.mark.parametrize("how", [Warp(), STRONG])
def test_no_warp_reads_outside_the_image(how: Warp) -> None:
    matrices = draw_matrices(2000, how, generator())
    edge = torch.linspace(-1, 1, 21)
    square = torch.stack(torch.meshgrid(edge, edge, indexing="ij"), dim=-1).reshape(-1, 2)
    source = torch.cat([square, torch.ones(len(square), 1)], dim=1) @ matrices.transpose(1, 2)
    assert (source[..., 2] > 0).all()
    assert (source[..., :2] / source[..., 2:]).abs().max() <= 1 + 1e-4


def test_an_image_of_one_colour_stays_so_up_to_its_corners() -> None:
    images = torch.full((64, 96, 96, 3), 200, dtype=torch.uint8)
    how = Warp(rotation=30, shear=20, perspective=0.4, lighting=0)
    assert (warp(images, 64, how, generator()) - 200).abs().max() < 1e-3


def test_every_image_of_a_batch_is_warped_by_itself() -> None:
    matrices = draw_matrices(16, Warp(), generator())
    assert len({tuple(one.flatten().tolist()) for one in matrices}) == 16


def test_one_seed_gives_one_result() -> None:
    images = photograph(96).permute(0, 2, 3, 1).to(torch.uint8).repeat(4, 1, 1, 1)
    one, same, other = (warp(images, 64, Warp(), generator(seed)) for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_a_warp_that_changes_nothing_gives_the_image_back() -> None:
    images = photograph(64).permute(0, 2, 3, 1).to(torch.uint8)
    torch.testing.assert_close(
        warp(images, 64, STILL, generator()), images.float(), atol=0.01, rtol=0
    )


def test_half_of_the_images_are_mirrored() -> None:
    how = Warp(least_crop=1.0, aspect=1.0, rotation=0, shear=0, perspective=0)
    mirrored = draw_matrices(1000, how, generator())[:, 0, 0] < 0
    assert 0.45 < mirrored.float().mean() < 0.55


def test_a_quarter_turn_is_that_of_the_pixels() -> None:
    image = photograph(64)
    torch.testing.assert_close(
        sample(image, rotation(90), 64), image.rot90(1, dims=(2, 3)), atol=0.05, rtol=0
    )


def test_crops_keep_at_least_the_stated_share_of_what_fits() -> None:
    how = Warp(flip=False, least_crop=0.25, aspect=1.0, rotation=0, shear=0, perspective=0)
    area = torch.linalg.det(draw_matrices(2000, how, generator())[:, :2, :2])
    assert 0.25 <= area.min() < 0.3
    assert 0.95 < area.max() <= 1.0


@pytest.mark.parametrize("shrink", [2, 3, 5])
def test_a_pattern_finer_than_the_output_becomes_grey_and_no_false_pattern(shrink: int) -> None:
    """Stripes of one pixel, reduced: naive sampling shows broad stripes that are not there."""
    side = 64 * shrink
    stripes = (torch.arange(side) % 2 * 255.0).expand(1, 3, side, side).contiguous()
    slightly = rotation(2, 0.95)
    grid = functional.affine_grid(slightly[:, :2], [1, 3, 64, 64], align_corners=False)
    naive = functional.grid_sample(stripes, grid, align_corners=False)
    assert sample(stripes, slightly, 64).std() < 0.7 * naive.std()


def test_images_of_one_batch_that_shrink_differently_keep_their_places() -> None:
    image = photograph(256).repeat(3, 1, 1, 1)
    matrices = torch.cat([rotation(5, 0.9), rotation(5, 0.2), rotation(5, 0.9)])
    together = sample(image, matrices, 64)
    for row in range(3):
        alone = sample(image[row : row + 1], matrices[row : row + 1], 64)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_lighting_keeps_mean_by_contrast_and_moves_it_by_brightness() -> None:
    image = photograph(64) * 0.2 + 100
    wider = light(image.clone(), torch.tensor([1.5]), torch.tensor([0.0]))
    assert wider.mean().item() == pytest.approx(image.mean().item(), abs=0.01)
    assert wider.std().item() == pytest.approx(1.5 * image.std().item(), rel=0.01)
    brighter = light(image.clone(), torch.tensor([1.0]), torch.tensor([20.0]))
    assert brighter.mean().item() == pytest.approx(image.mean().item() + 20, abs=0.01)
    assert light(image.clone(), torch.tensor([9.0]), torch.tensor([200.0])).max() <= 255


def test_one_sampling_is_nearer_to_the_truth_than_two() -> None:
    """Against a warp of the whole photograph sampled 4 x 4 times, as fastai's two steps are not."""
    truth_image, presized = photograph(512), photograph(336)
    matrices = rotation(8, 0.8)
    truth = functional.avg_pool2d(sample(truth_image, matrices, 224 * 4), 4)
    once = sample(presized, matrices, 224)
    twice = sample(sample(presized, rotation(8), 336), rotation(0, 0.8), 224)
    error = [(one - truth).square().mean().item() for one in (once, twice)]
    assert error[0] < error[1]
    assert 10 * np.log10(255**2 / error[0]) > 30  # decibels
