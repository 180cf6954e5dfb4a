"""What each setting of the process is worth: before and after.

    .venv/bin/python bench/serve.py tuning [--payload 256] [--rounds N]

As shipped, beside the same without the settings of the allocator, and without `gc.freeze`: images a
second at full load, p99 of a client at half of it (evenly spaced), memory. On both cores: two
workers with a compute thread each, as shipped, beside one worker with two. The load generator then
shares a core with a worker, for all alike. Batches are of up to 8 throughout, so that nothing else
differs; the kinds take turns in another order each round.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import AbstractContextManager

from serve_parts import load
from serve_parts.figures import Figures, begin, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import LOAD_CORE, SERVER_CORE, Server, plumbline

SHIPPED, NO_ALLOCATOR, NO_FREEZE = "as shipped", "default allocator", "no gc.freeze"
TWO_WORKERS, TWO_THREADS = "two workers of one thread", "one worker of two threads"
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
    figures, options = begin("tuning", parser_of(__doc__))
    found: dict[tuple[str, str], list[float]] = {}
    kinds = (SHIPPED, NO_ALLOCATOR, NO_FREEZE, TWO_WORKERS, TWO_THREADS)
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
    if name == TWO_WORKERS:
        return plumbline(home, model, cores=both, workers="2", batch_images=BATCH)
    if name == TWO_THREADS:
        return plumbline(home, model, cores=both, engine_threads="2", batch_images=BATCH)
    return plumbline(home, model, batch_images=BATCH)


def measure(server: Server, options: Namespace) -> dict[str, float]:
    """By what was measured."""
    full_load(server, options.payload, 1, options.seconds / 4)
    full = full_load(server, options.payload, 1, options.seconds)
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
        "full load, p99, ms": full.milliseconds(0.99),
        "half load, p99, ms": half.milliseconds(0.99),
        "memory of all its processes, MB": memory,
    }


def compare(figures: Figures, found: dict[tuple[str, str], list[float]]) -> None:
    """Images a second, as ratios of the same round."""
    for ours, other in (
        (SHIPPED, NO_ALLOCATOR),
        (SHIPPED, NO_FREEZE),
        (TWO_WORKERS, TWO_THREADS),
    ):
        pairs = zip(found[ours, "images/s"], found[other, "images/s"], strict=True)
        figures.add(f"{ours} / {other}", [one / two for one, two in pairs], ".3f")
