"""torch: CUDA when there is one, else the CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from model.bundle import NETWORK
from model.engine_names import EngineName
from model.engines import Outputs
from model.engines.cuda_graphs import LARGEST_BATCH, FixedBatches, GraphRecorder, sizes_up_to
from model.errors import EngineError, EngineLostError
from model.images import InputSpec
from model.network import create_network
from model.whole_embedding import WholeEmbedding

log = logging.getLogger("plumbline.engine")

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Modules that read their weights in operations that autocast runs in the lower precision, and
# nowhere else. Subclasses may do something else with theirs, such as standardise them.
_CAST_ONCE = (nn.Conv2d, nn.Linear)


def sees_gpu() -> bool:
    """Whether this torch can use a GPU here: by its build, the driver and CUDA_VISIBLE_DEVICES."""
    return torch.cuda.is_available()


def native_precisions() -> frozenset[str]:
    """What the GPU computes itself, bfloat16 from compute capability 8.0 on; on a CPU, all."""
    if not sees_gpu() or torch.cuda.is_bf16_supported(including_emulation=False):
        return frozenset(_DTYPES)
    return frozenset({"f32"})


class TorchEngine:
    """The network itself, in evaluation mode, without gradients.

    bf16 is what autocast makes of the network: convolutions and matrix products in bfloat16, norms
    and whatever else needs it in float32. That runs every architecture, and is what the gate of a
    bundle measured. Only the weights are cast once and not in every batch, which changes no bit of
    the result. float32 is just that on a GPU too, without TF32.
    """

    name: EngineName = "torch"

    def __init__(
        self,
        directory: Path,
        architecture: str,
        class_count: int,
        spec: InputSpec,
        *,
        threads: int,
        precision: str,
        all_layers: bool = True,
        serving: bool = False,
        batch_images: int | None = None,
    ) -> None:
        """Fill a network with the weights in a bundle's directory.

        `all_layers` gives the embedding of all of them, as bundles since schema 2 want it.
        `precision` is 'bf16' or 'f32', `threads` 0 leaves their number to torch. For `serving`, a
        GPU is made ready for batches of up to `batch_images`; None leaves that number to its
        memory. Raises `EngineError`.
        """
        if precision not in _DTYPES:
            raise EngineError(
                f"the torch engine has no precision {precision!r}; valid: {', '.join(_DTYPES)}"
            )
        self.precision = precision
        self._device = torch.device("cuda" if sees_gpu() else "cpu")
        if self._device.type == "cpu" and threads:
            torch.set_num_threads(threads)
        network = create_network(architecture, class_count, spec)
        try:
            network.load_state_dict(load_file(directory / NETWORK))
        except RuntimeError as error:
            raise EngineError(f"{directory / NETWORK} does not fit: {error}") from error
        # Layers are found on the CPU, by a pass through the network.
        self.network = (WholeEmbedding(network) if all_layers else network).eval()
        if precision == "bf16":
            cast_weights_once(network, torch.bfloat16)
            if self._device.type == "cuda":
                network.use_memory_format(torch.channels_last)
        self._batches: FixedBatches | None = None
        with _computing(f"the network ({architecture})"):
            self.network.to(self._device)
        if serving and self._device.type == "cuda":
            what = "a single image" if batch_images is None else f"a batch of {batch_images} images"
            with _computing(what):
                self._batches = self._ready_for(batch_images, spec.size)
        elif serving:
            log.info("torch finds no GPU, and runs on the CPU")

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`. Raises `EngineError`, and `EngineLostError` where the GPU is lost."""
        with _computing(f"a batch of {len(images)} images"):
            return self._run(images) if self._batches is None else self._batches.run(images)

    def _run(self, images: NDArray[np.uint8]) -> Outputs:
        # torch warns about arrays that it could not write to, such as memory-mapped ones.
        writable = images if images.flags.writeable else images.copy()
        with torch.inference_mode():
            logits, embedding = self.forward(torch.from_numpy(writable).to(self._device))
            return Outputs(logits.cpu().numpy(), embedding.cpu().numpy())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits N x C and embedding N x D, float32, of images on the engine's device."""
        with self._arithmetic():
            logits, embedding = self.network(images)
        return logits.float(), embedding.float()

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            # No cache: what is cast while a graph is captured lives in the memory of the graph.
            return torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False)
        if self._device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def _ready_for(self, batch_images: int | None, image_size: int) -> FixedBatches:
        """All batch sizes recorded on a stream of this engine's own."""
        start = time.perf_counter()
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))  # that brings the weights
        batches = FixedBatches(
            self.forward,
            (image_size, image_size, 3),
            sizes_up_to(batch_images or LARGEST_BATCH),
            record=GraphRecorder(stream),
            stream=stream,
            or_fewer=batch_images is None,
        )
        log.info(
            "%s, %s: batches of %s made ready in %.1f s",
            torch.cuda.get_device_name(self._device),
            self.precision,
            ", ".join(map(str, batches.sizes)),
            time.perf_counter() - start,
        )
        return batches


def cast_weights_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep weights and biases of convolutions and linear layers as autocast would cast them.

    What they compute under autocast is the same to the last bit. Norms keep float32: bfloat16 has
    8 bits, too few for running variances.
    """
    for module in network.modules():
        if type(module) in _CAST_ONCE:
            module.to(dtype)


@contextmanager
def _computing(what: str) -> Iterator[None]:
    """What a GPU or torch has against it becomes an `EngineError` that says what mends it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info())
        raise EngineError(
            f"the GPU has no memory for {what}: {free:.1f} of {total:.1f} GiB are free; end what"
            " else uses it (nvidia-smi shows that), have fewer workers share it"
            " (PLUMBLINE_WORKERS), or lower PLUMBLINE_BATCH_IMAGES"
        ) from error
    except RuntimeError as error:  # torch.AcceleratorError, and cuDNN's and cuBLAS's, are such
        reason = str(error).partition("\n")[0]
        if _gpu_is_lost():
            raise EngineLostError(f"the GPU is lost to this process: {reason}") from error
        raise EngineError(
            f"{what} cannot be computed by torch: {reason};"
            " PLUMBLINE_ENGINE=openvino does without it"
        ) from error


def _gpu_is_lost() -> bool:
    """Some errors, such as an illegal access or a broken link, are all that comes from then on."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
