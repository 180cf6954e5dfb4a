"""OpenVINO on the CPU, in whatever precision the bundle's gates let pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.bundle import INT8, OPENVINO
from model.engine_names import EngineName
from model.engines import Outputs
from model.engines.openvino_silent import openvino
from model.errors import EngineError

Result = TypeVar("Result")

_GRAPHS = {"f32": OPENVINO, "bf16": OPENVINO, "int8": INT8}


def _aside(call: Callable[[], Result]) -> Result:
    """Call in a thread of its own.

    OpenVINO's CPU plugin (2026.4.1) gives the thread that loads it another stack for signals, and
    brings back the former one when the last of its users goes. Two engines that go in the order in
    which they came leave the thread with a stack that is gone, and the next signal, a Ctrl-C or a
    SIGTERM, ends the process with a segmentation fault.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def native_precisions() -> frozenset[str]:
    """What this processor computes itself; bfloat16 is emulated by others, and slow."""
    can = _aside(lambda: openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return frozenset({"f32", "int8", *(["bf16"] if "BF16" in can else [])})


def _arithmetic(precision: str) -> str:
    """What is left unquantised in an int8 graph runs in bfloat16, or in float32, which is exacter,
    where bfloat16 would be emulated. On EfficientNet-Lite0 that is 246 images/s against 169.
    """
    if precision != "int8":
        return precision
    return "bf16" if "bf16" in native_precisions() else "f32"


class OpenVinoEngine:
    """One compiled model with one stream.

    The batch dimension is dynamic: results were seen to be equal to the last bit whatever the
    batch size, which the engines' contract test holds it to.
    """

    name: EngineName = "openvino"

    def __init__(
        self, directory: Path, *, threads: int, precision: str, graph: str | None = None
    ) -> None:
        """Compile a graph in a bundle's directory.

        `precision` is 'f32', 'bf16' or 'int8', `threads` 0 means all cores; `graph` None takes
        that of the precision. Raises `EngineError`.
        """
        if precision not in _GRAPHS:
            raise EngineError(
                f"the openvino engine has no precision {precision!r}; valid: {', '.join(_GRAPHS)}"
            )
        self.precision = precision
        graph = graph or _GRAPHS[precision]
        try:
            options = {
                "INFERENCE_PRECISION_HINT": _arithmetic(precision),
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
            }
            path = str(directory / graph)
            self._compiled = _aside(lambda: openvino.Core().compile_model(path, "CPU", options))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO refuses {directory / graph}: {error}") from error
        self._request = self._compiled.create_infer_request()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Engine.run`."""
        self._request.infer([images], share_inputs=True)
        return Outputs(
            self._request.get_tensor("logits").data.copy(),
            self._request.get_tensor("embedding").data.copy(),
        )
