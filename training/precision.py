"""Number format of the arithmetic and layout of the images, chosen by the clock."""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model.network import Network

if TYPE_CHECKING:
    from training.loop import Trainer

_NUMBERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TIMED_STEPS = 3
_HOPELESS = 4.0  # times the best step; a first one warms up and takes up to twice its time
_TIMED_PIXELS = 2**19  # in a timed batch; large images need no large batch to tell


@dataclass(frozen=True)
class Precision:
    """Number format of the arithmetic and layout of the images."""

    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def name(self) -> str:
        """As in `TrainingSettings.precision`."""
        number = _NUMBERS[self.dtype]
        layout = " channels_last" if self.memory_format == torch.channels_last else ""
        return number + layout

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context to run forward passes in."""
        enabled = self.dtype != torch.float32
        return torch.autocast(
            device.type, dtype=self.dtype if enabled else torch.bfloat16, enabled=enabled
        )


PRECISIONS = [
    Precision(dtype, memory_format)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for memory_format in (torch.contiguous_format, torch.channels_last)
]


def fastest_precision(trainer: Trainer) -> Precision:
    """Time a few training steps of each precision on a copy of the network.

    bf16 with channels_last halves the time of a plain residual network on a CPU with AVX-512
    and doubles that of EfficientNet-Lite0, so no table replaces the clock.
    """
    timed = _worth_timing(trainer.device)
    rows = max(1, _TIMED_PIXELS // int(np.prod(trainer.fit_split.images.shape[1:3])))
    if trainer.device.type == "cuda":  # where a small batch tells of the start of kernels alone
        rows = trainer.batch_size
    batch = trainer.to_device(trainer.fit_split, trainer.rows[: min(rows, trainer.batch_size)])
    images, targets = batch
    batch = images[:, : trainer.image_size, : trainer.image_size], targets
    with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
        seconds: list[float] = []
        for precision in timed:
            best = min(seconds, default=math.inf)
            seconds.append(_step_seconds(trainer, precision, *batch, best))
    return timed[int(np.argmin(seconds))]


def _worth_timing(device: torch.device) -> list[Precision]:
    """fp32, and bf16 unless this processor would emulate it, at ten times the time.

    fp16 needs its gradients scaled and gains nothing over bf16 where that is there: by name alone.
    """
    emulated = device.type == "cpu" and not has_bf16()
    left_out = {torch.float16, torch.bfloat16} if emulated else {torch.float16}
    return [one for one in PRECISIONS if one.dtype not in left_out]


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _step_seconds(
    trainer: Trainer, precision: Precision, images: Tensor, targets: Tensor, best: float
) -> float:
    """The least of a few steps; of one alone where that takes far longer than the best so far."""
    network = copy.deepcopy(trainer.network)
    assert isinstance(network, Network)
    network.train()
    network.use_memory_format(precision.memory_format)
    seconds = []
    for _ in range(1 + _TIMED_STEPS):  # the first warms up and is not counted
        start = time.perf_counter()
        with precision.autocast(trainer.device):
            logits, _ = network(images)
        trainer.loss_function(logits.float(), targets).backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds.append(time.perf_counter() - start)
        # What a device can only emulate takes ten times as long: no need to see it twice.
        if seconds[0] > _HOPELESS * best:
            return seconds[0]
    return min(seconds[1:])
