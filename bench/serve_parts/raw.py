"""The raw loop that the service is held against, in a process of its own on the server's core.

python -m serve_parts.raw HOME PAYLOAD BATCH SECONDS      prints images a second
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from model.engines import load_engine
from model.images import prepare
from model.settings import ModelSettings
from model.store import ModelStore
from serve_parts.payloads import images, model_of
from serve_parts.servers import SERVER_CORE, pin
from service.predictor import Predictor
from service.serving import WORKER_ENVIRONMENT

BATCH = 8


def images_per_second(home: Path, payload: str, *, seconds: float, batch: int = BATCH) -> float:
    """One thread: decode, engine, decision and outlier score."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_parts.raw", str(home), payload, str(batch), str(seconds)],
        env={**os.environ, **WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=pin({SERVER_CORE}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def load_predictor(home: Path, name: str) -> Predictor:
    """The champion with one thread."""
    store = ModelStore(ModelSettings(home=home))
    bundle = store.load(store.champion(name))
    return Predictor(bundle, load_engine("openvino", bundle, threads=1), stage="champion")


def main() -> None:
    """Loop, and print."""
    home, payload, batch, seconds = sys.argv[1:]
    predictor = load_predictor(Path(home), model_of(payload))
    predictor.warm_up(int(batch))
    supply = itertools.cycle(images(payload))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < float(seconds):
        taken = itertools.islice(supply, int(batch))
        predictor.predict([prepare(data, predictor.input) for data in taken])
        done += int(batch)
    print(done / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
