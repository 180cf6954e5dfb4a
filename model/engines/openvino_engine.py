"""OpenVINO on the CPU, in whatever precision the bundle's gates let pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bundle import INT8, OPENVINO
from model.engine_names import EngineName
from model.engines import Outputs
from model.engines.openvino_silent import openvino
from model.errors import EngineError

# Graph and arithmetic of each. What nncf leaves unquantised in the int8 graph stays in float32:
# so it gives the same on every processor, which bfloat16 here and float32 there would not.
_PRECISIONS = {"f32": (OPENVINO, "f32"), "bf16": (OPENVINO, "bf16"), "int8": (INT8, "f32")}


def native_precisions() -> frozenset[str]:
    """What this processor computes itself; bfloat16 is emulated by others, and slow."""
    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return frozenset({"f32", "int8", *(["bf16"] if "BF16" in can else [])})


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
        if precision not in _PRECISIONS:
            raise EngineError(
                f"the openvino engine has no precision {precision!r};"
                f" valid: {', '.join(_PRECISIONS)}"
            )
        self.precision = precision
        its_graph, arithmetic = _PRECISIONS[precision]
        graph = graph or its_graph
        try:
            self._compiled = openvino.Core().compile_model(
                str(directory / graph),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": arithmetic,
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,
                },
            )
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
