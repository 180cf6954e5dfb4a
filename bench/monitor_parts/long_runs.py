"""Millions of clean vectors into the evidence, in a process that has nothing else in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from monitor_parts.clean import Edges, Smoothed, Vectors, begin, count_alarms

BLOCK = 10_000


@dataclass(frozen=True)
class Run:
    """One run: alarms over so many vectors, and megabytes resident after every tenth."""

    calibration: int
    c: float
    images: int
    alarms: int
    megabytes: list[float]


def play(case: tuple[Vectors, Edges, int, float, int]) -> Run:
    """Count the alarms of one case; its seeds are its own numbers."""
    real, edges, calibration, c, images = case
    rng = np.random.default_rng([calibration, int(c), images])
    law, megabytes = Smoothed(real), []
    evidence = begin(law.draw(rng, calibration), edges, seed=calibration)
    start = time.perf_counter()

    def blocks() -> Iterator[Vectors]:
        for done in range(0, images, BLOCK):
            yield law.draw(rng, min(BLOCK, images - done))
            if (done + BLOCK) % (images // 10) == 0:
                megabytes.append(psutil.Process().memory_info().rss / 2**20)
                rate = (done + BLOCK) / (time.perf_counter() - start)
                print(
                    f"  c = {c:g}, calibration {calibration}: {done + BLOCK:,} vectors,"
                    f" {rate:,.0f} a second, {megabytes[-1]:.1f} MB",
                    flush=True,
                )

    return Run(calibration, c, images, count_alarms(evidence, blocks(), c), megabytes)
