"""Where the CPU time of the worker goes, thread by thread, at full load and beyond.

    .venv/bin/python bench/serve.py threads [--payload 256] [--rounds N]

The profile behind the ratios of `pace`, `peers` and `overload`: milliseconds of CPU time of the
event loop (HTTP, admission, metrics, answers), of decoding, of computing (network, decision,
outlier score) and of the record files, for each image that was answered.
"""

from __future__ import annotations

from serve_parts import load
from serve_parts.figures import begin, parser_of
from serve_parts.pace import full_load, plan_of_full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import Server, plumbline

TIMES = (2, 10)  # of full load
LEAST_SECONDS = 1e-5  # an image; what is less is not told
Found = dict[tuple[str, str], list[float]]


def main() -> None:
    """Measure and print."""
    figures, options = begin("threads", parser_of(__doc__))
    payload, seconds = options.payload, options.seconds
    found: Found = {}
    with plumbline(options.home, model_of(payload), look_inside=True) as server:
        full_load(server, payload, 1, seconds / 4)
        server.resume()
        for _ in range(options.rounds):
            for several in (16, 1):
                plan = plan_of_full_load(server, payload, several, seconds)
                seen = measure(server, plan, found, f"full load, {several} a request")
            for times in TIMES:
                plan = load.plan_for(
                    f"{server.url}/v1/predict",
                    images(payload),
                    seconds=seconds,
                    rate=times * seen.images_per_second,
                )
                measure(server, plan, found, f"{times} times full load")
    for (name, what), values in found.items():
        figures.add(f"{name}: {what}", values, ".1f" if what == "images/s" else ".2f")
    figures.end()


def measure(server: Server, plan: load.Plan, found: Found, name: str) -> load.Seen:
    """Add the pace and the CPU time of each thread for an answered image."""
    before = server.thread_seconds()
    seen = load.run(plan)
    answered = seen.images_per_second * seen.seconds
    found.setdefault((name, "images/s"), []).append(seen.images_per_second)
    for thread, total in server.thread_seconds().items():
        each = (total - before.get(thread, 0.0)) / answered
        if each > LEAST_SECONDS:
            found.setdefault((name, f"{thread}, ms an image"), []).append(1e3 * each)
    return seen
