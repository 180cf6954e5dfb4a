"""ResNet-50 in bf16 on one CUDA device: the engine alone, what its parts bring, and through HTTP.

    .venv/bin/python bench/serve.py gpu [--rounds N] [--seconds S] [--workers N] [--json]

Three tables, in one run, all at 224 px:
1. Batches of 1 to 64 by the engine as it would be without each of its parts: float32, bfloat16,
   `channels_last`, CUDA graphs (as shipped), and kernels that cuDNN chose by the clock. Weights are
   drawn by chance: speed does not depend on them.
2. Decoding alone, JPEGs of 256 x 256, on as many threads as the service takes.
3. One worker (`--workers`) as shipped through HTTP, 16 images a request, beside the engine alone in
   batches of the size that the worker chose, in turns: images per second, and their ratio.

Load generators, processes of their own, have one core in eight; the service has the others. Ends
with 2 without a device, and where the network did not pass the gate of torch in bf16. No GPU was at
hand, and this has not been run on one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from model.bundle import NETWORK
from model.engines import Engine, gated_precision, load_engine
from model.errors import EngineError
from model.images import InputSpec, prepare
from model.settings import ModelSettings
from model.store import ModelStore
from serve_parts import load
from serve_parts.figures import Figures, parser_of
from serve_parts.payloads import ROOT, images
from serve_parts.servers import Server, free_port, started
from service.settings import ServiceSettings
from service.workers import plan_workers

NAME = ARCHITECTURE = "resnet50"
SIZE, PAYLOAD, IMAGES_A_REQUEST = 224, "256", 16
BATCHES = (1, 2, 4, 8, 16, 32, 64)
EPOCHS = 20  # of which a network from scratch learns eight photographs

Run = Callable[[NDArray[np.uint8]], object]


def main() -> None:
    """Measure and print; exit with 2 without a device."""
    import torch

    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=64, help="Of each load generator.")
    parser.add_argument("--workers", type=int, default=1, help="That share the device.")
    options = parser.parse_args()
    options.home = options.home.absolute()
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        sys.exit(2)
    properties = torch.cuda.get_device_properties(0)
    device = (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda},"
        f" cuDNN {torch.backends.cudnn.version()}"
    )
    libraries = ("torch", "torchvision", "timm", "simplejpeg", "bentoml", "numpy")
    figures = Figures("gpu", options, libraries=libraries, device=device)
    measure_parts(figures, options)
    threads = measure_decoding(figures, options)
    measure_service(figures, options, threads)
    figures.end()


def measure_parts(figures: Figures, options: Namespace) -> None:
    """Milliseconds a batch of each size, of each variant of the engine, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(variants(write_network(Path(folder))))
    for size in BATCHES:
        batch = noise(size)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                found[name].append(1e3 * seconds_a_batch(run, batch, options.seconds / 12))
        for name, milliseconds in found.items():
            figures.add(f"batch of {size}, {name}, ms", milliseconds, ".2f")
            figures.add(
                f"batch of {size}, {name}, images/s", [1e3 * size / ms for ms in milliseconds]
            )


def write_network(folder: Path) -> tuple[Path, InputSpec]:
    """The network with weights drawn by chance, as a bundle keeps it."""
    from safetensors.torch import save_file

    from model.network import create_network, default_input_spec, weights_of

    spec = default_input_spec(ARCHITECTURE).model_copy(update={"size": SIZE})
    save_file(weights_of(create_network(ARCHITECTURE, 8, spec)), folder / NETWORK)
    return folder, spec


def variants(written: tuple[Path, InputSpec]) -> Iterator[tuple[str, Run]]:
    """The engine as it is, and without some of what makes it fast."""
    import torch

    from model.engines.torch_engine import TorchEngine

    folder, spec = written

    def engine(precision: str, **more: object) -> TorchEngine:
        return TorchEngine(folder, ARCHITECTURE, 8, spec, threads=1, precision=precision, **more)

    yield "eager, float32", engine("f32").run
    contiguous = engine("bf16")
    contiguous.network.network.use_memory_format(torch.contiguous_format)
    yield "eager, bfloat16", contiguous.run
    yield "eager, bfloat16, channels_last", engine("bf16").run
    yield "as shipped: with CUDA graphs", engine("bf16", serving=True, batch_images=64).run
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        by_the_clock = engine("bf16", serving=True, batch_images=64)
    yield "with CUDA graphs, cuDNN by the clock", by_the_clock.run


def noise(size: int) -> NDArray[np.uint8]:
    """Prepared images: what they show costs nothing."""
    return np.random.default_rng(0).integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)


def seconds_a_batch(run: Run, batch: NDArray[np.uint8], seconds: float) -> float:
    """The mean over so many seconds; outputs are on the host when a run ends."""
    for _ in range(3):
        run(batch)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run(batch)
        done += 1
    return (time.perf_counter() - start) / done


