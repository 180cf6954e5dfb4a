"""Traffic of real images, in records with times and clients, past the sampler into a `Watch`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.bundle import Bundle
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch

FILE_RECORDS = 200
START = 1_700_000_000  # Unix time
A_SECOND = 20.0  # images


@dataclass(frozen=True)
class Traffic:
    """Which record comes when (row numbers, N), and from which client (N names; one by default)."""

    rows: NDArray[np.int64]
    clients: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Watched:
    """What the monitor said of it.

    `alarms` were raised, each followed by a reset; `cannot_promise` is the share of the looks
    (one every FILE_RECORDS) with that state, `reasons` what it said then.
    """

    alarms: int
    cannot_promise: float
    sampled: int
    reasons: tuple[str, ...]


def watch_traffic(
    bundle: Bundle, home: Path, records: pa.Table, traffic: Traffic, c: float
) -> Watched:
    """Let a fresh `Watch` follow it; an alarm is counted and reset by hand, keeping the bags."""
    logging.getLogger("plumbline.monitor").setLevel(logging.ERROR)  # states are counted here
    watch = Watch(bundle, MonitoringSettings(home=home, false_alarm_images=c))
    table = in_order(records, traffic)
    alarms, states, reasons = 0, [], []
    for start in range(0, len(table), FILE_RECORDS):
        block = table.slice(start, FILE_RECORDS)
        if watch.take(block):
            alarms += 1
            watch.reset(alarms, seconds_of(start + FILE_RECORDS) - 1e-3, "keep")
        states.append(watch.state)
        if watch.state == "cannot promise":
            reasons.append(watch.sentence)
    share = states.count("cannot promise") / len(states)
    return Watched(alarms, share, watch.images_sampled, tuple(reasons))


def in_order(records: pa.Table, traffic: Traffic) -> pa.Table:
    """The records as they come, with times, clients and ids of their own."""
    count = len(traffic.rows)
    found = records.take(pa.array(traffic.rows))
    times = (seconds_of(np.arange(count)) * 1e6).astype("datetime64[us]")
    columns = {
        "id": [f"{number:036d}" for number in range(count)],
        "time": pa.array(times, pa.timestamp("us", tz="UTC")),
        "client": traffic.clients or ["bench"] * count,
    }
    for name, values in columns.items():
        place = found.schema.get_field_index(name)
        field_of = found.schema.field(place)
        found = found.set_column(place, field_of, pa.array(values, field_of.type))
    return found


def seconds_of(number: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Unix time of so many images after the start."""
    return np.asarray(START + np.asarray(number) / A_SECOND)
