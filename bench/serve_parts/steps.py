"""CPU time of each step of an image, and the share of recording with outlier scoring.

    .venv/bin/python bench/serve.py steps [--payload 640]

On one core, in batches of 8, with as many images in the outlier score's bank as large data put
there. Recording is what is done for the record alone: properties, checksum, record and file. Asked
for: recording and outlier score together at most 2 % of what the service takes for an image at full
load, one a request, all of it.
"""

from __future__ import annotations

import hashlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.parquet

from model.bundle import OUTLIER
from model.decision import probabilities
from model.images import check, prepare, properties
from monitoring.outlier import OutlierModel, bank_rows
from monitoring.records import Record, to_table
from serve_parts.figures import begin, parser_of
from serve_parts.pace import full_load
from serve_parts.payloads import ROOT, images, model_of
from serve_parts.raw import BATCH, load_predictor
from serve_parts.servers import SERVER_CORE, plumbline
from service.batcher import Answer
from service.decoding import Admitted
from service.recording import make_record
from service.serving import WORKER_ENVIRONMENT

MOST_SHARE = 0.02
FLUSH_BATCHES = 20
WATCHING = ("outlier score", "record", "record file")


def main() -> None:
    """Measure and print."""
    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        # The allocator is set when a process starts, and workers have it set.
        os.execve(
            sys.executable,
            [sys.executable, str(ROOT / "bench" / "serve.py"), "steps", *sys.argv[1:]],
            {**os.environ, **WORKER_ENVIRONMENT},
        )
    figures, options = begin("steps", parser_of(__doc__), payload="640")
    os.sched_setaffinity(0, {SERVER_CORE})
    predictor = load_predictor(options.home, model_of(options.payload))
    manifest = predictor.bundle.manifest
    outlier = OutlierModel.from_arrays(predictor.bundle.arrays(OUTLIER))
    outlier = with_full_bank(outlier, bank_rows(len(manifest.classes)))
    batch = images(options.payload)[:BATCH]
    prepared = [prepare(data, predictor.input) for data in batch]
    logits, embedding = predictor.engine.run(np.stack(prepared))
    judgements = predictor.predict(prepared)
    headers = [check(data) for data in batch]  # admission reads them, recorded or not

    def describe() -> list[Record]:
        return [
            make_record(
                "id",
                Admitted(
                    pixels,
                    header,
                    properties(pixels),
                    hashlib.sha256(data).hexdigest(),
                    len(data),
                    0.0,
                ),
                Answer(judgement, 0, 0),
                predictor,
                "client",
            )
            for data, header, pixels, judgement in zip(
                batch, headers, prepared, judgements, strict=True
            )
        ]

    # The sink writes what came in two seconds as one file.
    waiting = describe() * FLUSH_BATCHES
    file = io.BytesIO()

    def write() -> None:
        file.seek(0)
        pyarrow.parquet.write_table(to_table(waiting), file, compression="zstd")

    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: [prepare(data, predictor.input) for data in batch],
        "network": lambda: predictor.engine.run(np.stack(prepared)),
        "decision": lambda: probabilities(logits, manifest.calibration, manifest.task),
        "outlier score": lambda: outlier.p_value(outlier.score(embedding, logits)[0]),
        "record": describe,
    }
    seconds = {name: cpu_seconds(step) / BATCH for name, step in steps.items()}
    seconds["record file"] = cpu_seconds(write) / len(waiting)
    for name, each in seconds.items():
        figures.add(f"{name}, ms of CPU time an image", [1e3 * each], ".3f")
    with plumbline(options.home, model_of(options.payload)) as server:
        full_load(server, options.payload, 1, options.seconds / 4)
        begun = server.cpu_seconds()
        seen = full_load(server, options.payload, 1, options.seconds)
        each = (server.cpu_seconds() - begun) / len(seen.latencies[200])
    figures.add("the service, ms of CPU time an image", [1e3 * each], ".3f")
    share = sum(seconds[name] for name in WATCHING) / each
    figures.add("recording and outlier score, share of it", [share], ".4f", most=MOST_SHARE)
    figures.end()


def with_full_bank(outlier: OutlierModel, rows: int) -> OutlierModel:
    """The same score over as many images as large data would have put into its bank."""
    columns = np.arange(rows) % outlier.bank.shape[1]
    return replace(outlier, bank=np.ascontiguousarray(outlier.bank[:, columns]))


def cpu_seconds(step: Callable[[], object], repeats: int = 60) -> float:
    """Median CPU time of one call."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return statistics.median(found)
