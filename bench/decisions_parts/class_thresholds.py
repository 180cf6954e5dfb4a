"""Does the gate for a class's own threshold hold up, and what does it let through?

    .venv/bin/python bench/decisions.py class_thresholds --seeds 15 --first 0

Made rows of eight classes whose probabilities are known to be right, tuned on few and measured on
20,000 fresh ones, for macro F1:

- same: one threshold is best for all classes; whatever the gate lets through is luck;
- different: the classes differ in frequency and difficulty, so their best thresholds do, too;
- shifted: every other class says too much, by 1 in its logit.

Printed for each: classes that passed the gate of all that there were, those of them that are
worse for it by over 0.002 F1, and the change of macro F1 on the fresh rows by the gate, and
without it, where every class takes what it tried.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import expit, logit

from training.class_thresholds import tune_class_thresholds
from training.objectives import MACRO_F1
from training.threshold_search import CountTable, find_plateau, nearest, says_yes_to_anything

CLASSES = 8
FRESH_ROWS = 20_000
RESAMPLES = 200
WORSE = 0.002  # F1


def make_rows(kind: str, count: int, seed: int) -> CountTable:
    """Rows of a kind, counted at every threshold."""
    rng = np.random.default_rng(seed)
    prior, strength = np.full(CLASSES, 0.2), np.full(CLASSES, 2.5)
    if kind != "same":
        prior = np.linspace(0.1, 0.4, CLASSES)
    if kind == "different":
        strength = np.linspace(1.2, 3.5, CLASSES)
    noise = rng.normal(size=(count, CLASSES)) * strength
    chance = expit(logit(prior) * (1 + strength / 3) + noise)
    targets = (rng.random(chance.shape) < chance).astype(np.int64)
    if kind == "shifted":
        chance[:, ::2] = expit(logit(chance[:, ::2]) + 1)
    return CountTable(chance, targets)


def measure(kind: str, count: int, seed: int) -> list[tuple[bool, float]]:
    """Of each class whether it passed, and what its own threshold changes on fresh rows."""
    fresh = make_rows(kind, FRESH_ROWS, seed=10**6).whole()
    f1 = 2 * fresh.true / (fresh.answered + fresh.positives)
    table = make_rows(kind, count, seed)
    whole = table.whole()
    at = find_plateau(MACRO_F1, whole, says_yes_to_anything(whole)).index
    names = [str(index) for index in range(CLASSES)]
    found = tune_class_thresholds(MACRO_F1, table, names, at=at, bootstrap=RESAMPLES, seed=seed)
    return [
        (each.is_own, float(f1[index, nearest(each.tried)] - f1[index, at]) if each.tried else 0.0)
        for index, each in enumerate(found)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds)
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {RESAMPLES} re-draws")
    print("kind        rows   passed  of which worse   change by the gate   without a gate")
    for kind in ("same", "different", "shifted"):
        for count in (150, 300, 600, 1_500):
            found = [each for seed in seeds for each in measure(kind, count, seed)]
            passed = [change for is_own, change in found if is_own]
            worse = sum(change < -WORSE for change in passed)
            print(
                f"{kind:10} {count:5}  {len(passed):3} of {len(found)}  {worse:14}"
                f"  {sum(passed) / len(found):+19.4f}"
                f"  {np.mean([change for _, change in found]):+15.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
