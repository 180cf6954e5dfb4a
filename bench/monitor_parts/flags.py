"""How many clean images are flagged: 20 seeded deals of calibration and test.

    .venv/bin/python bench/monitor.py flags [--deals 20]

All calibration and test images, which nothing was fitted on, are dealt anew into as many for
calibration as the version had, and the rest to be flagged. Asked for: a mean of 0.95 to 1.05 % at
alpha = 1 %, and every deal within the beta-binomial interval that conformal p-values promise (for
n calibration images the chance of a flag is beta distributed; Vovk 2012, "Conditional validity of
inductive conformal predictors"), wide enough for all deals together at 95 %. Beside it the mean of
1,000 deals, which luck has less of a say in, and the version's own splits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from monitor_parts.figures import Figures, parser_of
from monitor_parts.versions import garments_of, join
from monitoring.outlier import OutlierModel
from training.splits import Split

ALPHA = 0.01
MANY_DEALS = 1_000


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--deals", type=int, default=20)
    options = parser.parse_args()
    figures = Figures("flags", options)
    version = garments_of(options.home)
    calibration, test = version.split(Split.CALIBRATION), version.split(Split.TEST)
    scores = version.decider.scores(join(calibration, test).outputs)
    count, outlier = len(calibration), version.decider.outlier
    rates = [rate(outlier, scores, count, seed) for seed in range(options.deals)]
    low, high = interval(count, len(test), options.deals)
    inside = [float(low <= round(its * len(test)) <= high) for its in rates]
    figures.add("flagged, % of clean images, of each deal", [100 * its for its in rates], ".2f")
    mean = 100 * float(np.mean(rates))
    figures.add("mean over the deals, %", [mean], ".3f", least=0.95, most=1.05)
    figures.add(
        f"deals within {low / len(test):.2%} to {high / len(test):.2%}",
        [sum(inside)],
        ".0f",
        least=options.deals,
    )
    many = [rate(outlier, scores, count, seed) for seed in range(MANY_DEALS)]
    figures.add(f"mean over {MANY_DEALS} deals, %", [100 * float(np.mean(many))], ".3f")
    own = version.decider.flags(test.outputs)
    figures.add("test images by the version's own calibration, %", [100 * own.mean()], ".2f")
    figures.end()


def rate(outlier: OutlierModel, scores: NDArray[np.float32], count: int, seed: int) -> float:
    """Share flagged, where `count` of the scores are calibration and the others are tested."""
    order = np.random.default_rng(seed).permutation(len(scores))
    dealt = outlier.calibrated(scores[order[:count]])
    return float(np.mean(dealt.p_value(scores[order[count:]]) <= ALPHA))


def interval(calibration: int, test: int, deals: int) -> tuple[int, int]:
    """Flags of so many test images, that all deals stay within at 95 % (Bonferroni)."""
    places = math.floor((calibration + 1) * ALPHA + 1e-9)
    law, miss = betabinom(test, places, calibration + 1 - places), 0.05 / deals
    return int(law.ppf(miss / 2)), int(law.ppf(1 - miss / 2))
