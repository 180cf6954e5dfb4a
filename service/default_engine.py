"""The engine where no setting names one: torch on an NVIDIA GPU, OpenVINO on a CPU.

Asked in two steps: a guess that every command can afford, and a closer look when a model is loaded.
torch itself is never asked: importing it takes seconds, and a service on a CPU lacks it.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from model.engine_names import EngineName, Precision

if TYPE_CHECKING:  # settings are read by commands that need no bundle
    from model.bundle import Bundle

# The driver's control device, on Linux and on Linux within Windows.
_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
_DRIVER = "libcuda.so.1"


def likely_engine() -> EngineName:
    """torch where an NVIDIA driver, and a torch that is not built for CPUs alone, are installed."""
    return "torch" if _has_gpu() and _has_torch() else "openvino"


def usable_engine(
    guess: EngineName, bundle: Bundle, precision: Precision | None = None
) -> EngineName:
    """The guess held to what this bundle and this machine can do, in that precision if any."""
    gates = bundle.manifest.gates_of("torch")
    passed = any(gate.passed and precision in (None, gate.precision) for gate in gates)
    if guess == "torch" and passed and _has_cuda():
        return "torch"
    return "openvino"


def _has_gpu() -> bool:
    return any(device.exists() for device in _GPU_DEVICES)


def _has_torch() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _has_cuda() -> bool:
    """Whether the driver shows this process a GPU; CUDA_VISIBLE_DEVICES may hide them all."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(_DRIVER)
        answered = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):  # no driver, or none of CUDA's
        return False
    return answered and count.value > 0
