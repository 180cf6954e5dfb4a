"""Calibration and prediction sets of Fashion-MNIST, over deals of validation and calibration.

    .venv/bin/python bench/decisions.py calibration [--deals 20] [--home var/bench]

One version by the default recipe (trained into --home the first time). The 10,000 images for
validation and calibration are dealt anew, as many for each as the version had: a temperature is
fitted on the one part, the sets on the other, and both are measured on the 10,000 test images.
Asked for: ECE at most 0.015 after temperature, and coverage within a point of the stated one, in
the mean. Ends with 1 on a miss.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from monitor_parts.versions import garments_of, join
from numpy.typing import NDArray
from train_parts.machine import print_machine

from model.conformal_sets import ConformalSets
from model.decision import Calibration, probabilities
from training.calibration import expected_calibration_error, fit_temperature
from training.conformal import COVERAGES, measure_sets
from training.splits import Split

MOST_ERROR, MOST_OFF = 0.015, 0.01
AS_IT_IS = Calibration(method="temperature", temperature=1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deals", type=int, default=20)
    parser.add_argument("--home", type=Path, default=Path("var/bench"))
    options = parser.parse_args()
    print_machine("openvino", "numpy")
    version = garments_of(options.home.absolute())
    validation, calibration = version.split(Split.VALIDATION), version.split(Split.CALIBRATION)
    logits = join(validation, calibration).logits
    splits = (Split.VALIDATION, Split.CALIBRATION)
    targets = np.concatenate([version.targets(its) for its in splits])
    test, truth = version.split(Split.TEST).logits, version.targets(Split.TEST)
    before, after, covered = [], [], []
    for seed in range(options.deals):
        order = np.random.default_rng(seed).permutation(len(logits))
        fit, rest = order[: len(validation)], order[len(validation) :]
        fitted = fit_temperature(logits[fit], targets[fit])
        chances = probabilities(test, fitted, "single")
        before.append(expected_calibration_error(probabilities(test, AS_IT_IS, "single"), truth))
        after.append(expected_calibration_error(chances, truth))
        sets = ConformalSets.fit(
            probabilities(logits[rest], fitted, "single"), targets[rest], "single"
        )
        covered.append(
            [measure_sets(sets, chances, truth, "single", its).realised.value for its in COVERAGES]
        )
    tell("ECE as it is", np.array(before))
    tell("ECE after temperature", np.array(after))
    realised = np.array(covered, np.float64)
    for place, coverage in enumerate(COVERAGES):
        tell(f"coverage {coverage:.0%}", realised[:, place])
    off = np.abs(realised.mean(axis=0) - COVERAGES).max()
    sys.exit(0 if np.mean(after) <= MOST_ERROR and off <= MOST_OFF else 1)


def tell(name: str, values: NDArray[np.float64]) -> None:
    """Mean and range over the deals."""
    print(f"{name}: {values.mean():.4f} ({values.min():.4f} to {values.max():.4f})", flush=True)
