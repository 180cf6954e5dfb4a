"""CPU time of a request besides its image: with a network that costs next to nothing.

    .venv/bin/python bench/serve.py door [--rounds N]

The small network at 28 px on PNGs, full load: CPU time of the whole service per request, less that
of the raw loop per image. Asked for: at most 0.6 ms. With and without recording.
"""

from __future__ import annotations

from contextlib import ExitStack

from serve_parts import raw
from serve_parts.figures import Figures, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import GARMENTS, train_once
from serve_parts.servers import Server, plumbline

MOST_MILLISECONDS = 0.6


def main() -> None:
    """Measure and print."""
    options = parser_of(__doc__).parse_args()
    figures = Figures("door", options)
    home = options.home.absolute()
    train_once(home, GARMENTS)
    images, whole, silent = [], [], []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(plumbline(home, GARMENTS, record=record))
            for record in ("true", "false")
        ]
        for server in servers:
            server.suspend()
        for _ in range(options.rounds):
            pace = raw.images_per_second(home, "28", seconds=options.seconds)
            images.append(1e3 / pace)  # one core, all of it
            for server, found in zip(servers, (whole, silent), strict=True):
                found.append(milliseconds_a_request(server, options.seconds))
    figures.add("raw loop, ms of CPU time an image", images, ".3f")
    figures.add("service, ms of CPU time a request", whole, ".3f")
    door = [one - two for one, two in zip(silent, images, strict=True)]
    figures.add("the door's own, without records, ms", door, ".3f", most=MOST_MILLISECONDS)
    recording = [one - two for one, two in zip(whole, silent, strict=True)]
    figures.add("recording, ms", recording, ".3f")
    figures.end()


def milliseconds_a_request(server: Server, seconds: float) -> float:
    """CPU time of the service and all its processes."""
    before = server.cpu_seconds()
    seen = full_load(server, "28", 1, seconds)
    return 1e3 * (server.cpu_seconds() - before) / len(seen.latencies[200])
