"""What the watch reads off prediction records, once for many of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from model.bundle import Manifest
from monitoring.evidence import STREAMS
from monitoring.predictions import Prediction
from monitoring.sampling import Arrival
from monitoring.streams import FloatArray, arrivals_of, components_of, logits_of, streams_of

COMPARED = tuple(name for name in STREAMS if name != "predicted_class")
_PREDICTED = STREAMS.index("predicted_class")


@dataclass(frozen=True)
class Rows:
    """N records of one version; `answers` as for `sampling.Repeats`."""

    values: FloatArray  # N x K, in the order of STREAMS
    compared: FloatArray  # of them those of COMPARED
    components: FloatArray  # N x P
    flagged: list[bool]
    arrivals: list[Arrival]
    answers: list[str]
    ids: list[str]
    labels: list[list[str]]

    def __len__(self) -> int:
        return len(self.arrivals)

    def for_window(self, row: int) -> tuple[FloatArray, int, FloatArray, bool, float, str]:
        """The arguments of `Window.add`; copies, for a part would keep all of the records."""
        return (
            self.compared[row].copy(),
            int(self.values[row, _PREDICTED]),
            self.components[row].copy(),
            self.flagged[row],
            self.arrivals[row].seconds,
            self.ids[row],
        )

    def predictions(self, rows: Sequence[int]) -> list[Prediction]:
        """What labels are held against."""
        return [
            Prediction(self.ids[row], self.arrivals[row].seconds, json.dumps(self.labels[row]))
            for row in rows
        ]


def rows_of(records: pa.Table, manifest: Manifest) -> Rows:
    """Read records that are `streams.fitting_rows`."""
    streams = streams_of(records, manifest)
    values = np.column_stack([streams[name] for name in STREAMS])
    return Rows(
        values=values,
        compared=values[:, [STREAMS.index(name) for name in COMPARED]],
        components=components_of(records),
        flagged=records["flagged"].to_pylist(),
        arrivals=arrivals_of(records),
        answers=_answers(records),
        ids=records["id"].to_pylist(),
        labels=records["labels"].to_pylist(),
    )


def _answers(records: pa.Table) -> list[str]:
    """What the model answered, so coarsely that neighbours in a batch change nothing.

    Brightness and sharpness tell images apart where a model has few classes and is sure.
    """
    measured = [np.asarray(records[name].to_numpy()) * 10 for name in ("brightness", "sharpness")]
    values = np.column_stack([logits_of(records), *measured]).astype(np.float64)
    rounded = values.round(2) + 0.0  # no negative zeros
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rounded]
