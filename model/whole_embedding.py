"""A network that gives every layer of its embedding, for the outlier score to choose from."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from model.embedding import PENULTIMATE, EmbeddingPart
from model.network import Network, SmallResNet

_MOST_EARLIER = 5  # layers, spread evenly over the depth
_TOLERANCE = 1e-4  # between two ways to the same embedding, relative to its largest value


class WholeEmbedding(nn.Module):
    """Gives (logits N x C, embedding N x D) of uint8 images N x H x W x 3, D over all parts.

    `parts` names what the embedding joins: mean-pooled earlier layers, from the first on, then the
    penultimate layer, which the head reads. `small-resnet` joins its layers itself. A body whose
    earlier layers cannot be had gives its penultimate layer alone.

    >>> from model.network import create_network, default_input_spec
    >>> spec = default_input_spec("resnet18").model_copy(update={"size": 32})
    >>> whole = WholeEmbedding(create_network("resnet18", 3, spec))
    >>> [part.size for part in whole.parts]
    [64, 64, 128, 256, 512, 512]
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self._earlier, sizes = _earlier_layers(network)
        self.parts = _parts(network, self._earlier, sizes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One pass through the body for all parts."""
        if not self._earlier:
            return cast(tuple[Tensor, Tensor], self.network(images))
        given = self.network.normalise(images)
        layers, penultimate = _layers_and_last(self.network.body, given, self._earlier)
        pooled = [layer.mean(dim=(2, 3)) for layer in layers]
        return self.network.head(penultimate), torch.cat([*pooled, penultimate], dim=1)


def _layers_and_last(body: Any, given: Tensor, indices: list[int] | None) -> Any:
    """Intermediate layers of a body of timm's, and what it returns itself."""
    last, layers = body.forward_intermediates(given, indices=indices)
    return layers, body.forward_head(last, pre_logits=True)


def _earlier_layers(network: Network) -> tuple[list[int], list[int]]:
    """Numbers and channels of timm's intermediate layers that are N x C x H x W.

    None where the body has them not, or where they lead to another embedding than its own.
    """
    if isinstance(network.body, SmallResNet) or not hasattr(network.body, "forward_intermediates"):
        return [], []
    black = torch.zeros(1, network.image_size, network.image_size, 3, dtype=torch.uint8)
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            given = network.normalise(black.to(network.mean.device))
            wanted = network.body(given)
            layers, found = _layers_and_last(network.body, given, None)
    except torch.OutOfMemoryError:  # says nothing about the layers
        raise
    except (TypeError, AttributeError, NotImplementedError, RuntimeError):
        return [], []  # timm promises them for most bodies, not for all
    finally:
        network.train(was_training)
    if found.shape != wanted.shape:
        return [], []
    most = max(float(wanted.abs().max()), 1e-6)
    maps = [place for place, layer in enumerate(layers) if layer.ndim == 4]
    if float((found - wanted).abs().max()) > _TOLERANCE * most or not maps:
        return [], []
    steps = torch.linspace(0, len(maps) - 1, min(_MOST_EARLIER, len(maps)))
    chosen = [maps[round(float(place))] for place in steps]
    return chosen, [int(layers[place].shape[1]) for place in chosen]


def _parts(network: Network, earlier: list[int], sizes: list[int]) -> tuple[EmbeddingPart, ...]:
    if isinstance(network.body, SmallResNet):
        names = ["stem", *(f"stage {place}" for place in range(1, len(network.body.widths)))]
        widths = zip(names, network.body.widths, strict=True)
        return tuple(EmbeddingPart(name=name, size=width) for name, width in widths)
    before = zip(earlier, sizes, strict=True)
    return (
        *(EmbeddingPart(name=f"layer {place + 1}", size=size) for place, size in before),
        EmbeddingPart(name=PENULTIMATE, size=network.embedding_size),
    )
