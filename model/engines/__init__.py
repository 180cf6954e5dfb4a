"""Run the network: OpenVINO (the CPU default) and torch (the CUDA default), one interface.

An engine module is imported only when it is asked for, so that the service on a CPU runs
without torch installed.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.engine_names import EngineName
from model.errors import EngineError


class Outputs(NamedTuple):
    """Logits, float32 of shape N x C, and embedding, float32 of shape N x D."""

    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]


class Engine(Protocol):
    """A loaded network. One thread at a time may call `run`."""

    name: EngineName
    precision: str

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Run a batch, uint8 of shape N x H x W x 3, N at least 1; the outputs are copies."""
        ...


def load_engine(
    name: EngineName, bundle: Bundle, *, threads: int = 1, precision: str | None = None
) -> Engine:
    """Load the network of a bundle into an engine.

    `precision` None takes what the bundle's gate decided for that engine. Raises `EngineError`
    when the engine is not installed, its gate failed, or it refuses the network.
    """
    chosen = precision or _gated_precision(name, bundle)
    try:
        if name == "openvino":
            from model.engines.openvino_engine import OpenVinoEngine

            return OpenVinoEngine(bundle.directory, threads=threads, precision=chosen)
        if name == "torch":
            from model.engines.torch_engine import TorchEngine

            return TorchEngine(
                bundle.directory,
                bundle.manifest.architecture,
                len(bundle.manifest.classes),
                bundle.manifest.input,
                threads=threads,
                precision=chosen,
                all_layers=bool(bundle.manifest.embedding_parts),
            )
    except ImportError as error:
        raise EngineError(
            f"the engine {name!r} is not installed ({error});"
            " install it with: pip install 'plumbline[training]'"
        ) from error
    raise EngineError(f"there is no engine {name!r}; valid are 'openvino' and 'torch'")


def _gated_precision(name: str, bundle: Bundle) -> str:
    gate = bundle.manifest.engines.get(name)
    if gate is None or not gate.passed:
        passed = [engine for engine, its in bundle.manifest.engines.items() if its.passed]
        raise EngineError(
            f"{bundle.manifest.tag} did not pass the gate of the engine {name!r};"
            f" it passed for: {', '.join(passed) or 'none'}"
        )
    return gate.precision
