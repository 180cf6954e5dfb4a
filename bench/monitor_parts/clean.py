"""Clean images that nothing was fitted on, and evidence that starts from some of them.

A draw deals them anew: some start the bags, the rest come as the stream, in random order. So both
are exchangeable by construction, whatever the splits of the data set are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from monitoring.evidence import STREAMS, Evidence

Vectors = NDArray[np.float64]  # N x the seven streams
Edges = Mapping[str, NDArray[np.float64]]

AT_ONCE = 20  # images; divides those between two marks


class Smoothed:
    """Draws vectors like real ones: a real one, and a little noise in all but its class.

    The noise is normal, a tenth of each stream's deviation; a confidence stays in 0 to 1. As many
    as are wanted can be drawn, independently of each other.
    """

    NOISE = 0.1
    CONFIDENCE, PREDICTED = (STREAMS.index(name) for name in ("confidence", "predicted_class"))

    def __init__(self, real: Vectors) -> None:
        self._real = real
        self._deviation = self.NOISE * real.std(axis=0)
        self._deviation[self.PREDICTED] = 0

    def draw(self, rng: np.random.Generator, images: int) -> Vectors:
        """N x 7."""
        drawn = self._real[rng.integers(len(self._real), size=images)]
        drawn += self._deviation * rng.standard_normal(drawn.shape)
        sure = np.abs(drawn[:, self.CONFIDENCE])
        drawn[:, self.CONFIDENCE] = np.where(sure > 1, 2 - sure, sure)
        return drawn


def begin(bag: Vectors, edges: Edges, seed: int) -> Evidence:
    """Evidence whose bags start from these vectors."""
    values = {name: bag[:, place] for place, name in enumerate(STREAMS)}
    return Evidence.from_reference(values, edges, seed=seed)


def images_until_alarm(evidence: Evidence, vectors: Vectors, line: float) -> int | None:
    """How many of these images the evidence takes until it reaches the line; None: never."""
    for images, log_bets in enumerate(_bets(evidence, vectors), start=1):
        evidence.settle(log_bets)
        if evidence.strongest[1] >= line:
            return images
    return None


def count_alarms(evidence: Evidence, blocks: Iterable[Vectors], c: float) -> int:
    """Alarms over these images, the evidence forgotten after each and the bags kept."""
    line, alarms = evidence.alarm_line(c), 0
    for vectors in blocks:
        for log_bets in _bets(evidence, vectors):
            evidence.settle(log_bets)
            if evidence.strongest[1] >= line:
                alarms += 1
                evidence.reset()  # the bags are kept, and with them the bets on the next images
    return alarms


def _bets(evidence: Evidence, vectors: Vectors) -> Iterator[NDArray[np.float64]]:
    """Bets on one image after the other, placed on AT_ONCE together, as the monitor does."""
    for start in range(0, len(vectors), AT_ONCE):
        columns = vectors[start : start + AT_ONCE].T
        yield from evidence.bet(dict(zip(STREAMS, columns, strict=True)))[1]
        evidence.mark_if_due()
