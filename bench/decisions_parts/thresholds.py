"""Thresholds of several labels: ours beside 0.5 and beside fastai's sweep, on test images.

    .venv/bin/python bench/decisions.py thresholds [--data emoji scenes] [--seeds 0 1 2 3 4]

`emoji`: with the frequent words of their names (several each, or none: examples/make_emoji.py), a
linear head on EfficientNet-Lite0 (`plumbline train --epochs 0`). `scenes`: none to four garments
each (examples/make_scenes.py), from scratch. Both are dealt and trained anew for every seed.
fastai's way: uncalibrated sigmoids, and the threshold of the best `accuracy_multi` on validation
(book, chapter 6). All three thresholds are chosen without test images, on which macro F1 is then
compared; beside them 0.5 on calibrated probabilities. ECE of all cells is that of sigmoids as they
are, and after Platt scaling.

Re-splits: of every seed the rows that were not fitted on are dealt anew 20 times, calibrated and
tuned on one half, and the difference of macro F1 on the other half is what tuning flatters by.
Dealt in three, they calibrate, fit prediction sets, and show what share of the true labels those
hold.

Ends with 1 where tuned thresholds are not better than both others in the mean, worse than 0.5 in
any seed by more than the spread over seeds, flattered by more than 2 points, or ECE is not halved.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from train_parts.machine import print_machine

from decisions_parts.versions import open_trained, outputs_of, train
from model.conformal_sets import ConformalSets
from model.decision import probabilities, sigmoid
from training.calibration import expected_calibration_error, fit_platt
from training.conformal import COVERAGES, measure_sets
from training.splits import Split
from training.thresholds import tune_thresholds

Floats = NDArray[np.float32]
Targets = NDArray[np.int64]
TRAININGS = {
    "emoji": ("words.csv", ("--epochs", "0")),
    "scenes": ("scenes.csv", ("--delimiter", ";", "--epochs", "25")),
}
FASTAI_SWEEP = np.linspace(0.05, 0.95, 29)
MOST_FLATTERED = 0.02  # macro F1


@dataclass(frozen=True)
class Measured:
    """Macro F1 on test by three thresholds, ECE before and after.

    `logits` and `targets` are of all rows that were not fitted on.
    """

    tuned: float
    half: float
    calibrated_half: float
    fastai: float
    ece_before: float
    ece_after: float
    logits: Floats
    targets: Targets


def main() -> None:
    """Measure and print; exit with 1 on a miss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--resplits", type=int, default=20)
    options = parser.parse_args()
    print_machine("torch", "openvino", "numpy")
    reached = [measure_all(kind, options.seeds, options.resplits) for kind in options.data]
    sys.exit(0 if all(reached) else 1)


def measure_all(kind: str, seeds: Sequence[int], resplits: int) -> bool:
    """Print the figures of one kind of data; whether they reach the floors."""
    table, training = TRAININGS[kind]
    with tempfile.TemporaryDirectory() as folder:
        example = Path(__file__).parents[2] / "examples" / f"make_{kind}.py"
        data = Path(folder, "data")
        subprocess.run([sys.executable, example, data], check=True, stdout=subprocess.DEVNULL)
        print(f"{kind}: plumbline train --data {table}", *training, flush=True)
        runs = [measure(data / table, Path(folder), training, seed) for seed in seeds]
    reached = compare(runs)
    draws = [(run, draw) for run in runs for draw in range(resplits)]
    flattered = np.array([flattery(run, draw) for run, draw in draws])
    error = 1.96 * flattered.std(ddof=1) / np.sqrt(len(draws))
    low, high = flattered.mean() - error, flattered.mean() + error
    print(f"test minus tuned rows, {len(draws)} re-splits: mean {flattered.mean():+.3f}")
    print(f"  95 % interval of the mean {low:+.3f} to {high:+.3f}, of one {flattered.std():.3f}")
    covered = np.array([coverage(run, draw) for run, draw in draws])
    for stated, its in zip(COVERAGES, covered.T, strict=True):
        its = its[np.isfinite(its)]  # of few images the highest coverages cannot be asked for
        if len(its):
            seen = f"{its.mean():.3f} (one {its.min():.3f} to {its.max():.3f})"
            print(f"coverage {stated:.0%} over {len(its)} re-splits: {seen}")
    return reached and abs(flattered.mean()) <= MOST_FLATTERED


