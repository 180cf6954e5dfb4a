"""The engine where no setting names one: torch on an NVIDIA GPU, OpenVINO on a CPU.

Asked in steps: a guess that every command can afford; a closer look at the driver and the bundle,
when workers are shared out; and torch itself by a worker that is about to load it anyway.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from model.engine_names import EngineName, Precision
from service.devices import visible_devices

if TYPE_CHECKING:  # settings are read by commands that need no bundle
    from model.bundle import Bundle

log = logging.getLogger("plumbline.engine")

# The driver's control device, on Linux and on Linux within Windows.
_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def likely_engine() -> EngineName:
    """torch where an NVIDIA driver, and a torch that is not built for CPUs alone, are installed."""
    return "torch" if _has_gpu() and _has_torch() else "openvino"


def passes_for_torch(bundle: Bundle, precision: Precision | None = None) -> bool:
    """Whether a bundle passed the gate of torch, in that precision if any."""
    gates = bundle.manifest.gates_of("torch")
    return any(gate.passed and precision in (None, gate.precision) for gate in gates)


def usable_engine(
    guess: EngineName, bundle: Bundle, precision: Precision | None = None
) -> EngineName:
    """The guess held to what this bundle and this machine can do, in that precision if any.

    Imports torch where everything else speaks for it: called by who then loads the model.
    """
    from model.engines import torch_sees_gpu

    if guess != "torch" or not visible_devices():
        return "openvino"
    if not passes_for_torch(bundle, precision):
        log.warning(
            "%s did not pass the gate of torch: OpenVINO runs it, on the CPU", bundle.manifest.tag
        )
        return "openvino"
    if not torch_sees_gpu():
        log.warning(
            "the driver shows a GPU, but torch cannot use it (is it built for another CUDA, or the"
            " driver too old for it?): OpenVINO runs %s, on the CPU",
            bundle.manifest.tag,
        )
        return "openvino"
    return "torch"


def _has_gpu() -> bool:
    return any(device.exists() for device in _GPU_DEVICES)


def _has_torch() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
