"""Served images per second over the raw in-process loop, side by side in one run.

    .venv/bin/python bench/serve.py pace [--payloads 256 640 1024 28] [--workers 2] [--rounds N]

Raw loop: one process, one thread, the same decode, engine, decision and outlier score, batches of
8. Server: one worker on the same core at full load, the load generator on the other. EfficientNet-
Lite0 at 224 px with real weights on JPEGs of 256 x 256 (asked for: 0.95 with 16 images a request,
0.90 with one), 640 x 480 and 1024 x 768; the small network on PNGs of 28 x 28. Also the time from
start to ready and the worker's memory, and what recording costs. With two workers the server has
both cores and the load generator what they leave of them, so that nothing is asked for.
"""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from serve_parts import load, raw
from serve_parts.figures import Figures, parser_of
from serve_parts.payloads import PAYLOADS, images, model_of, train_once
from serve_parts.servers import LOAD_CORE, SERVER_CORE, Server, plumbline

CLIENTS = {1: 24, 16: 4}  # by images a request
LEAST = {("256", 1): 0.90, ("256", 16): 0.95, ("640", 1): 0.80}


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--payloads", nargs="+", choices=PAYLOADS, default=["256", "640"])
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    several = options.workers > 1
    figures = Figures("pace_of_two_workers" if several else "pace", options)
    options.home = options.home.absolute()
    for payload in options.payloads:
        train_once(options.home, model_of(payload))
        measure(figures, options, payload)
    figures.end()


def measure(figures: Figures, options: Namespace, payload: str) -> None:
    """One payload, alone and 16 a request, with and without records."""
    home: Path = options.home
    model, seconds = model_of(payload), options.seconds
    raws: list[float] = []
    served: dict[str, list[float]] = {}
    with ExitStack() as stack:
        cores = (SERVER_CORE, LOAD_CORE)[: options.workers]
        workers = str(options.workers)
        server = stack.enter_context(plumbline(home, model, cores=cores, workers=workers))
        silent = stack.enter_context(
            plumbline(home, model, cores=cores, workers=workers, record="false")
        )
        server.suspend()
        silent.suspend()
        for _ in range(options.rounds):
            raws.append(raw.images_per_second(home, payload, seconds=seconds))
            for several in CLIENTS:
                name = f"{several} a request"
                seen = full_load(server, payload, several, seconds)
                served.setdefault(name, []).append(seen.images_per_second)
            seen = full_load(silent, payload, 1, seconds)
            served.setdefault("without records", []).append(seen.images_per_second)
        memory = server.worker.memory_info().rss / 2**20
    figures.add(f"{payload} px, raw loop, images/s", raws)
    for several in CLIENTS:
        name = f"{several} a request"
        figures.add(f"{payload} px, {name}, images/s", served[name])
        ratios = [one / other for one, other in zip(served[name], raws, strict=True)]
        least = LEAST.get((payload, several)) if options.workers == 1 else None
        figures.add(f"{payload} px, {name}, served / raw", ratios, ".3f", least=least)
    pairs = zip(served["1 a request"], served["without records"], strict=True)
    figures.add(f"{payload} px, with / without records", [a / b for a, b in pairs], ".3f")
    ready = [one.ready_seconds for one in (server, silent)]
    figures.add(f"{payload} px, start to ready, s", ready, most=8)
    figures.add(f"{payload} px, memory of the worker, MB", [memory], ".0f", most=700)


def full_load(
    server: Server, payload: str, several: int, seconds: float, *, clients: int | None = None
) -> load.Seen:
    """A closed loop; everything has to be answered."""
    server.resume()
    seen = load.run(plan_of_full_load(server, payload, several, seconds, clients=clients))
    server.suspend()
    if set(seen.statuses) != {200}:
        raise SystemExit(f"statuses under load: {seen.statuses}")
    return seen


def plan_of_full_load(
    server: Server, payload: str, several: int, seconds: float, *, clients: int | None = None
) -> load.Plan:
    """`several` images a request; None: as many clients as CLIENTS says."""
    return load.plan_for(
        f"{server.url}/v1/predict",
        images(payload),
        seconds=seconds,
        clients=clients or CLIENTS[several],
        images_per_request=several,
        sends="body" if several == 1 else "form",
    )
