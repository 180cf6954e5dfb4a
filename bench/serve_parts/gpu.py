"""ResNet-50 in bf16 on one CUDA device: images per second of the engine alone and through HTTP.

    .venv/bin/python bench/serve.py gpu [--clients 64] [--batch 64]

The engine alone: torch on CUDA on prepared images, in batches of the size that was chosen at start.
Through HTTP: one worker, JPEGs of 256 x 256, 16 a request. The network has no pretrained weights:
its speed does not depend on them. No GPU was at hand, and this has not been run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from model.engines import load_engine
from model.settings import ModelSettings
from model.store import ModelStore
from serve_parts import load
from serve_parts.figures import Figures, parser_of
from serve_parts.payloads import ROOT, images
from serve_parts.servers import free_port, started

NAME = "resnet50"


def main() -> None:
    """Measure and print; exit with 2 without a device."""
    import torch

    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        sys.exit(2)
    figures = Figures("gpu", options)
    home = options.home.absolute()
    train_once(home)
    store = ModelStore(ModelSettings(home=home))
    engine = load_engine("torch", store.load(store.champion(NAME)), threads=1, precision="bf16")
    batch = np.random.default_rng(0).integers(0, 256, (options.batch, 224, 224, 3), np.uint8)
    for _ in range(10):
        engine.run(batch)
    alone, served = [], []
    port = free_port()
    environment = {
        "PLUMBLINE_HOME": str(home),
        "PLUMBLINE_MODEL": NAME,
        "PLUMBLINE_ENGINE": "torch",
        "PLUMBLINE_WORKERS": "1",
        "PLUMBLINE_SERVE_ON": f"127.0.0.1:{port}",
        "PLUMBLINE_DECODE_THREADS": str(max(2, (os.cpu_count() or 2) - 2)),
        "PLUMBLINE_QUEUE_IMAGES": str(32 * options.clients),
    }
    command = [sys.executable, "-m", "plumbline", "serve"]
    cores = set(range(os.cpu_count() or 1))
    with started(command, port, "/readyz", environment, cores=cores) as server:
        for _ in range(options.rounds):
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < options.seconds:
                engine.run(batch)
                done += len(batch)
            alone.append(done / (time.perf_counter() - start))
            plan = load.plan_for(
                f"{server.url}/v1/predict",
                images("256"),
                seconds=options.seconds,
                clients=options.clients,
                images_per_request=16,
                sends="form",
            )
            served.append(load.run(plan).images_per_second)
    figures.add("engine alone, images/s", alone)
    figures.add("through HTTP, images/s", served)
    ratios = [one / other for one, other in zip(served, alone, strict=True)]
    figures.add("through HTTP / alone", ratios, ".3f")
    figures.end()


def train_once(home: object) -> None:
    """A version of the network, where the home folder has none."""
    if ModelStore(ModelSettings(home=home)).versions(NAME):
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, ROOT / "examples" / "make_photographs.py", folder], check=True
        )
        command = [sys.executable, "-m", "plumbline", "train", "--data", folder, "--name", NAME]
        command += ["--architecture", "resnet50", "--weights", "none", "--size", "224"]
        command += ["--epochs", "1", "--promote"]
        environment = {**os.environ, "PLUMBLINE_HOME": str(home)}
        subprocess.run(command, env=environment, check=True)