def measure_decoding(figures: Figures, options: Namespace) -> int:
    """Images per second on the threads of one worker; gives their number."""
    from model.network import default_input_spec

    spec = default_input_spec(ARCHITECTURE).model_copy(update={"size": SIZE})
    plan = plan_workers(
        ServiceSettings(engine="torch", workers=options.workers), cores=len(serving_cores())
    )
    files = images(PAYLOAD) * 10

    def decode(data: bytes) -> None:
        prepare(data, spec)

    for threads in sorted({1, plan.decode_threads}):
        with ThreadPoolExecutor(threads) as pool:
            paces = []
            for _ in range(options.rounds):
                start, done = time.perf_counter(), 0
                while time.perf_counter() - start < options.seconds / 4:
                    done += len(list(pool.map(decode, files)))
                paces.append(done / (time.perf_counter() - start))
        figures.add(f"decoding alone, {threads} threads, images/s", paces)
    return plan.decode_threads


def measure_service(figures: Figures, options: Namespace, threads: int) -> None:
    """The engine alone and one worker, in turns."""
    train_once(options.home)
    store = ModelStore(ModelSettings(home=options.home))
    bundle = store.load(store.champion(NAME))
    try:
        gated_precision("torch", bundle.manifest, "bf16")
    except EngineError as error:
        print(error, file=sys.stderr)
        figures.add("through HTTP, images/s", [0.0], least=1.0)  # missed; the rest is kept
        return
    with served(options, threads) as server:
        chosen = httpx.get(f"{server.url}/v1/model").json()["engine"]
        size = chosen["batch_images"]
        print(f"served by {chosen}, {threads} decoding threads", flush=True)
        engine = load_engine("torch", bundle, precision="bf16", serving=True, batch_images=size)
        alone, through = [], []
        for _ in range(options.rounds):
            alone.append(pace_alone(engine, size, options.seconds))
            through.append(pace_through(server, options))
    figures.add(f"engine alone, batches of {size}, images/s", alone)
    figures.add("through HTTP, images/s", through)
    ratios = [one / other for one, other in zip(through, alone, strict=True)]
    figures.add("through HTTP / alone", ratios, ".3f")


@contextmanager
def served(options: Namespace, threads: int) -> Iterator[Server]:
    """One worker as shipped, beside the cores of the load generators."""
    port = free_port()
    environment = {
        "PLUMBLINE_HOME": str(options.home),
        "PLUMBLINE_MODEL": NAME,
        "PLUMBLINE_ENGINE": "torch",
        "PLUMBLINE_PRECISION": "bf16",
        "PLUMBLINE_WORKERS": str(options.workers),
        "PLUMBLINE_SERVE_ON": f"127.0.0.1:{port}",
        "PLUMBLINE_DECODE_THREADS": str(threads),
        # All of this load comes from one client, who may have three quarters of the room.
        "PLUMBLINE_QUEUE_IMAGES": str(2 * IMAGES_A_REQUEST * options.clients * len(load_cores())),
    }
    cores = serving_cores()
    command = [sys.executable, "-m", "plumbline", "serve"]
    with started(command, port, "/readyz", environment, cores=cores) as server:
        yield server


def load_cores() -> list[int]:
    """One in eight of those that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[: max(1, len(usable) // 8)]


def serving_cores() -> set[int]:
    """The others; on a single core the same one."""
    return os.sched_getaffinity(0) - set(load_cores()) or set(load_cores())


def pace_alone(engine: Engine, size: int, seconds: float) -> float:
    """Images per second."""
    return size / seconds_a_batch(engine.run, noise(size), seconds)


def pace_through(server: Server, options: Namespace) -> float:
    """Images per second of all load generators; everything has to be answered."""
    plan = load.plan_for(
        f"{server.url}/v1/predict",
        images(PAYLOAD),
        seconds=options.seconds,
        clients=options.clients,
        images_per_request=IMAGES_A_REQUEST,
        sends="form",
    )
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda core: load.run(plan, core), load_cores()))
    if any(set(its.statuses) != {200} for its in seen):
        raise SystemExit(f"statuses under load: {[its.statuses for its in seen]}")
    return sum(its.images_per_second for its in seen)


def train_once(home: Path) -> None:
    """A version of the network, where the home folder has none."""
    if ModelStore(ModelSettings(home=home)).versions(NAME):
        return
    with tempfile.TemporaryDirectory() as folder:
        example = ROOT / "examples" / "make_photographs.py"
        subprocess.run([sys.executable, example, folder], check=True)
        command = [sys.executable, "-m", "plumbline", "train", "--data", folder, "--name", NAME]
        command += ["--architecture", ARCHITECTURE, "--weights", "none", "--size", str(SIZE)]
        command += ["--epochs", str(EPOCHS), "--promote"]
        environment = {**os.environ, "PLUMBLINE_HOME": str(home)}
        subprocess.run(command, env=environment, check=True)
