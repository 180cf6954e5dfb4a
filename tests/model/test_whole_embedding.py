"""Every layer of the embedding in one pass, and the same answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.embedding import PENULTIMATE
from model.network import Network, create_network, default_input_spec
from model.whole_embedding import WholeEmbedding


def network_of(architecture: str, size: int) -> Network:
    spec = default_input_spec(architecture).model_copy(update={"size": size})
    return create_network(architecture, 3, spec, seed=0).eval()


def images(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))


@pytest.mark.parametrize(
    ("architecture", "size", "layers"), [("resnet18", 64, 5), ("tf_efficientnet_lite0", 64, 5)]
)
def test_earlier_layers_stand_before_the_one_that_the_head_reads(
    architecture: str, size: int, layers: int
) -> None:
    network = network_of(architecture, size)
    whole = WholeEmbedding(network).eval()
    with torch.inference_mode():
        logits, embedding = whole(images(size))
        wanted_logits, wanted = network(images(size))
    assert logits.numpy() == pytest.approx(wanted_logits.numpy(), abs=1e-5)
    sizes = [part.size for part in whole.parts]
    assert len(sizes) == layers + 1
    assert whole.parts[-1].name == PENULTIMATE
    assert embedding.shape == (2, sum(sizes))
    assert embedding[:, -sizes[-1] :].numpy() == pytest.approx(wanted.numpy(), abs=1e-5)
    first = embedding[:, : sizes[0]]
    assert first.std() > 0
    assert not torch.allclose(first[0], first[1])


def test_the_small_network_names_the_stages_that_it_joins() -> None:
    network = network_of("small-resnet", 28)
    whole = WholeEmbedding(network).eval()
    assert [part.name for part in whole.parts] == ["stem", "stage 1", "stage 2", "stage 3"]
    assert sum(part.size for part in whole.parts) == network.embedding_size
    with torch.inference_mode():
        assert whole(images(28))[1].equal(network(images(28))[1])


def test_a_body_whose_layers_cannot_be_had_gives_the_last_alone() -> None:
    network = network_of("resnet18", 64)
    # As a body that normalises in other ways on the way to its layers would be.
    network.body.forward_intermediates = lambda images, indices: (images, [images])
    whole = WholeEmbedding(network).eval()
    assert [part.name for part in whole.parts] == [PENULTIMATE]
    with torch.inference_mode():
        assert whole(images(64))[1].shape == (2, 512)