def measure(table: Path, folder: Path, training: Sequence[str], seed: int) -> Measured:
    """One seed: dealt, trained, tuned, measured."""
    home = folder / f"home-{seed}"
    version = train(table, home, (*training, "--seed", str(seed)))
    opened, engine = open_trained(home, version)
    decider = opened.decider()
    validation, wanted = outputs_of(opened, engine, Split.VALIDATION)
    test, targets = outputs_of(opened, engine, Split.TEST)
    calibration, others = outputs_of(opened, engine, Split.CALIBRATION)
    targets, wanted = targets.astype(np.int64), wanted.astype(np.int64)
    chances = decider.probabilities(test)
    ours = decider.thresholds.as_array(decider.classes)
    raw = sigmoid(test.logits)
    found = Measured(
        tuned=macro_f1(chances >= ours, targets),
        half=macro_f1(raw >= 0.5, targets),
        calibrated_half=macro_f1(chances >= 0.5, targets),
        fastai=macro_f1(raw >= fastai_threshold(sigmoid(validation.logits), wanted), targets),
        ece_before=expected_calibration_error(raw, targets),
        ece_after=expected_calibration_error(chances, targets),
        logits=np.concatenate([validation.logits, calibration.logits, test.logits]),
        targets=np.concatenate([wanted, others.astype(np.int64), targets]),
    )
    print(
        f"  seed {seed}: tuned {found.tuned:.3f}, 0.5 {found.half:.3f}, fastai's sweep"
        f" {found.fastai:.3f}; ECE {found.ece_before:.3f} to {found.ece_after:.3f}",
        flush=True,
    )
    return found


def compare(runs: list[Measured]) -> bool:
    """Print the means; whether tuned thresholds win, and calibration halves the error."""
    values = {
        name: np.array([getattr(run, name) for run in runs])
        for name in ("tuned", "half", "calibrated_half", "fastai", "ece_before", "ece_after")
    }
    for name, its in values.items():
        print(f"{name}: {its.mean():.3f} ({its.min():.3f} to {its.max():.3f})")
    tuned, half = values["tuned"], values["half"]
    better = tuned.mean() > max(half.mean(), values["fastai"].mean())
    never_worse = bool((tuned >= half - half.std()).all())
    halved = values["ece_after"].mean() <= values["ece_before"].mean() / 2
    return better and never_worse and halved


def macro_f1(decided: NDArray[np.bool_], targets: Targets) -> float:
    """Over the classes that have positives."""
    present = np.flatnonzero(targets.sum(axis=0))
    score: Callable[..., float] = f1_score
    return float(
        score(targets, decided.astype(int), labels=present, average="macro", zero_division=0)
    )


def fastai_threshold(chances: Floats, targets: Targets) -> float:
    """The best of the sweep by `accuracy_multi`, the share of cells that are right."""
    accuracies = [((chances >= one) == targets).mean() for one in FASTAI_SWEEP]
    return float(FASTAI_SWEEP[int(np.argmax(accuracies))])


def flattery(run: Measured, draw: int) -> float:
    """Macro F1 on rows that did not tune, minus that on those that did."""
    order = np.random.default_rng(draw).permutation(len(run.targets))
    tuned_on, others = np.array_split(order, 2)
    calibration = fit_platt(run.logits[tuned_on], run.targets[tuned_on])
    names = [str(number) for number in range(run.targets.shape[1])]
    scores = []
    chances = probabilities(run.logits, calibration, "multi")
    choice = tune_thresholds(chances[tuned_on], run.targets[tuned_on], names, seed=draw)
    thresholds = choice.to_thresholds().as_array(names)
    for rows in (others, tuned_on):
        scores.append(macro_f1(chances[rows] >= thresholds, run.targets[rows]))
    return scores[0] - scores[1]


def coverage(run: Measured, draw: int) -> list[float]:
    """Mean share of the true labels in the sets of rows that they were not fitted on."""
    order = np.random.default_rng(draw).permutation(len(run.targets))
    platt, fit, rest = np.array_split(order, 3)
    calibration = fit_platt(run.logits[platt], run.targets[platt])
    chances = probabilities(run.logits, calibration, "multi")
    sets = ConformalSets.fit(chances[fit], run.targets[fit], "multi")
    measured = [
        measure_sets(sets, chances[rest], run.targets[rest], "multi", its)
        if its <= sets.highest_coverage
        else None
        for its in COVERAGES
    ]
    return [np.nan if its is None else float(its.realised.value or 0) for its in measured]
