"""False alarms on clean images, and memory over ten million records.

    .venv/bin/python bench/monitor.py alarms [--c 10000 100000] [--images 1000000 10000000]

Promise: the chance of a false alarm within m images from a reset is at most m / c. So 100 c images,
the evidence forgotten after every alarm, may bring 100 alarms on average. The vectors of the seven
streams are drawn from real ones (`clean.Smoothed`: those of all calibration and test images of
Fashion-MNIST), bin edges from the fit split; bags start from 5,000 such vectors, and from 200.
Every run counts with its exact 99 % Poisson interval (Garwood 1936); it refutes the promise, and is
a miss, where the whole interval lies above what is allowed. Each starts in a process of its own
(--processes at a time) and prints its resident memory after every tenth.

Besides: real images end to end, in records through the monitor's own `Watch` with its sampler.
5,000 test images in one order, and the same in 20 orders.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from monitor_parts.figures import Figures, parser_of
from monitor_parts.long_runs import Run, play
from monitor_parts.traffic import Traffic, watch_traffic
from monitor_parts.versions import Version, garments_of, join
from training.splits import Split

CALIBRATION = (5_000, 200)
REAL_IMAGES, REAL_ORDERS = 5_000, 20
REAL_C = (10_000.0, 100_000.0)
MOST_MEMORY_GROWTH = 1.02  # from the first tenth to the last


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--c", type=float, nargs="+", default=[1e4, 1e5])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    figures = Figures("alarms", options)
    version = garments_of(options.home)
    seen = join(version.split(Split.CALIBRATION), version.split(Split.TEST))
    real, edges = version.vectors(seen), version.edges()
    cases = [
        (real, edges, calibration, c, images)
        for c, images in zip(options.c, options.images, strict=True)
        for calibration in CALIBRATION
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        for run in pool.map(play, cases):
            add(figures, run)
    end_to_end(figures, version, options.home)
    figures.end()


def add(figures: Figures, run: Run) -> None:
    """Its alarms beside what is allowed, and whether memory grew."""
    low, high = poisson_interval(run.alarms)
    allowed = run.images / run.c
    name = f"{run.images:,} vectors, c = {run.c:g}, calibration {run.calibration}"
    print(f"{name}: {run.alarms} alarms (99 %: {low:.1f} to {high:.1f}), {allowed:g} allowed")
    figures.add(f"{name}, alarms", [run.alarms], ".0f")
    figures.add(f"{name}, least true number (99 %)", [low], most=allowed)
    figures.add(
        f"{name}, memory at the end over that after a tenth",
        [run.megabytes[-1] / run.megabytes[0]],
        ".3f",
        most=MOST_MEMORY_GROWTH,
    )


def end_to_end(figures: Figures, version: Version, home: Path) -> None:
    """Real images, the bags from the version's own calibration split, as the monitor does it."""
    records = version.records(version.split(Split.TEST))
    for c in REAL_C:
        alarms = []
        for order in range(REAL_ORDERS):
            rows = np.random.default_rng(order).permutation(len(records))[:REAL_IMAGES]
            seen = watch_traffic(version.bundle, home, records, Traffic(rows), c)
            alarms.append(seen.alarms)
        allowed = REAL_ORDERS * REAL_IMAGES / c
        print(f"{REAL_IMAGES:,} real images, c = {c:g}: {alarms[0]} alarms in the first order")
        figures.add(f"first of the orders, c = {c:g}, alarms", [alarms[0]], ".0f", most=1)
        figures.add(f"{REAL_ORDERS} orders, c = {c:g}, alarms in all", [sum(alarms)], ".0f")
        low, high = poisson_interval(sum(alarms))
        print(f"  (99 %: {low:.1f} to {high:.1f}), {allowed:g} allowed")
        figures.add(f"{REAL_ORDERS} orders, c = {c:g}, least true number", [low], most=allowed)


def poisson_interval(count: int, level: float = 0.99) -> tuple[float, float]:
    """The exact interval (Garwood 1936)."""
    rest = (1 - level) / 2
    low = float(chi2.ppf(rest, 2 * count) / 2) if count else 0.0
    return low, float(chi2.ppf(1 - rest, 2 * count + 2) / 2)
