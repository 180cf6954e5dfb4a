"""What every engine, in every precision, gives for validation images, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.engines import Engine, Outputs
from model.engines.openvino_engine import OpenVinoEngine, native_precisions
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError
from model.images import Pixels
from training.evaluate import run_engine
from training.export import INT8_IMAGES, remove_int8, write_int8
from training.findings import Trained
from training.mapped import copy_rows
from training.precision import has_bf16

TORCH_GATE_IMAGES = 512  # of validation, at most: torch takes its time on a CPU
TIMED_BATCH = 8  # images, as the service's own
_TIMED_SECONDS = 0.5
_LEAST_TIMED = 3  # batches
_NO_BF16 = "this processor has no bfloat16 arithmetic to measure it with"


@dataclass(frozen=True)
class EngineRun:
    """Outputs of an engine for validation rows; `rows` None stands for all of them."""

    key: str  # in the manifest
    precision: str
    outputs: Outputs
    images_per_second: float
    rows: NDArray[np.intp] | None = None


def run_openvino(trained: Trained, directory: Path) -> tuple[list[EngineRun], dict[str, str]]:
    """OpenVINO's runs, the fastest first, and by key why others could not be measured.

    Writes the int8 graph where the training was to have one.
    """
    native, left_out = native_precisions(), {}
    precisions = ["f32"]
    if "bf16" in native:
        precisions.append("bf16")
    else:
        left_out["openvino-bf16"] = _NO_BF16
    if trained.int8:
        try:
            write_int8(directory, trained.fit.sample(INT8_IMAGES, trained.seed).images)
            precisions.append("int8")
        except EngineError as error:
            left_out["openvino-int8"] = str(error)
            remove_int8(directory)
    images = trained.validation.images
    runs = [
        EngineRun(
            key=f"openvino-{precision}",
            precision=precision,
            outputs=run_engine(openvino_engine(directory, precision), images),
            images_per_second=images_per_second(
                OpenVinoEngine(directory, threads=1, precision=precision), images
            ),
        )
        for precision in precisions
    ]
    return sorted(runs, key=lambda run: -run.images_per_second), left_out


def openvino_engine(directory: Path, precision: str) -> OpenVinoEngine:
    """OpenVINO on all cores."""
    return OpenVinoEngine(directory, threads=0, precision=precision)


def run_torch(trained: Trained, directory: Path) -> tuple[list[EngineRun], dict[str, str]]:
    """Torch's runs, by the exported weights, on some of the validation rows."""
    order = np.random.default_rng(trained.seed).permutation(len(trained.validation))
    chosen = np.sort(order[:TORCH_GATE_IMAGES])
    images = trained.validation.take(chosen).images
    left_out = {}
    precisions = ["f32"]
    if torch.cuda.is_available() or has_bf16():
        precisions.append("bf16")
    else:
        left_out["torch-bf16"] = _NO_BF16
    runs = []
    for precision in precisions:
        engine = TorchEngine(
            directory,
            trained.architecture,
            len(trained.classes),
            trained.input,
            threads=0,
            precision=precision,
        )
        outputs = run_engine(engine, images)
        with _one_thread():
            speed = images_per_second(engine, images)
        runs.append(EngineRun(f"torch-{precision}", precision, outputs, speed, chosen))
    return runs, left_out


def images_per_second(engine: Engine, images: Pixels) -> float:
    """The speed of the fastest of some batches of 8: others are slowed by whatever else runs."""
    batch = copy_rows(images, np.arange(TIMED_BATCH) % len(images))
    engine.run(batch)  # warms up
    seconds: list[float] = []
    while sum(seconds) < _TIMED_SECONDS or len(seconds) < _LEAST_TIMED:
        start = time.perf_counter()
        engine.run(batch)
        seconds.append(time.perf_counter() - start)
    return TIMED_BATCH / min(seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker of the service has it; torch keeps the number for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
