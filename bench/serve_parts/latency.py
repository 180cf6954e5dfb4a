"""Latency: of one client, at half of full load, and right after a burst.

    .venv/bin/python bench/serve.py latency [--payload 256] [--rounds N]

Beside the time that decoding and the network take for one image alone, in the same process and on
the same core. Asked for: p50 at one client within 2 ms of it, also right after a burst; p99 at half
of full load, an open loop, at most 3 times it.
"""

from __future__ import annotations

from serve_parts import load, raw
from serve_parts.figures import Figures, parser_of
from serve_parts.pace import CLIENTS, full_load
from serve_parts.payloads import PAYLOADS, images, model_of, train_once
from serve_parts.servers import Server, plumbline

MOST_MORE_MILLISECONDS, MOST_TIMES = 2.0, 3.0


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--payload", choices=PAYLOADS, default="256")
    options = parser.parse_args()
    figures = Figures("latency", options)
    home, payload, seconds = options.home.absolute(), options.payload, options.seconds
    train_once(home, model_of(payload))
    alone, one_client, after, half_50, half_99 = [], [], [], [], []
    with plumbline(home, model_of(payload)) as server:
        for _ in range(options.rounds):
            server.suspend()
            alone.append(1e3 / raw.images_per_second(home, payload, seconds=seconds, batch=1))
            one_client.append(ask_alone(server, payload, seconds).milliseconds(0.5))
            full = full_load(server, payload, 1, 4 * CLIENTS[1], seconds)
            after.append(ask_alone(server, payload, 3.0).milliseconds(0.5))
            server.resume()
            half = load.run(
                load.plan_for(
                    f"{server.url}/v1/predict",
                    images(payload),
                    seconds=2 * seconds,
                    rate=full.images_per_second / 2,
                )
            )
            half_50.append(half.milliseconds(0.5))
            half_99.append(half.milliseconds(0.99))
    figures.add("decode and network of one image, ms", alone)
    figures.add("one client, p50, ms", one_client)
    more = [one - two for one, two in zip(one_client, alone, strict=True)]
    figures.add("one client, p50 over that, ms", more, most=MOST_MORE_MILLISECONDS)
    more = [one - two for one, two in zip(after, alone, strict=True)]
    figures.add("right after a burst, p50 over that, ms", more, most=MOST_MORE_MILLISECONDS)
    figures.add("half load, p50, ms", half_50)
    figures.add("half load, p99, ms", half_99)
    times = [one / two for one, two in zip(half_99, alone, strict=True)]
    figures.add("half load, p99 in times of one image alone", times, ".2f", most=MOST_TIMES)
    figures.end()


def ask_alone(server: Server, payload: str, seconds: float) -> load.Seen:
    """One client, one image after the other."""
    return full_load(server, payload, 1, 1, seconds)
