"""Overload: an open loop of 2, 5 and 10 times what can be served.

    .venv/bin/python bench/serve.py overload [--payload 256] [--rounds N]

Asked for: at least 90 % of the images per second of full load still answered, the p99 of what was
accepted under the deadline, and everything else 429. The load generator's core is the other one;
where it cannot send so many requests, that is said.
"""

from __future__ import annotations

from serve_parts import load
from serve_parts.figures import begin, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import plumbline

TIMES = (2, 5, 10)
LEAST_KEPT = 0.90
DEADLINE_MILLISECONDS = 5_000


def main() -> None:
    """Measure and print."""
    figures, options = begin("overload", parser_of(__doc__))
    home, payload, seconds = options.home, options.payload, options.seconds
    kept: dict[int, list[float]] = {}
    slowest: dict[int, list[float]] = {}
    others: dict[int, list[float]] = {}
    sent: dict[int, list[float]] = {}
    with plumbline(home, model_of(payload)) as server:
        for _ in range(options.rounds):
            full = full_load(server, payload, 1, seconds).images_per_second
            server.resume()
            for times in TIMES:
                plan = load.plan_for(
                    f"{server.url}/v1/predict",
                    images(payload),
                    seconds=seconds,
                    rate=times * full,
                )
                seen = load.run(plan)
                count = sum(seen.statuses.values())
                good = seen.statuses.get(200, 0)
                kept.setdefault(times, []).append(good / seen.seconds / full)
                slowest.setdefault(times, []).append(seen.milliseconds(0.99))
                shed = seen.statuses.get(429, 0)
                others.setdefault(times, []).append(count - good - shed)
                sent.setdefault(times, []).append(count / seconds / full)
    for times in TIMES:
        name = f"{times} times the load"
        figures.add(f"{name}, requests sent, in times of full load", sent[times], ".2f")
        figures.add(f"{name}, of full load still answered", kept[times], ".3f", least=LEAST_KEPT)
        figures.add(
            f"{name}, p99 of what was accepted, ms", slowest[times], most=DEADLINE_MILLISECONDS
        )
        figures.add(f"{name}, neither 200 nor 429", others[times], ".0f", most=0)
    figures.end()
