"""What each setting of the process is worth: before and after.

    .venv/bin/python bench/serve.py tuning [--payload 256] [--rounds N] [--kinds "as shipped" ...]

As shipped, beside the same without the settings of the allocator; without `gc.freeze`; with a line
in the log for every request, as uvicorn and BentoML write one by default (ours, to a file); and
with predictions that BentoML makes answers of, as of what any of its API methods returns, and not
ready ones. Images a second at full load, CPU time an image, p99 of a client at half of full load
(evenly spaced), memory.

On both cores: two workers with a compute thread each, as shipped, beside one worker with two. The
load generator then shares a core with a worker, for all alike. Batches are of up to 8 throughout,
so that nothing else differs; the kinds take turns in another order each round.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx

from serve_parts import load
from serve_parts.figures import Figures, begin, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import LOAD_CORE, SERVER_CORE, Server, plumbline

SHIPPED, NO_ALLOCATOR, NO_FREEZE = "as shipped", "default allocator", "no gc.freeze"
ACCESS_LOG, SERIALISED = "access log", "BentoML's serialisation"
TWO_WORKERS, TWO_THREADS = "two workers of one thread", "one worker of two threads"
KINDS = (SHIPPED, NO_ALLOCATOR, NO_FREEZE, ACCESS_LOG, SERIALISED, TWO_WORKERS, TWO_THREADS)
BATCH = "8"
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_WITHOUT_ALLOCATOR = f"""
import service.serving
for name in {ALLOCATOR}:
    del service.serving.WORKER_ENVIRONMENT[name]
from plumbline.__main__ import main
main()
"""


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    figures, options = begin("tuning", parser)
    found: dict[tuple[str, str], list[float]] = {}
    kinds = tuple(options.kinds)
    for number in range(options.rounds):
        for name in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            with opened(name, options) as server:
                for what, value in measure(server, options).items():
                    found.setdefault((name, what), []).append(value)
    for (name, what), values in found.items():
        figures.add(f"{name}: {what}", values)
    compare(figures, found)
    figures.end()


def opened(name: str, options: Namespace) -> AbstractContextManager[Server]:
    """A server of that kind."""
    home, model = options.home, model_of(options.payload)
    both = (SERVER_CORE, LOAD_CORE)
    if name == NO_ALLOCATOR:
        unset = [part for variable in ALLOCATOR for part in ("-u", variable)]
        return plumbline(
            home,
            model,
            command=("env", *unset, sys.executable, "-c", _WITHOUT_ALLOCATOR),
            batch_images=BATCH,
        )
    if name == NO_FREEZE:
        return plumbline(
            home,
            model,
            look_inside=True,
            environment={"BENCH_WITHOUT_FREEZE": "yes"},
            batch_images=BATCH,
        )
    if name == ACCESS_LOG:
        return logging_requests(home, model)
    if name == SERIALISED:
        return serialising(home, model, options.payload)
    if name == TWO_WORKERS:
        return plumbline(home, model, cores=both, workers="2", batch_images=BATCH)
    if name == TWO_THREADS:
        return plumbline(home, model, cores=both, engine_threads="2", batch_images=BATCH)
    return plumbline(home, model, batch_images=BATCH)


@contextmanager
def logging_requests(home: Path, model: str) -> Iterator[Server]:
    """With its log in a file."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with plumbline(
            home,
            model,
            command=("sh", "-c", 'exec "$@" 2> "$0"', str(log), sys.executable, "-m", "plumbline"),
            access_log="true",
            batch_images=BATCH,
        ) as server:
            yield server
        if "POST /v1/predict 200" not in log.read_text():
            raise SystemExit(f"{ACCESS_LOG}: there is no line of a prediction in it")


@contextmanager
def serialising(home: Path, model: str, payload: str) -> Iterator[Server]:
    """With answers that BentoML makes."""
    with plumbline(
        home,
        model,
        look_inside=True,
        environment={"BENCH_SERIALISED": "yes"},
        batch_images=BATCH,
    ) as server:
        answer = httpx.post(f"{server.url}/v1/predict", content=images(payload)[0])
        if "X-Bench-Serialised" not in answer.headers:
            raise SystemExit(f"{SERIALISED}: answers are ready ones")
        yield server


def measure(server: Server, options: Namespace) -> dict[str, float]:
    """By what was measured."""
    full_load(server, options.payload, 1, options.seconds / 4)
    begun = server.cpu_seconds()
    full = full_load(server, options.payload, 1, options.seconds)
    each = (server.cpu_seconds() - begun) / len(full.latencies[200])
    server.resume()
    half = load.run(
        load.plan_for(
            f"{server.url}/v1/predict",
            images(options.payload),
            seconds=options.seconds,
            rate=full.images_per_second / 2,
            evenly=True,
        )
    )
    memory = sum(one.memory_info().rss for one in server.family) / 2**20
    return {
        "images/s": full.images_per_second,
        "CPU time an image, ms": 1e3 * each,
        "full load, p99, ms": full.milliseconds(0.99),
        "half load, p99, ms": half.milliseconds(0.99),
        "memory of all its processes, MB": memory,
    }


def compare(figures: Figures, found: dict[tuple[str, str], list[float]]) -> None:
    """Images a second, as ratios of the same round."""
    for ours, other in (
        *((SHIPPED, other) for other in (NO_ALLOCATOR, NO_FREEZE, ACCESS_LOG, SERIALISED)),
        (TWO_WORKERS, TWO_THREADS),
    ):
        if (ours, "images/s") in found and (other, "images/s") in found:
            pairs = zip(found[ours, "images/s"], found[other, "images/s"], strict=True)
            figures.add(f"{ours} / {other}", [one / two for one, two in pairs], ".3f")
