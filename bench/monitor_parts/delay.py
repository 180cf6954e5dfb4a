"""How many images a change takes to be seen, beside five peers at one false-alarm rate.

    .venv/bin/python bench/monitor.py delay [--data fashion emoji] [--runs 50] [--deals 100]

c = 1e5; 2,000 clean images, then the change, without a reset between; medians of 50 seeded runs.
Fashion-MNIST: a quarter of the images noisy (normal, sigma 40 of 255), dark (half as bright), or
blurred (Gaussian, sigma 1 px), and three random classes three times as frequent. All calibration
and test images are dealt anew for every run: 5,000 start the bags and are the peers' reference, the
others come as the stream, each once. Emoji: half of the drawings in another vendor's style; there
are so few that reference and stream are drawn with replacement from those of calibration and test.

Peers see the same seven streams; MMD the principal components of the embedding, the domain
classifier both; in windows of 100 and of 500 images, one test at the end of each; where in a window
the change falls is left to chance. ADWIN (river), one for
every stream, begins with the reference. The threshold of each is the lowest at which it alarms at
most as often as c allows: `deals` streams of 10,000 clean images, of the very law of the runs'. The
evidence is counted over the same streams. A run in which one alarms before the change does not
count for it. Evidently's own threshold is shown too, with its false alarms.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from peer_environment import peer_python

from monitor_parts.changes import (
    AFTER,
    CLEAN,
    OTHER_STYLE,
    QUIET,
    TRIPLED,
    Stream,
    World,
    emoji,
    garments,
)
from monitor_parts.clean import begin, count_alarms, images_until_alarm
from monitor_parts.figures import Figures, parser_of, part_of
from monitor_parts.peers import DETECTORS, PREDICTED, EvidentlyDefault

C = 100_000.0
WINDOWS = (100, 500)
WORLDS: dict[str, Callable[[Path], World]] = {"fashion": garments, "emoji": emoji}
MOST_IMAGES = {
    "noise 25 %": 130,
    "dark 25 %": 150,
    "blur 25 %": 140,
    TRIPLED: 250,
    OTHER_STYLE: 300,
}

Delays = Sequence[int | None]  # of each run; None: never; -1: before the change


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--deals", type=int, default=100)
    options = parser.parse_args()
    figures = Figures(part_of("delay", options.data, WORLDS), options)
    for data in options.data:
        world = WORLDS[data](options.home)
        clean = [world.unchanged(deal) for deal in range(options.deals)]
        runs = {
            change: [world.with_change(change, seed) for seed in range(options.runs)]
            for change in world.changes
        }
        allowed = round(len(clean) * CLEAN / C)
        print(f"{world.name}: {len(clean)} clean streams of {CLEAN:,}; {allowed} alarms allowed")
        ours(figures, world, clean, runs)
        for window in WINDOWS:
            for name in DETECTORS:
                peer(figures, world, name, window, clean, runs, allowed)
        adwin(figures, world, options.home, clean, runs, allowed)
    figures.end()


def ours(
    figures: Figures, world: World, clean: Sequence[Stream], runs: dict[str, list[Stream]]
) -> None:
    """The evidence, each stream from bags of its own."""
    alarms = 0
    for seed, stream in enumerate(clean):
        evidence = begin(stream.reference.vectors, world.edges, seed)
        alarms += count_alarms(evidence, [stream.images.vectors], C)
    figures.add(f"{world.name}, evidence: alarms in the clean streams", [alarms], ".0f")
    for change, streams in runs.items():
        delays: list[int | None] = []
        for seed, stream in enumerate(streams):
            evidence = begin(stream.reference.vectors, world.edges, seed)
            line = evidence.alarm_line(C)
            after = images_until_alarm(evidence, stream.images.vectors, line)
            delays.append(None if after is None else after - QUIET if after > QUIET else -1)
        add(figures, f"{world.name}, {change}, evidence", delays, most=MOST_IMAGES[change])


def peer(
    figures: Figures,
    world: World,
    name: str,
    window: int,
    clean: Sequence[Stream],
    runs: dict[str, list[Stream]],
    allowed: int,
) -> None:
    """A detector on windows, its threshold from the clean streams."""
    made = DETECTORS[name]
    found: list[float] = []
    for seed, stream in enumerate(clean):
        detector = made(stream.reference, seed)
        starts = range(0, len(stream.images) - window + 1, window)
        found += [detector.statistic(stream.images[at : at + window]) for at in starts]
    threshold = float(np.sort(found)[-allowed - 1]) if allowed else max(found)
    title = f"{name}, windows of {window}"
    over = int((np.array(found) > threshold).sum())
    print(f"{world.name}, {title}: threshold {threshold:.4g}", flush=True)
    figures.add(f"{world.name}, {title}: alarms in the clean streams", [over], ".0f")
    if made is EvidentlyDefault:
        from monitor_parts.evidently_itself import largest_difference  # takes seconds to import

        difference = largest_difference(clean[0].reference, clean[0].images[:window])
        figures.add(
            f"{world.name}, {title}: off Evidently's own by", [difference], ".2g", most=0.05
        )
        default = EvidentlyDefault(clean[0].reference, 0).default_threshold
        share = float((np.array(found) >= default).mean())
        figures.add(f"{world.name}, {title}: % of clean windows by its own", [100 * share], ".1f")
    for change, streams in runs.items():
        delays: list[int | None] = []
        for seed, stream in enumerate(streams):
            detector = made(stream.reference, seed)
            offset = int(np.random.default_rng([seed, 2]).integers(window))
            starts = range(offset, len(stream.images) - window + 1, window)
            ends = (
                at + window
                for at in starts
                if detector.statistic(stream.images[at : at + window]) > threshold
            )
            first = next(ends, None)
            delays.append(None if first is None else first - QUIET if first > QUIET else -1)
        add(figures, f"{world.name}, {change}, {title}", delays)


def adwin(
    figures: Figures,
    world: World,
    home: Path,
    clean: Sequence[Stream],
    runs: dict[str, list[Stream]],
    allowed: int,
) -> None:
    """River's, in an environment of its own."""
    python = peer_python(home / "peers" / "river", "river")
    side = Path(__file__).with_name("adwin_side.py")
    shortest = {change: min(len(its.images) for its in streams) for change, streams in runs.items()}
    arrays = {
        change: np.stack([ranked(its, shortest[change]) for its in streams])
        for change, streams in runs.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streams.npz"
        np.savez(
            path,
            clean=np.stack([ranked(its, CLEAN) for its in clean]),
            bag=world.bag,
            quiet=QUIET,
            allowed=allowed,
            **arrays,
        )
        done = subprocess.run([python, side, path], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    print(f"{world.name}, ADWIN: delta {found['delta']:.3g}")
    figures.add(f"{world.name}, ADWIN: alarms in the clean streams", [found["alarms"]], ".0f")
    for change, delays in found["delays"].items():
        add(figures, f"{world.name}, {change}, ADWIN", delays)


def ranked(stream: Stream, images: int) -> np.ndarray:
    """Reference and images, each stream as its rank in the reference (0 to 1); classes / 10."""
    both = np.concatenate([stream.reference.vectors, stream.images.vectors[:images]])
    ordered = np.sort(stream.reference.vectors, axis=0)
    ranks = np.stack(
        [
            np.searchsorted(ordered[:, place], both[:, place]) / len(ordered)
            for place in range(both.shape[1])
        ],
        axis=1,
    )
    ranks[:, PREDICTED] = both[:, PREDICTED] / max(1.0, ordered[-1, PREDICTED])
    return ranks.astype(np.float32)


def add(figures: Figures, name: str, delays: Delays, most: float | None = None) -> None:
    """The median of the runs without an alarm before the change; never counts as past the end."""
    counted = [float(AFTER + 1) if its is None else its for its in delays if its != -1]
    counted = counted or [AFTER + 1.0]
    early, never = sum(its == -1 for its in delays), sum(its is None for its in delays)
    low, high = (float(np.quantile(counted, q, method="nearest")) for q in (0.1, 0.9))
    median = statistics.median(counted)
    figures.add(f"{name}: images until the alarm, median", [median], ".0f", most=most)
    print(
        f"    10 to 90 % of runs: {low:.0f} to {high:.0f};"
        f" before the change {early}, never {never} of {len(delays)}",
        flush=True,
    )
    figures.keep(
        f"{name}: spread",
        {"10 %": low, "90 %": high, "before": early, "never": never},
    )
