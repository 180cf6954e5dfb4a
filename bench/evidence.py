"""Does the drift alarm keep its promise, how soon does it see change, how fast and small is it?

    .venv/bin/python bench/evidence.py [--images 1000000] [--c 10000]

Promise: vectors of seven streams, drawn independently from one distribution with ties and heavy
tails, go past the sampler into the evidence; after an alarm it is reset. The promise allows images
/ c alarms; their number stands with its 99 % Poisson interval, for calibration splits of 5,000 and
of 200. Change: images until the alarm after a stream has shifted, ten runs each. Speed: records a
second from Parquet files to evidence, on one core, with the memory of the process.

Figures, machine and spread: docs/performance.md. Ends with 1 where something promised is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.stats import chi2

from model.bundle import Bundle
from model.settings import ModelSettings
from model.store import ModelStore
from monitoring.evidence import STREAMS, Evidence
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.record_reader import RecordReader
from monitoring.records import Record, write_records
from monitoring.settings import MonitoringSettings
from monitoring.streams import COLUMNS
from monitoring.watch import Watch

CLASSES = 10
LEAST_RECORDS_A_SECOND = 2_000
MOST_MEGABYTES = 500
SPEED_RECORDS = 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--c", type=float, default=10_000.0)
    parser.add_argument("--home", type=Path, help="with a champion: measure speed on it, too")
    options = parser.parse_args()
    missed = False
    for calibration in (5_000, 200):
        start = time.perf_counter()
        alarms = count_alarms(options.images, options.c, calibration)
        low, high = poisson_interval(alarms)
        allowed = options.images / options.c
        rate = options.images / (time.perf_counter() - start)
        print(
            f"calibration {calibration:5}: {alarms} alarms (99 %: {low:.1f} to {high:.1f}) in"
            f" {options.images:,} unchanged vectors; {allowed:.0f} are allowed;"
            f" {rate:,.0f} a second",
            flush=True,
        )
        missed |= low > allowed
    for share, shift in ((1.0, 1.0), (0.25, 2.0), (1.0, 0.5)):
        waits = sorted(images_until_alarm(run, share, shift, 1e5) for run in range(10))
        print(
            f"{share:.0%} of one stream shifted by {shift} deviations: alarm (c = 1e5) after"
            f" {waits[5]} images ({waits[0]} to {waits[-1]})",
            flush=True,
        )
    if options.home is not None:
        missed |= speed(options.home)
    sys.exit(int(missed))


def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Vectors of the seven streams, N x 7: heavy tails, rounded values, a class."""
    found = rng.standard_t(4, (count, len(STREAMS)))
    found[:, 1] = np.minimum(1.0, rng.beta(8, 1, count).round(2))  # many are wholly sure
    found[:, 5] = rng.gamma(2, 1, count)
    found[:, 6] = rng.choice(CLASSES, count, p=np.arange(1, CLASSES + 1) / 55)
    return found


def fresh(rng: np.random.Generator, calibration: int, seed: int) -> Evidence:
    """Evidence whose edges come from a fit split and whose bag from a calibration split."""
    fit, reference = draw(rng, 20_000), draw(rng, calibration)
    quantiles = np.linspace(0, 1, 65)[1:-1]
    edges = {
        name: np.arange(CLASSES) + 0.5
        if name == "predicted_class"
        else np.unique(np.quantile(fit[:, place], quantiles))
        for place, name in enumerate(STREAMS)
    }
    values = {name: reference[:, place] for place, name in enumerate(STREAMS)}
    return Evidence.from_reference(values, edges, seed=seed)


def count_alarms(images: int, c: float, calibration: int) -> int:
    """Alarms in so many unchanged vectors, with a reset after each."""
    rng = np.random.default_rng(0)
    evidence = fresh(rng, calibration, seed=1)
    line, alarms = evidence.alarm_line(c), 0
    for _ in range(0, images, 10_000):
        for row in draw(rng, 10_000).tolist():
            evidence.add(dict(zip(STREAMS, row, strict=True)))
            if evidence.strongest[1] >= line:
                alarms += 1
                evidence.reset()
    return alarms


def images_until_alarm(run: int, share: float, shift: float, c: float) -> int:
    """After 2,000 unchanged vectors, a share of them gets a larger first stream."""
    rng = np.random.default_rng(run)
    evidence = fresh(rng, 5_000, seed=run)
    line = evidence.alarm_line(c)
    for row in draw(rng, 2_000).tolist():
        evidence.add(dict(zip(STREAMS, row, strict=True)))
    evidence.reset()
    for images, row in enumerate(draw(rng, 20_000).tolist(), start=1):
        if rng.random() < share:
            row[0] += shift
        evidence.add(dict(zip(STREAMS, row, strict=True)))
        if evidence.strongest[1] >= line:
            return images
    return 20_000


def poisson_interval(count: int, level: float = 0.99) -> tuple[float, float]:
    """The exact interval (Garwood 1936)."""
    rest = (1 - level) / 2
    low = float(chi2.ppf(rest, 2 * count) / 2) if count else 0.0
    return low, float(chi2.ppf(1 - rest, 2 * count + 2) / 2)


def speed(home: Path) -> bool:
    """Records a second from Parquet to evidence, on one core; whether a promise is missed."""
    os.sched_setaffinity(0, {0})
    store = ModelStore(ModelSettings(home=home))
    champion = store.champion()
    bundle = store.load(champion)
    with tempfile.TemporaryDirectory() as folder:
        settings = MonitoringSettings(home=Path(folder))
        write_production(bundle, Path(settings.records))
        watch = Watch(bundle, settings)
        reader = RecordReader(settings.records, ("model", *COLUMNS))
        start = time.perf_counter()
        while len(records := reader.read_new(limit_rows=2_000)):
            watch.take(records)
        rate = SPEED_RECORDS / (time.perf_counter() - start)
    memory = psutil.Process().memory_info().rss / 2**20
    print(f"from Parquet to evidence: {rate:,.0f} records a second; {memory:.0f} MB resident")
    return rate < LEAST_RECORDS_A_SECOND or memory > MOST_MEGABYTES


def write_production(bundle: Bundle, folder: Path) -> None:
    """Record files as the service writes them, 200 records each."""
    rng = np.random.default_rng(0)
    now = datetime.now(UTC)
    day = folder / f"date={now:%Y-%m-%d}"
    day.mkdir(parents=True)
    classes = bundle.manifest.classes
    for start in range(0, SPEED_RECORDS, 200):
        records = []
        for number in range(start, start + 200):
            logits = rng.normal(size=len(classes)).astype(np.float32)
            records.append(
                Record(
                    id=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
                    time=now + timedelta(milliseconds=number),
                    model=bundle.manifest.tag,
                    stage="champion",
                    client="bench",
                    image_sha256=rng.bytes(32).hex(),
                    perceptual_hash=int.from_bytes(rng.bytes(8)),
                    bytes=1000,
                    width=28,
                    height=28,
                    format="png",
                    brightness=float(rng.random()),
                    contrast=0.2,
                    sharpness=float(rng.random()),
                    logits=logits,
                    labels=[classes[int(logits.argmax())]],
                    confidence=float(rng.random()),
                    outlier_score=float(rng.normal()),
                    p_value=0.5,
                    flagged=False,
                    components=rng.normal(size=RECORD_COMPONENTS).astype(np.float32),
                )
            )
        write_records(day / f"{start:06d}.parquet", records)


if __name__ == "__main__":
    main()
