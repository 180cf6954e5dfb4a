"""Where in an image a network looked: Grad-CAM on the last feature map of the body.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization": the channels of the last map that still has places, weighted by how much the class's
logit gains from each, and what counts against the class cut off. A map of 7 x 7 tells no more than
the seventh part of a side; and it shows what the network used, not whether that was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.images import Pixels
from model.network import Network
from training.mapped import copy_rows

BATCH = 16

_NO_MAP = (
    "this architecture has no feature map at its end that still has places (it works on tokens, or"
    " pools early), so Grad-CAM has nothing to draw"
)
# Dark to light, as points of a colour scale from 0 to 1.
_COLOURS = np.array([(20, 11, 52), (132, 32, 107), (229, 92, 48), (246, 215, 70)], np.float32)


class NoFeatureMapError(Exception):
    """The body has no spatial feature map near its end; the message says so to a person."""


def grad_cam(network: Network, images: Pixels, classes: Sequence[int]) -> NDArray[np.float32]:
    """How much each place speaks for a class, N x H x W from 0 to 1; all 0 where nothing does.

    `images` uint8 N x H x W x 3, `classes` one index per image. Raises `NoFeatureMapError`.
    """
    network = network.eval().float()
    wanted = [its.requires_grad for its in network.parameters()]
    network.requires_grad_(False)  # the graph then begins at the map, and costs nothing before it
    try:
        layer = last_feature_map(network, images[:1])
        parts = [
            _of_batch(
                network,
                layer,
                copy_rows(images, slice(start, start + BATCH)),
                classes[start : start + BATCH],
            )
            for start in range(0, len(images), BATCH)
        ]
    finally:
        for parameter, its in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(its)
    return np.concatenate(parts)


def last_feature_map(network: Network, image: Pixels) -> nn.Module:
    """The module of the body that gives the last map with places, as it runs on one image.

    Raises `NoFeatureMapError` where most of the layers come after it: the grid of patches that a
    transformer begins with is no map of what it found.
    """
    ran: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        ran.append((module, _has_places(network, output, image.shape[1])))

    handles = [
        module.register_forward_hook(note)
        for module in network.body.modules()
        if module is not network.body
    ]
    try:
        with torch.no_grad():
            network(torch.from_numpy(np.ascontiguousarray(image)))
    finally:
        for handle in handles:
            handle.remove()
    with_places = [number for number, (_, its) in enumerate(ran) if its]
    if not with_places:
        raise NoFeatureMapError(_NO_MAP)
    last = with_places[-1]
    layers = [_is_layer(module) for module, _ in ran]
    if sum(layers[last + 1 :]) > sum(layers) / 2:
        raise NoFeatureMapError(_NO_MAP)
    return ran[last][0]


def _has_places(network: Network, output: Any, side: int) -> bool:
    """Whether this is a map of square images: tables of attention have four dimensions too."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    height, width = output.shape[1:3] if _is_channels_last(network) else output.shape[2:]
    return height == width and 1 < height <= side / 2


def _is_layer(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _of_batch(
    network: Network, layer: nn.Module, images: Pixels, classes: Sequence[int]
) -> NDArray[np.float32]:
    kept: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = network(torch.from_numpy(np.ascontiguousarray(images)))[0]
            chosen = logits[torch.arange(len(images)), torch.tensor(list(classes))].sum()
            features = kept[-1]
            gradient = torch.autograd.grad(chosen, features)[0]
    finally:
        handle.remove()
    features, gradient = (_channels_first(network, its.detach()) for its in (features, gradient))
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = functional.relu((weights * features).sum(dim=1, keepdim=True))
    heat = functional.interpolate(heat, images.shape[1:3], mode="bilinear", align_corners=False)
    largest = heat.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    return np.asarray((heat / largest)[:, 0].numpy(), np.float32)


def _channels_first(network: Network, features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2) if _is_channels_last(network) else features


def _is_channels_last(network: Network) -> bool:
    """timm says so of bodies that work in this layout, such as Swin's."""
    return getattr(network.body, "output_fmt", "NCHW") == "NHWC"


def overlay(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """The image in grey under the heat in colour; uint8 H x W x 3."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    stops = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(heat, stops, channel) for channel in _COLOURS.T], axis=2)
    share = 0.25 + 0.4 * heat[:, :, None]
    return np.asarray((1 - share) * grey + share * colour, np.uint8)
