"""Millions of records through the whole monitor: does its memory stay flat?

    .venv/bin/python bench/monitor.py memory [--records 10000000] [--model NAME]

Record files of 2,000 lie there five at a time, are read, merged, sampled, bet on and explained, the
state is saved after every look, and old files go, as in production. The records are drawn at random
from those of clean images that the bundle keeps and the sampler takes; ids, checksums, perceptual
hashes and logits are their own, and they come from 5,000 clients. In a process that loads nothing
but the monitor. Resident memory is printed after every tenth. Asked for: under 400 MB, and at the
end no more than after the first tenth, but for 2 %.
"""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
from evidence import copied_state

from model.settings import ModelSettings
from model.store import ModelStore
from monitor_parts.figures import Figures, parser_of
from monitoring.monitor import Monitor
from monitoring.records import SCHEMA
from monitoring.sampling import new_sampler
from monitoring.settings import MonitoringSettings
from monitoring.streams import reference_records

FILE_RECORDS, FILES_AT_ONCE = 2_000, 5
CLIENTS = 5_000
MOST_MEGABYTES, MOST_GROWTH = 400, 1.02


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--records", type=int, default=10_000_000)
    options = parser.parse_args()
    figures = Figures("memory", options)
    with tempfile.TemporaryDirectory() as folder:
        settings = MonitoringSettings(
            home=Path(folder), model=options.model, record_merge_seconds=0.0
        )
        state_url = copied_state(options.home, Path(folder))
        store = ModelStore(ModelSettings(home=options.home, state_url=state_url))
        bundle = store.load(store.champion(options.model))
        clean = reference_records(bundle, new_sampler(settings)).select(SCHEMA.names).cast(SCHEMA)
        monitor = Monitor(settings, store)
        rng = np.random.default_rng(0)
        megabytes, seconds = [], 0.0
        for written in range(0, options.records, FILES_AT_ONCE * FILE_RECORDS):
            files = [write_some(clean, rng, Path(settings.records)) for _ in range(FILES_AT_ONCE)]
            begun = time.process_time()
            monitor.poll()
            while monitor.has_more:
                monitor.poll()
            seconds += time.process_time() - begun
            for file in files:
                file.unlink()
            done = written + FILES_AT_ONCE * FILE_RECORDS
            if done * 10 // options.records > written * 10 // options.records:
                megabytes.append(psutil.Process().memory_info().rss / 2**20)
                print(f"  {done:,} records, {megabytes[-1]:.1f} MB", flush=True)
        status = monitor.status()
    figures.add("records that the monitor has seen", [status["images_served"]], ",.0f")
    figures.add("of them sampled", [status["images_sampled"]], ",.0f")
    figures.add("alarms", [len(status["alarms"])], ".0f")
    figures.add("records a second of CPU time", [options.records / seconds], ",.0f")
    figures.add("resident, MB, most of ten", [max(megabytes)], ".0f", most=MOST_MEGABYTES)
    growth = [megabytes[-1] / megabytes[0]]
    figures.add("at the end over that after a tenth", growth, ".3f", most=MOST_GROWTH)
    figures.end()


def write_some(clean: pa.Table, rng: np.random.Generator, folder: Path) -> Path:
    """One file of clean records, as if they had just been predicted."""
    now = datetime.now(UTC)
    table = clean.take(rng.integers(len(clean), size=FILE_RECORDS))
    times = np.datetime64(now.replace(tzinfo=None), "us") + np.arange(FILE_RECORDS)
    fresh = {
        "id": _hex(rng, 16),
        "time": pa.array(times, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
        "client": [f"client-{number}" for number in rng.integers(CLIENTS, size=FILE_RECORDS)],
        "image_sha256": _hex(rng, 32),
        "perceptual_hash": rng.integers(2**64, size=FILE_RECORDS, dtype=np.uint64),
        "logits": _nearly(table["logits"].combine_chunks(), rng),
    }
    for name, values in fresh.items():
        place = SCHEMA.get_field_index(name)
        table = table.set_column(
            place, SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type)
        )
    day = folder / f"date={now:%Y-%m-%d}"
    day.mkdir(parents=True, exist_ok=True)
    path = day / f"{now:%H%M%S%f}-{rng.bytes(6).hex()}.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return path


def _nearly(lists: pa.ListArray, rng: np.random.Generator) -> pa.ListArray:
    """Logits of another image that is much the same."""
    values = lists.values.to_numpy()
    moved = (values + rng.normal(scale=0.01, size=len(values))).astype(np.float32)
    return pa.ListArray.from_arrays(lists.offsets, pa.array(moved))


def _hex(rng: np.random.Generator, size: int) -> list[str]:
    digits = rng.bytes(size * FILE_RECORDS).hex()
    return [digits[at : at + 2 * size] for at in range(0, len(digits), 2 * size)]
