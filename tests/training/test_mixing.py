"""Mixup and CutMix: images and targets are mixed by the same shares, for both losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_checkpoint import SETTINGS, trainer
from training.callbacks import Callback
from training.loop import Trainer
from training.mixing import cutmix, mixup, soft_targets

CLASSES = 4
LEVELS = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)  # grey of each class


def batch(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one grey each, which tells their class."""
    targets = torch.arange(count) % CLASSES
    images = LEVELS[targets][:, None, None, None].expand(count, 16, 16, 3).contiguous()
    return images, soft_targets(targets, CLASSES)


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_soft_targets_of_indices_are_one_hot_and_of_shares_themselves() -> None:
    assert soft_targets(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    shares = torch.tensor([[0.5, 1.0]])
    assert soft_targets(shares, 2).equal(shares)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_images_and_targets_are_mixed_by_the_same_shares(mix) -> None:  # type: ignore[no-untyped-def]
    images, targets = batch()
    mixed, shares = mix(images, targets, 1.0, random())
    assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * len(images), abs=1e-5)
    expected = shares @ LEVELS.float()
    torch.testing.assert_close(mixed.float().mean(dim=(1, 2, 3)), expected, atol=0.01, rtol=1e-4)
    assert ((shares > 0.05).sum(dim=1) == 2).float().mean() > 0.4


def test_mixup_keeps_more_of_the_image_than_of_its_partner() -> None:
    images, targets = batch()
    _, shares = mixup(images, targets, 0.4, random())
    assert (shares.gather(1, targets.argmax(dim=1)[:, None]) >= 0.5).all()


def test_cutmix_pastes_whole_pixels() -> None:
    images, targets = batch()
    mixed, _ = cutmix(images, targets, 1.0, random())
    assert mixed.dtype == torch.uint8
    assert set(mixed.unique().tolist()) <= set(LEVELS.tolist())


def test_several_labels_are_mixed_each_by_itself() -> None:
    images, _ = batch(2)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    _, shares = mixup(images, targets, 1.0, random())
    assert (shares[:, 1] == 1).all()
    assert (shares[:, 2] == 0).all()


@pytest.mark.parametrize("knob", ["mixup", "cutmix"])
def test_the_loop_trains_on_mixed_images_and_learns(knob: str) -> None:
    seen = []

    class Look(Callback):
        def after_batch(self, trainer: Trainer) -> None:
            seen.append(trainer.targets)

    settings = replace(SETTINGS, **{knob: 0.4})
    history = trainer(Look(), settings=settings).fit()
    assert all(targets.shape == (16, 2) for targets in seen)
    assert any(((targets > 0.01) & (targets < 0.99)).any() for targets in seen)
    assert history.epochs[-1].validation_loss < history.epochs[0].validation_loss
