"""OpenVINO on the CPU, in bfloat16 where the bundle's gate allows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from model.bundle import OPENVINO
from model.engine_names import EngineName
from model.engines import Outputs
from model.errors import EngineError


class OpenVinoEngine:
    """One compiled model with one stream.

    The batch dimension is dynamic: results were seen to be equal to the last bit whatever the
    batch size, which the engines' contract test holds it to.
    """

    name: EngineName = "openvino"

    def __init__(
        self, directory: Path, *, threads: int, precision: str, graph: str = OPENVINO
    ) -> None:
        """Compile a graph in a bundle's directory.

        `precision` is 'bf16' or 'f32', `threads` 0 means all cores. Raises `EngineError`.
        """
        self.precision = precision
        try:
            self._compiled = openvino.Core().compile_model(
                str(directory / graph),
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": precision,
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
