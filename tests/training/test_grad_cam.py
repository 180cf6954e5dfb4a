"""Grad-CAM lights up where the patch is that makes the class."""

from __future__ import annotations

import numpy as np
import pytest

from model.images import InputSpec
from model.network import Network, create_network
from training.fine_tuning import train_from_scratch
from training.grad_cam import NoFeatureMapError, grad_cam, overlay
from training.loop import Arrays
from training.settings import TrainingSettings

SPEC = InputSpec(size=28, mean=(0.5,) * 3, std=(0.25,) * 3)


def patches(count: int, seed: int) -> Arrays:
    """Noise with a chequered patch on the left for class 1, and nothing for class 0."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 130, (count, 28, 28, 3)).astype(np.uint8)
    targets = np.arange(count) % 2
    patch = np.kron(np.indices((4, 4)).sum(axis=0) % 2, np.ones((2, 2)))[:, :, None] * 255
    for row in np.flatnonzero(targets):
        top = rng.integers(4, 16)
        left = 1 if row % 4 == 1 else 19  # a side, for the test to know
        images[row, top : top + 8, left : left + 8] = patch
    return Arrays(images, targets)


@pytest.fixture(scope="module")
def network() -> Network:
    made = create_network("small-resnet", 2, SPEC)
    settings = TrainingSettings(epochs=4, batch_size=16, precision="fp32", device="cpu", flip=False)
    history = train_from_scratch(made, patches(160, 0), patches(40, 1), settings, "single")
    assert history.metric == 1
    return made


def test_it_is_bright_where_the_patch_is(network: Network) -> None:
    shown = patches(40, 2)
    rows = np.flatnonzero(shown.targets)
    heat = grad_cam(network, shown.images[rows], [1] * len(rows))
    assert heat.shape == (len(rows), 28, 28)
    assert (heat.min(), heat.max()) == (0, 1)
    on_the_left = heat[:, :, :14].sum(axis=(1, 2)) > heat[:, :, 14:].sum(axis=(1, 2))
    assert (on_the_left == (rows % 4 == 1)).mean() >= 0.9


def test_the_network_is_left_as_it_was(network: Network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    grad_cam(network, patches(2, 3).images, [0, 1])
    assert all((before[name] == value).all() for name, value in network.state_dict().items())
    assert all(its.requires_grad and its.grad is None for its in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("architecture", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
def test_convolutional_bodies_of_timm_have_a_map(architecture: str) -> None:
    spec = SPEC.model_copy(update={"size": 64})
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    heat = grad_cam(create_network(architecture, 3, spec), images, [0, 2])
    assert heat.shape == (2, 64, 64)
    assert np.isfinite(heat).all()


@pytest.mark.parametrize("fused", [True, False])
def test_a_transformer_says_that_it_has_none(fused: bool) -> None:
    from timm.layers import set_fused_attn

    spec = SPEC.model_copy(update={"size": 224})
    try:
        set_fused_attn(fused)  # without, its tables of attention are outputs of modules
        made = create_network("vit_tiny_patch16_224", 2, spec)
        with pytest.raises(NoFeatureMapError, match="no feature map at its end"):
            grad_cam(made, np.zeros((1, 224, 224, 3), np.uint8), [0])
    finally:
        set_fused_attn(True)


def test_a_body_that_works_channels_last_has_one() -> None:
    spec = SPEC.model_copy(update={"size": 224})
    made = create_network("swin_tiny_patch4_window7_224", 2, spec)
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    assert grad_cam(made, images, [1]).shape == (1, 224, 224)


def test_the_overlay_is_a_picture_of_the_same_size() -> None:
    image = np.full((5, 7, 3), 100, np.uint8)
    heat = np.zeros((5, 7), np.float32)
    heat[2, 3] = 1
    drawn = overlay(image, heat)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert drawn[2, 3].sum() > drawn[0, 0].sum()
