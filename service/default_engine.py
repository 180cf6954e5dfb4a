"""The engine where no setting names one: torch on an NVIDIA GPU, OpenVINO on a CPU.

Asked in two steps, since importing torch takes seconds: a guess that every command can afford, and
a closer look when a model is loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from model.bundle import Bundle
from model.engines import EngineName

# The driver's control device, on Linux and on Linux within Windows.
_GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def likely_engine() -> EngineName:
    """torch where an NVIDIA driver and torch are there; imports nothing."""
    return "torch" if _has_gpu() and _has_torch() else "openvino"


def usable_engine(guess: EngineName, bundle: Bundle) -> EngineName:
    """The guess held to what this bundle and this machine can do."""
    gate = bundle.manifest.engines.get("torch")
    if guess == "torch" and gate is not None and gate.passed and _has_cuda():
        return "torch"
    return "openvino"


def _has_gpu() -> bool:
    return any(device.exists() for device in _GPU_DEVICES)


def _has_torch() -> bool:
    try:
        return find_spec("torch") is not None
    except ImportError:
        return False


def _has_cuda() -> bool:
    try:
        import torch
    except (ImportError, OSError):  # the latter where a library of it is missing
        return False
    return torch.cuda.is_available()
