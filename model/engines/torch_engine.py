"""torch: CUDA when there is one, else the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from model.bundle import NETWORK
from model.engine_names import EngineName
from model.engines import Outputs
from model.errors import EngineError
from model.images import InputSpec
from model.network import create_network
from model.whole_embedding import WholeEmbedding

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """The network itself, in evaluation mode, without gradients."""

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
    ) -> None:
        """Fill a network with the weights in a bundle's directory.

        `all_layers` gives the embedding of all of them, as bundles since schema 2 want it.
        `precision` is 'bf16' or 'f32', `threads` 0 leaves their number to torch. Raises
        `EngineError`.
        """
        if precision not in _DTYPES:
            raise EngineError(
                f"the torch engine has no precision {precision!r}; valid: {', '.join(_DTYPES)}"
            )
        self.precision = precision
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu" and threads:
            torch.set_num_threads(threads)
        network = create_network(architecture, class_count, spec)
        try:
            network.load_state_dict(load_file(directory / NETWORK))
        except RuntimeError as error:
            raise EngineError(f"{directory / NETWORK} does not fit: {error}") from error
        # Layers are found on the CPU, by a pass through the network.
        whole = WholeEmbedding(network) if all_layers else network
        self._network = whole.eval().to(self._device)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        dtype = _DTYPES[self.precision]
        # torch warns about arrays that it could not write to, such as memory-mapped ones.
        writable = images if images.flags.writeable else images.copy()
        autocast = (
            torch.autocast(self._device.type, dtype)
            if dtype is not torch.float32
            else nullcontext()
        )
        with torch.inference_mode(), autocast:
            logits, embedding = self._network(torch.from_numpy(writable).to(self._device))
        return Outputs(logits.float().cpu().numpy(), embedding.float().cpu().numpy())
