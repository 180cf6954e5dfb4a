"""Served images per second over the raw in-process loop, side by side in one run.

    make bench        or        .venv/bin/python bench/serve.py [--home FOLDER] [--rounds N]

Raw loop: one process, one thread, the same decode, engine, decision and outlier score, batches
of 8. Server: one worker pinned to the same core, the load generator on another. The model is
EfficientNet-Lite0 at 224 px with its real ImageNet weights and a head for eight photographs; the
images are JPEGs of 640 x 480. It also prints latency at half load, the time from start to ready,
the worker's memory, and the share of CPU time that recording and outlier scoring take.

Figures, machine and spread: docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import itertools
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import aiohttp
import httpx
import numpy as np
import psutil
import pyarrow.parquet
import skimage.data
from PIL import Image

from model.bundle import OUTLIER
from model.decision import probabilities
from model.engines import load_engine
from model.images import check, prepare, properties
from model.settings import ModelSettings
from model.store import ModelStore
from monitoring.outlier import BANK_LIMIT, OutlierModel
from monitoring.records import Record, to_table
from service.admission import Admitted
from service.batcher import Answer
from service.http import make_record
from service.predictor import Predictor
from service.serving import WORKER_ENVIRONMENT

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
NAME = "photographs"
BATCH = 8
CLIENTS = 24
SECONDS = 12.0
FLUSH_BATCHES = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("var/bench"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    home = options.home.absolute()
    train_once(home)
    images = jpegs()
    print(f"{cpu_name()}, Python {platform.python_version()}, OpenVINO {version('openvino')}")
    raw, served, unrecorded = [], [], []
    with (
        running_server(home) as (url, worker, ready_seconds),
        running_server(home, PLUMBLINE_RECORD="false") as (silent_url, silent, _),
    ):
        for _ in range(options.rounds):
            # Whoever is not measured is stopped: an idle worker still wakes now and then.
            worker.suspend()
            silent.suspend()
            raw.append(in_subprocess("raw", home))
            worker.resume()
            served.append(load(url, images, clients=CLIENTS).images_per_second)
            worker.suspend()
            silent.resume()
            unrecorded.append(load(silent_url, images, clients=CLIENTS).images_per_second)
        silent.suspend()
        worker.resume()
        half = load(url, images, rate=statistics.median(served) / 2)
        memory = worker.memory_info().rss / 2**20
        silent.resume()
    ratios = [one / other for one, other in zip(served, raw, strict=True)]
    print(f"raw loop        {show(raw)} images/s")
    print(f"served          {show(served)} images/s")
    print(f"served / raw    {show(ratios, '.3f')}")
    kept = [one / other for one, other in zip(served, unrecorded, strict=True)]
    print(f"with / without records  {show(kept, '.3f')}")
    print(f"at half load    p50 {half.quantile(0.5):.1f} ms, p99 {half.quantile(0.99):.1f} ms")
    print(f"start to ready  {ready_seconds:.1f} s")
    print(f"worker memory   {memory:.0f} MB resident")
    in_subprocess("share", home)


def show(values: list[float], form: str = ".1f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def cpu_name() -> str:
    """The processor, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line for line in lines if line.startswith("model name")), ": unknown")
    return f"{name.partition(':')[2].strip()}, {os.cpu_count()} cores"


