"""Fashion-MNIST by the best recipe that fits in 60 minutes of 2 cores.

    .venv/bin/python bench/train.py best [--seeds 0]

Ends with 1 when a seed misses 0.945 on the 10,000 test images, or takes longer than 60 minutes
(`--least`, `--most-seconds`).
Figures: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys

from train_parts.machine import print_machine
from train_parts.promise import describe, print_spread, train

RECIPE = (
    *("--architecture", "small-resnet-wide", "--epochs", "30", "--batch-size", "256"),
    *("--learning-rate", "0.2", "--flip", "--erase", "0.3", "--average-decay", "0.998"),
    *("--label-smoothing", "0.1"),
)


def main() -> None:
    """Measure and print; exit with 1 where a seed misses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", default="fashion-mnist", help="a smaller folder, to try this out")
    parser.add_argument("--least", type=float, default=0.945, help="test accuracy")
    parser.add_argument("--most-seconds", type=float, default=3600.0)
    options = parser.parse_args()
    print_machine("torch", "openvino", "numpy")
    print("plumbline train --data fashion-mnist", *RECIPE, flush=True)
    runs = []
    for seed in options.seeds:
        runs.append(train(options.data, seed, options=RECIPE))
        print(describe(runs[-1]), flush=True)
    if len(runs) > 1:
        print_spread(runs)
    reached = all(
        (run.accuracy.value or 0) >= options.least and run.seconds <= options.most_seconds
        for run in runs
    )
    sys.exit(0 if reached else 1)
