"""Half an hour under load: does memory creep, do file descriptors stay?

    .venv/bin/python bench/serve.py soak [--minutes 30] [--payload 256]

Asked for: the resident memory of the worker rises by less than 5 MB an hour after the first five
minutes (a straight line through its values, one a second), and its file descriptors not at all.
Half of full load, with one request in ten that is broken, and records on.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from serve_parts import load
from serve_parts.figures import begin, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import images, model_of
from serve_parts.servers import plumbline

MOST_MEGABYTES_AN_HOUR = 5.0
WARM_UP_SECONDS = 300.0


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    figures, options = begin("soak", parser)
    home, payload = options.home, options.payload
    seconds = 60 * options.minutes
    with plumbline(home, model_of(payload)) as server:
        full = full_load(server, payload, 1, options.seconds).images_per_second
        server.resume()
        good = images(payload)
        mixed = [*good[:9], good[9][: len(good[9]) // 2]] * 4
        plan = load.plan_for(
            f"{server.url}/v1/predict", mixed, seconds=seconds, rate=full / 2, warm_up_requests=0
        )
        worker, times, memory, files = server.worker, [], [], []
        asking = threading.Thread(target=load.run, args=[plan])
        started = time.perf_counter()
        asking.start()
        while asking.is_alive():
            times.append(time.perf_counter() - started)
            memory.append(worker.memory_info().rss / 2**20)
            files.append(worker.num_fds())
            time.sleep(1)
    kept = np.array(times) > min(WARM_UP_SECONDS, seconds / 3)
    slope = np.polyfit(np.array(times)[kept] / 3600, np.array(memory)[kept], 1)[0]
    count = int(kept.sum()) // 5
    descriptors = np.array(files)[kept]
    grown = float(np.median(descriptors[-count:]) - np.median(descriptors[:count]))
    figures.add("requests a second", [full / 2])
    figures.add("memory of the worker at the end, MB", [memory[-1]], ".0f")
    figures.add("its slope, MB an hour", [float(slope)], ".2f", most=MOST_MEGABYTES_AN_HOUR)
    figures.add("file descriptors more at the end", [grown], ".0f", most=0)
    figures.end()
