"""Run the network: OpenVINO (the CPU default) and torch (the CUDA default), one interface.

An engine module is imported only when it is asked for, so that the service on a CPU runs
without torch installed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle, Manifest
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
    name: EngineName,
    bundle: Bundle,
    *,
    threads: int = 1,
    precision: str | None = None,
    serving: bool = False,
    batch_images: int | None = None,
) -> Engine:
    """Load the network of a bundle into an engine.

    `precision` None takes what `gated_precision` says. For `serving`, torch on a GPU is made ready
    for batches of up to `batch_images`, None: of as many as pay; that takes seconds. Raises
    `EngineError` when the engine is not installed, the gate failed, or the engine refuses the
    network.
    """
    try:
        if name == "openvino":
            return _load_openvino(bundle, threads, precision)
        if name == "torch":
            return _load_torch(bundle, threads, precision, serving, batch_images)
    except ImportError as error:
        raise EngineError(
            f"the engine {name!r} is not installed ({error});"
            " install it with: pip install 'plumbline[training]'"
        ) from error
    raise EngineError(f"there is no engine {name!r}; valid are 'openvino' and 'torch'")


def _load_openvino(bundle: Bundle, threads: int, precision: str | None) -> Engine:
    from model.engines.openvino_engine import OpenVinoEngine, native_precisions

    chosen = gated_precision("openvino", bundle.manifest, precision, native_precisions())
    return OpenVinoEngine(bundle.directory, threads=threads, precision=chosen)


def _load_torch(
    bundle: Bundle, threads: int, precision: str | None, serving: bool, batch_images: int | None
) -> Engine:
    from model.engines.torch_engine import TorchEngine, native_precisions, sees_gpu

    manifest, native = bundle.manifest, native_precisions()
    return TorchEngine(
        bundle.directory,
        manifest.architecture,
        len(manifest.classes),
        manifest.input,
        threads=threads,
        precision=gated_precision("torch", manifest, precision, native, gpu=sees_gpu()),
        all_layers=bool(manifest.embedding_parts),
        serving=serving,
        batch_images=batch_images,
    )


def torch_sees_gpu() -> bool:
    """Whether torch is installed and can use a GPU here. Imports it, which takes seconds."""
    try:
        from model.engines.torch_engine import sees_gpu
    except ImportError:
        return False
    return sees_gpu()


def gated_precision(
    name: str,
    manifest: Manifest,
    wanted: str | None,
    native: Collection[str] | None = None,
    *,
    gpu: bool = False,
) -> str:
    """The precision to run an engine in, of those that passed.

    It is the one wanted, else the one that decisions were fitted to, else the fastest: bf16 on a
    GPU, where what was measured is mostly the pace of a CPU, else by what was measured.
    `native` are those that the processor at hand computes itself, None all of them; others are
    taken only where they are wanted by name, or nothing else passed. Raises `EngineError`.
    """
    gates = manifest.gates_of(name)
    passed = [gate for gate in gates if gate.passed and wanted in (None, gate.precision)]
    if not passed:
        raise EngineError(_refusal(name, manifest, wanted))
    here = [gate for gate in passed if native is None or gate.precision in native]
    fitted = [gate for gate in here if f"{name}-{gate.precision}" == manifest.decided_by]
    if fitted:
        return fitted[0].precision
    if gpu and any(gate.precision == "bf16" for gate in here):
        return "bf16"
    return max(here or passed, key=lambda gate: gate.images_per_second or 0).precision


def _refusal(name: str, manifest: Manifest, wanted: str | None) -> str:
    key = name if wanted is None else f"{name}-{wanted}"
    gates = [gate for gate in manifest.gates_of(name) if wanted in (None, gate.precision)]
    reasons = [
        *(gate.reason for gate in gates if gate.reason),
        *(why for left_out, why in manifest.engines_left_out.items() if left_out.startswith(key)),
    ]
    if not gates and not reasons and wanted == "int8":
        reasons = ["it was trained without --int8"]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    passed = [its for its, gate in manifest.engines.items() if gate.passed]
    return (
        f"{manifest.tag} did not pass the gate of the engine {key!r}{why};"
        f" it passed for: {', '.join(passed) or 'none'}"
    )
