"""Augmentation: what moves, what stays, and that a seed means the same images."""

import pytest
import torch
from torch import Tensor

from training.augment import Augmentation, augment, erase, flip_and_shift


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (64, 12, 10, 3), generator=generator(9), dtype=torch.uint8)


def test_nothing_asked_for_changes_nothing(images: Tensor) -> None:
    still = Augmentation(flip=False, shift_share=0.0, erase_probability=0.0)
    assert torch.equal(augment(images, still, generator()), images)


def test_flip_mirrors_about_half_and_leaves_the_others(images: Tensor) -> None:
    flipped = flip_and_shift(images, True, 0.0, generator())
    mirrored = (flipped == images.flip(2)).flatten(1).all(dim=1)
    same = (flipped == images).flatten(1).all(dim=1)
    assert bool((mirrored ^ same).all())
    assert 20 <= int(mirrored.sum()) <= 44


def test_every_image_is_shifted_by_its_own_offset_with_reflected_border() -> None:
    # Pixel value = 10 * row + column, so that the offset can be read off.
    one = (torch.arange(10)[:, None] * 10 + torch.arange(10)).to(torch.uint8)
    images = one[None, :, :, None].repeat(200, 1, 1, 3)
    shifted = flip_and_shift(images, False, 0.2, generator())[..., 0].int()
    rows = shifted[:, 5, 5] // 10 - 5
    columns = shifted[:, 5, 5] % 10 - 5
    assert {tuple(pair) for pair in torch.stack([rows, columns], 1).tolist()} == {
        (row, column) for row in range(-2, 3) for column in range(-2, 3)
    }
    two_up = shifted[int(((rows == -2) & (columns == 0)).nonzero()[0])]
    assert two_up[:4, 0].tolist() == [20, 10, 0, 10]


def test_erase_replaces_one_rectangle_in_the_chosen_share() -> None:
    images = torch.full((400, 20, 20, 3), 7, dtype=torch.uint8)
    before = images.clone()
    changed = (erase(images, 0.25, generator()) != 7).any(dim=3)
    share = changed.flatten(1).any(dim=1).float().mean()
    assert 0.18 < float(share) < 0.32
    area = changed.flatten(1).float().mean(dim=1)
    assert float(area.max()) < 0.33
    assert torch.equal(images, before)


def test_same_seed_same_images_and_another_seed_others(images: Tensor) -> None:
    everything = Augmentation(flip=True, shift_share=0.2, erase_probability=0.5)
    first = augment(images, everything, generator(3))
    assert torch.equal(first, augment(images, everything, generator(3)))
    assert not torch.equal(first, augment(images, everything, generator(4)))
    assert first.dtype == torch.uint8
