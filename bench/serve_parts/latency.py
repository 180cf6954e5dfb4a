"""Latency: of one client, at half of full load, and right after a burst.

    .venv/bin/python bench/serve.py latency [--payload 256] [--rounds N]

Beside the time that decoding and the network take for one image alone, in a process of their own on
the same core. The one client is a bare socket, as a client's own work is not the server's; beside
it the same with aiohttp as the client. Asked for: p50 at one client within 2 ms of it, also right
after a burst; p99 at half of full load, an open loop, at most 3 times it.

Half load comes evenly spaced, and at random times as from independent clients (Poisson). Then
requests queue whatever serves them, so that an ideal server stands beside it: one that takes each
image in just that time, one after the other, asked at the same moments.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from serve_parts import load, raw
from serve_parts.figures import begin, parser_of
from serve_parts.pace import CLIENTS, full_load, plan_of_full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import Server, plumbline

MOST_MORE_MILLISECONDS, MOST_TIMES = 2.0, 3.0


def main() -> None:
    """Measure and print."""
    figures, options = begin("latency", parser_of(__doc__))
    home, payload, seconds = options.home, options.payload, options.seconds
    alone, one_client, by_aiohttp, after, ideal, as_ours = [], [], [], [], [], []
    half: dict[str, list[load.Seen]] = {"evenly": [], "at random": []}
    with plumbline(home, model_of(payload)) as server:
        for _ in range(options.rounds):
            server.suspend()
            alone.append(1e3 / raw.images_per_second(home, payload, seconds=seconds, batch=1))
            one_client.append(ask_alone(server, payload, seconds).milliseconds(0.5))
            by_aiohttp.append(full_load(server, payload, 1, seconds, clients=1).milliseconds(0.5))
            full = full_load(server, payload, 1, seconds, clients=4 * CLIENTS[1])
            after.append(ask_alone(server, payload, 3.0).milliseconds(0.5))
            server.resume()
            rate = full.images_per_second / 2
            for spacing, found in half.items():
                plan = load.plan_for(
                    f"{server.url}/v1/predict",
                    images(payload),
                    seconds=2 * seconds,
                    rate=rate,
                    evenly=spacing == "evenly",
                )
                found.append(load.run(plan))
            for found, each in ((ideal, alone[-1]), (as_ours, one_client[-1])):
                found.append(1e3 * ideal_quantile(rate, each / 1e3, 0.99) / alone[-1])
    figures.add("decode and network of one image, ms", alone)
    figures.add("one client, p50, ms", one_client)
    more = [one - two for one, two in zip(one_client, alone, strict=True)]
    figures.add("one client, p50 over that, ms", more, most=MOST_MORE_MILLISECONDS)
    more = [one - two for one, two in zip(by_aiohttp, alone, strict=True)]
    figures.add("the same with aiohttp as the client, ms", more)
    more = [one - two for one, two in zip(after, alone, strict=True)]
    figures.add("right after a burst, p50 over that, ms", more, most=MOST_MORE_MILLISECONDS)
    for spacing, found in half.items():
        name = f"half load, {spacing}"
        figures.add(f"{name}, p50, ms", [seen.milliseconds(0.5) for seen in found])
        figures.add(f"{name}, p99, ms", [seen.milliseconds(0.99) for seen in found])
        times = [seen.milliseconds(0.99) / one for seen, one in zip(found, alone, strict=True)]
        figures.add(f"{name}, p99 in times of one image alone", times, ".2f", most=MOST_TIMES)
    figures.add("the same of an ideal server at random times", ideal, ".2f")
    figures.add("of one that takes as long as ours for one client", as_ours, ".2f")
    figures.end()


def ideal_quantile(rate: float, seconds: float, share: float) -> float:
    """Of the time in a queue with one server that takes `seconds` for each, asked at random."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 100_000))
    done, waited = 0.0, []
    for moment in arrivals:
        done = max(done, moment) + seconds
        waited.append(done - moment)
    return float(np.quantile(waited, share))


def ask_alone(server: Server, payload: str, seconds: float) -> load.Seen:
    """One client, one image after the other."""
    server.resume()
    plan = plan_of_full_load(server, payload, 1, seconds, clients=1)
    seen = load.run(replace(plan, bare=True))
    server.suspend()
    if set(seen.statuses) != {200}:
        raise SystemExit(f"statuses of one client: {seen.statuses}")
    return seen
