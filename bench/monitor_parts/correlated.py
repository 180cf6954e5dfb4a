"""Traffic that is no sample: alarms within the bound, or a visible "cannot promise".

    .venv/bin/python bench/monitor.py correlated [--orders 12] [--kinds NAME ...]

Real test images of Fashion-MNIST in records through the monitor's own `Watch`, sampler included;
nothing about the images changed, so every alarm is false. Each kind in so many seeded orders of
about 6,000 records at 20 a second. Asked for: no more alarms than m / c (c = 1e5) explains, by the
exact 99 % Poisson interval; m counts all records, not the sampled ones alone. Beside it how often
the monitor said "cannot promise", and what the same vectors do to the evidence alone, without
sampler and without a measure of dependence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monitor_parts.alarms import poisson_interval
from monitor_parts.clean import begin, count_alarms
from monitor_parts.figures import Figures, parser_of
from monitor_parts.traffic import Traffic, Watched, watch_traffic
from monitor_parts.versions import garments_of
from training.splits import Split

C = 100_000.0
RECORDS = 6_000
RUN = 10
BUSY_SHARE = 0.9
SENT_AGAIN = 50  # images that a stuck client sends over and over

Rows = NDArray[np.int64]
Kind = Callable[[Rows, np.random.Generator], Traffic]


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--orders", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    figures = Figures("correlated", options)
    version = garments_of(options.home)
    test = version.split(Split.TEST)
    records, vectors = version.records(test), version.vectors(test)
    targets, bag = version.targets(Split.TEST), version.vectors(version.split(Split.CALIBRATION))
    for name in options.kinds:
        kind = KINDS[name]
        found: list[Watched] = []
        alone = 0
        for order in range(options.orders):
            traffic = kind(targets, np.random.default_rng(order))
            found.append(watch_traffic(version.bundle, options.home, records, traffic, C))
            evidence = begin(bag, version.edges(), seed=order)
            alone += count_alarms(evidence, [vectors[traffic.rows]], C)
        add(figures, name, found, options.orders * RECORDS / C)
        figures.add(f"{name}: alarms of the evidence alone", [alone], ".0f")
        for reason in sorted({reason for its in found for reason in its.reasons})[:2]:
            print(f"    e.g. {reason}")
    figures.end()


def add(figures: Figures, name: str, found: list[Watched], allowed: float) -> None:
    """The figures of one kind."""
    alarms = sum(its.alarms for its in found)
    figures.add(f"{name}: alarms in all ({allowed:.2f} allowed)", [alarms], ".0f")
    figures.add(f"{name}: least true number", [poisson_interval(alarms)[0]], most=allowed)
    figures.add(
        f'{name}: looks that say "cannot promise", %',
        [100 * its.cannot_promise for its in found],
        ".0f",
    )
    figures.add(f"{name}: images sampled", [its.sampled for its in found], ".0f")


def independent(targets: Rows, random: np.random.Generator) -> Traffic:
    """As the promise wants them: the standard to compare with."""
    return Traffic(some(targets, random, RECORDS))


def thrice_in_a_row(targets: Rows, random: np.random.Generator) -> Traffic:
    """Every image three times, one right after the other: a client that retries."""
    return Traffic(np.repeat(some(targets, random, RECORDS // 3), 3))


def thrice_nearby(targets: Rows, random: np.random.Generator) -> Traffic:
    """Three times among the next 300 records, in any order."""
    groups = some(targets, random, RECORDS // 3).reshape(-1, 100)
    return Traffic(np.concatenate([random.permutation(np.tile(its, 3)) for its in groups]))


def thrice_over(targets: Rows, random: np.random.Generator) -> Traffic:
    """All of them, and all of them again, and again: further apart than the sampler looks back."""
    return Traffic(np.tile(some(targets, random, RECORDS // 3), 3))


def class_runs(targets: Rows, random: np.random.Generator) -> Traffic:
    """Ten of one class, then ten of another: a belt that is loaded by kind."""
    order = random.permutation(len(targets))
    by_class = [order[targets[order] == index] for index in np.unique(targets)]
    runs = [its[start : start + RUN] for its in by_class for start in range(0, len(its), RUN)]
    runs = [its for its in runs if len(its) == RUN]
    chosen = random.permutation(len(runs))[: RECORDS // RUN]
    return Traffic(np.concatenate([runs[number] for number in chosen]))


def busy_client(targets: Rows, random: np.random.Generator) -> Traffic:
    """One client of ten sends 90 % of the traffic, images like all others'."""
    return Traffic(some(targets, random, RECORDS), clients(random))


def busy_client_in_runs(targets: Rows, random: np.random.Generator) -> Traffic:
    """The same, but what it sends comes in runs of ten of a class."""
    names, runs = clients(random), class_runs(targets, random).rows
    others = random.permutation(np.setdiff1d(np.arange(len(targets)), runs))
    return Traffic(np.where(np.array(names) == "busy", runs, np.resize(others, RECORDS)), names)


def stuck_client(targets: Rows, random: np.random.Generator) -> Traffic:
    """The same, but it sends fifty images over and over."""
    names, rows = clients(random), some(targets, random, RECORDS)
    again = np.resize(rows[:SENT_AGAIN], RECORDS)
    return Traffic(np.where(np.array(names) == "busy", again, rows), names)


def clients(random: np.random.Generator) -> list[str]:
    """Who sends each record."""
    others = [f"client {number}" for number in range(9)]
    rest = (1 - BUSY_SHARE) / len(others)
    return random.choice(["busy", *others], RECORDS, p=[BUSY_SHARE, *[rest] * len(others)]).tolist()


def some(targets: Rows, random: np.random.Generator, count: int) -> Rows:
    """So many different images, in random order."""
    return random.permutation(len(targets))[:count]


KINDS: dict[str, Kind] = {
    "independent images": independent,
    "three times in a row": thrice_in_a_row,
    "three times among 300": thrice_nearby,
    "all of them three times over": thrice_over,
    "class runs of ten": class_runs,
    "one client with 90 %": busy_client,
    "one client with 90 %, in class runs": busy_client_in_runs,
    "one client with 90 %, fifty images over and over": stuck_client,
}