def jpegs() -> list[bytes]:
    """Forty JPEGs of 640 x 480, quality 90, crops of photographs."""
    rng = np.random.default_rng(0)
    found = []
    for _, photograph in zip(range(40), itertools.cycle(photographs()), strict=False):
        left, top = (int(rng.integers(0, max(1, length // 4))) for length in photograph.size)
        crop = photograph.crop((left, top, *photograph.size)).resize((640, 480))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def photographs() -> list[Image.Image]:
    """Five photographs."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "camera")
    return [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names]


def train_once(home: Path) -> None:
    """Train the model of the benchmark where the home folder has none."""
    store = ModelStore(ModelSettings(home=home))
    if store.versions(NAME):
        return
    with tempfile.TemporaryDirectory() as folder:
        example = ROOT / "examples" / "make_photographs.py"
        subprocess.run([sys.executable, example, folder], check=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "plumbline", "train", "--data", folder),
                *("--name", NAME, "--epochs", "1", "--promote"),
            ],
            env={**os.environ, "PLUMBLINE_HOME": str(home)},
            check=True,
        )


# --- the raw loop, in a process of its own on the server's core ------------------------------


def in_subprocess(what: str, home: Path) -> float:
    """Run `raw` or `share` of this file on the server's core; the last line is its result."""
    environment = {**os.environ, **WORKER_ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, __file__, what, str(home)],
        env=environment,
        preexec_fn=pin(SERVER_CORE),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    *lines, result = done.stdout.strip().splitlines()
    print("\n".join(lines), end="\n" if lines else "")
    return float(result)


def raw(home: Path) -> None:
    """Images per second of the loop that the service is held against."""
    predictor = load_predictor(home)
    predictor.warm_up(BATCH)
    batches = itertools.cycle(batched(jpegs()))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        predictor.predict([prepare(data, predictor.input) for data in next(batches)])
        done += BATCH
    print(done / (time.perf_counter() - start))


def share(home: Path) -> None:
    """CPU time a step, per image, and the share of recording with outlier scoring."""
    predictor = load_predictor(home)
    manifest = predictor.bundle.manifest
    outlier = with_full_bank(OutlierModel.from_arrays(predictor.bundle.arrays(OUTLIER)))
    batch = batched(jpegs())[0]
    prepared = [prepare(data, predictor.input) for data in batch]
    logits, embedding = predictor.engine.run(np.stack(prepared))
    judgements = predictor.predict(prepared)

    def describe() -> list[Record]:
        return [
            make_record(
                "id",
                Admitted(
                    pixels,
                    check(data),
                    properties(pixels),
                    hashlib.sha256(data).hexdigest(),
                    len(data),
                    0.0,
                ),
                Answer(judgement, 0, 0),
                predictor,
                "client",
            )
            for data, pixels, judgement in zip(batch, prepared, judgements, strict=True)
        ]

    # The sink writes what came in two seconds as one file.
    waiting = describe() * FLUSH_BATCHES
    file = io.BytesIO()

    def write() -> None:
        file.seek(0)
        pyarrow.parquet.write_table(to_table(waiting), file, compression="zstd")

    steps = {
        "decode": lambda: [prepare(data, predictor.input) for data in batch],
        "network": lambda: predictor.engine.run(np.stack(prepared)),
        "decision": lambda: probabilities(logits, manifest.calibration, manifest.task),
        "outlier score": lambda: outlier.p_value(outlier.score(embedding, logits)[0]),
        "record": describe,
    }
    seconds = {name: cpu_seconds(step) / BATCH for name, step in steps.items()}
    seconds["record file"] = cpu_seconds(write) / len(waiting)
    for name, each in seconds.items():
        print(f"  {name:14}  {1e3 * each:.3f} ms of CPU time an image")
    watched = ("outlier score", "record", "record file")
    watching = sum(seconds[name] for name in watched) / sum(seconds.values())
    print(f"recording and outlier score: {100 * watching:.1f} % of the CPU time an image")
    print(watching)


def with_full_bank(outlier: OutlierModel) -> OutlierModel:
    """The same score over as many neighbours as a bank may hold: what large data cost."""
    columns = np.arange(BANK_LIMIT) % outlier.bank.shape[1]
    return replace(outlier, bank=np.ascontiguousarray(outlier.bank[:, columns]))


def cpu_seconds(step: Callable[[], object], repeats: int = 60) -> float:
    """Median CPU time of one call."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return statistics.median(found)


def batched(images: list[bytes]) -> list[list[bytes]]:
    """Whole batches."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def load_predictor(home: Path) -> Predictor:
    """The champion with one thread."""
    store = ModelStore(ModelSettings(home=home))
    champion = store.champion(NAME)
    bundle = store.load(champion)
    return Predictor(bundle, load_engine("openvino", bundle, threads=1), stage="champion")


# --- the server and its load -----------------------------------------------------------------


@contextmanager
def running_server(home: Path, **more: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """URL, worker process and seconds from start to ready of a server on its core."""
    port = free_port()
    settings = {
        "PLUMBLINE_HOME": str(home),
        "PLUMBLINE_MODEL": NAME,
        "PLUMBLINE_WORKERS": "1",
        "PLUMBLINE_SERVE_ON": f"127.0.0.1:{port}",
        **more,
    }
    started = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "plumbline", "serve"],
        env={**os.environ, **settings},
        preexec_fn=pin(SERVER_CORE),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while not is_ready(url):
            if server.poll() is not None or time.perf_counter() - started > 60:
                raise SystemExit("the server did not become ready")
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        yield url, worker_of(server.pid), seconds
    finally:
        server.terminate()
        server.wait(30)


def worker_of(pid: int) -> psutil.Process:
    """The process that holds the model: the child with the most memory."""
    children = psutil.Process(pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def is_ready(url: str) -> bool:
    """Whether `/readyz` says yes."""
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(core: int) -> Callable[[], None]:
    """For a child process: run on this core alone."""
    return lambda: os.sched_setaffinity(0, {core})


@dataclass
class Load:
    """What a load generator saw."""

    seconds: float
    latencies: list[float]  # seconds

    @property
    def images_per_second(self) -> float:
        """Answers with status 200, over the time."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """A latency in milliseconds."""
        return 1e3 * float(np.quantile(self.latencies, share))


def load(url: str, images: list[bytes], *, clients: int = 64, rate: float | None = None) -> Load:
    """Ask for SECONDS, from the load generator's core.

    Closed loop of `clients`, or an open loop of `rate` requests a second at random times.
    """
    os.sched_setaffinity(0, {LOAD_CORE})
    return asyncio.run(_load(url, images, clients, rate))


async def _load(url: str, images: list[bytes], clients: int, rate: float | None) -> Load:
    latencies: list[float] = []
    supply = itertools.cycle(images)
    headers = {"Content-Type": "image/jpeg"}

    async def ask(session: aiohttp.ClientSession) -> None:
        start = time.perf_counter()
        async with session.post(f"{url}/v1/predict", data=next(supply), headers=headers) as answer:
            await answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status} under load")
        latencies.append(time.perf_counter() - start)

    async def ask_again(session: aiohttp.ClientSession, until: float) -> None:
        while time.perf_counter() < until:
            await ask(session)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(ask(session) for _ in range(8)))
        latencies.clear()
        start = time.perf_counter()
        if rate is None:
            await asyncio.gather(*(ask_again(session, start + SECONDS) for _ in range(clients)))
        else:
            rng = np.random.default_rng(0)
            async with asyncio.TaskGroup() as tasks:
                while time.perf_counter() - start < SECONDS:
                    tasks.create_task(ask(session))
                    await asyncio.sleep(float(rng.exponential(1 / rate)))
        return Load(time.perf_counter() - start, latencies)


if __name__ == "__main__":
    if sys.argv[1:2] in (["raw"], ["share"]):
        {"raw": raw, "share": share}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
