"""BentoML's adaptive batching, and the same made safe, beside our batcher.

    .venv/bin/python bench/serve.py batching [--payload 256] [--rounds N]

What decides which one ships: images a second at full load; how long one client waits alone, before
and right after a burst of 96; and what the neighbours of a broken image get. In turns on one core,
one image a request, the same decoding, engine, decision and outlier score.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serve_parts import load
from serve_parts.figures import begin, parser_of
from serve_parts.pace import CLIENTS
from serve_parts.payloads import PHOTOGRAPHS, images
from serve_parts.peers import OURS, SENDS, peer
from serve_parts.servers import Server, plumbline

BURST = 96  # clients
BROKEN_EVERY = 8
AFTER_SECONDS = 3.0
PEERS = ("bentoml", "bentoml-safe")


def main() -> None:
    """Measure and print."""
    figures, options = begin("batching", parser_of(__doc__))
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for name in (OURS, *PEERS):
            opened = (
                plumbline(options.home, PHOTOGRAPHS)
                if name == OURS
                else peer(Path(sys.executable), name, options.home)
            )
            with opened as server:
                for what, value in measure(server, name, options.payload, options.seconds).items():
                    found.setdefault((name, what), []).append(value)
    for (name, what), values in found.items():
        figures.add(f"{name}: {what}", values, ".3f" if "share" in what else ".1f")
    figures.end()


def measure(server: Server, name: str, payload: str, seconds: float) -> dict[str, float]:
    """By what was measured."""
    is_ours = name == OURS
    url = server.url + ("/v1/predict" if is_ours else "/predict")
    sends = "body" if is_ours else SENDS["bentoml"]
    good = images(payload)

    def ask(clients: int, seconds: float, its: list[bytes] = good, apart: tuple[int, ...] = ()):
        plan = load.plan_for(
            url, its, seconds=seconds, clients=clients, sends=sends, apart=list(apart)
        )
        return load.run(plan)

    full = ask(CLIENTS[1], seconds)
    before = ask(1, AFTER_SECONDS)
    burst = ask(BURST, seconds)
    after = ask(1, AFTER_SECONDS)
    broken = range(0, len(good), BROKEN_EVERY)
    mixed = [its[: len(its) // 2] if at in broken else its for at, its in enumerate(good)]
    beside = ask(CLIENTS[1], seconds, mixed, tuple(broken))
    return {
        "images/s": full.images_per_second,
        "one client, p50, ms": before.milliseconds(0.5),
        "in a burst of 96, p99, ms": burst.milliseconds(0.99),
        "one client right after it, p50, ms": after.milliseconds(0.5),
        "one client right after it, p99, ms": after.milliseconds(0.99),
        "neighbours of broken images, share answered": beside.statuses.get(200, 0)
        / sum(beside.statuses.values()),
    }
