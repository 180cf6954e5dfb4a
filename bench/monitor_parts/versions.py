"""A trained version, and what its engine and the records say of images; kept in the home folder.

Only outputs and properties of images are kept, no scores: a detector that changes is scored anew.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.bundle import OUTLIER
from model.decision import confidence, decide
from model.engines import Engine, Outputs, load_engine
from model.images import Pixels, properties
from model.settings import ModelSettings
from model.store import ModelStore
from monitor_parts.clean import Vectors
from monitoring.evidence import STREAMS
from monitoring.outlier import BANK_LIMIT
from monitoring.records import Record, to_table
from monitoring.streams import edges_of, streams_of
from training.evaluate import Decider, Reopened, reopen, run_engine
from training.findings import Rows
from training.mapped import each_row
from training.splits import Split

GARMENTS, EMOJI = "fashion-mnist", "emoji"


@dataclass(frozen=True)
class Seen:
    """What the engine and the eye say of N images."""

    logits: NDArray[np.float32]  # N x C
    embedding: NDArray[np.float32]  # N x D
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    perceptual_hash: NDArray[np.uint64]
    sha256: NDArray[np.bytes_]  # of the prepared pixels

    @property
    def outputs(self) -> Outputs:
        """Those of the engine."""
        return Outputs(self.logits, self.embedding)

    def __len__(self) -> int:
        return len(self.logits)


def join(*parts: Seen) -> Seen:
    """One after the other."""
    return Seen(*(np.concatenate(its) for its in zip(*map(astuple, parts), strict=True)))


def look_at(engine: Engine, images: Pixels) -> Seen:
    """N x H x W x 3."""
    logits, embedding = run_engine(engine, images)
    each = [(properties(image), hashlib.sha256(image).digest()) for image in each_row(images)]
    return Seen(
        logits,
        embedding,
        *(
            np.array([getattr(its, name) for its, _ in each], np.float32)
            for name in ("brightness", "contrast", "sharpness")
        ),
        np.array([its.perceptual_hash for its, _ in each], np.uint64),
        np.array([digest.hex() for _, digest in each], "S64"),
    )


class Version:
    """A version of a home folder, trained the first time."""

    def __init__(self, home: Path, name: str, *, data: Path | str, options: tuple[str, ...]):
        """`data` and `options` are those of `plumbline train`."""
        self._folder = home / "seen"
        store = ModelStore(ModelSettings(home=home))
        if not store.versions(name):
            _train(home, name, data, options)
        self._store = store
        self.bundle = store.load(store.find(f"{name}:latest"))
        self.manifest = self.bundle.manifest
        self.outlier_arrays = self.bundle.arrays(OUTLIER)

    @cached_property
    def opened(self) -> Reopened:
        """With the data of its training."""
        return reopen(self._store, self.manifest.tag)

    @cached_property
    def decider(self) -> Decider:
        """What it makes of outputs."""
        return self.opened.decider()

    @cached_property
    def engine(self) -> Engine:
        """The one that serves, on one thread."""
        return load_engine("openvino", self.bundle, threads=1)

    def seen(self, kind: str, images: Callable[[], Pixels]) -> Seen:
        """What it says of these images, from the second time on from a file."""
        path = self._folder / f"{self.manifest.tag.replace(':', '-')}-{kind.replace(' ', '-')}.npz"
        if not path.exists():
            found = look_at(self.engine, images())
            path.parent.mkdir(exist_ok=True)
            np.savez(path, **{its.name: getattr(found, its.name) for its in fields(Seen)})
        with np.load(path, allow_pickle=False) as file:
            return Seen(**{its.name: file[its.name] for its in fields(Seen)})

    def split(self, split: Split) -> Seen:
        """Images of one split."""
        return self.seen(split.value, lambda: self.opened.splits[split].images)

    def targets(self, split: Split) -> NDArray[np.int64]:
        """Indices of the classes of one split."""
        return np.asarray(self.opened.splits[split].targets)

    def fit_rows(self) -> tuple[Seen, NDArray[np.int64]]:
        """The fit images that a training fits the outlier score on, with their targets."""
        fit = self.opened.splits[Split.FIT]
        seed = int(self.manifest.training["seed"])
        rows = Rows(fit.images, fit.targets, tuple(fit.names)).sample(2 * BANK_LIMIT, seed)
        return self.seen("fit-sample", lambda: rows.images), np.asarray(rows.targets)

    def records(self, seen: Seen) -> pa.Table:
        """As the service would write them; times and clients are to be filled in."""
        decider, outputs = self.decider, seen.outputs
        chances = decider.probabilities(outputs)
        scores, components = decider.outlier.score(outputs.embedding, outputs.logits)
        p_values = decider.outlier.p_value(scores)
        labels = decide(chances, decider.thresholds, decider.classes, decider.task)
        sure, side = confidence(chances, decider.task), self.manifest.input.size
        now = datetime.now(UTC)
        return to_table(
            [
                Record(
                    id=f"{row:036d}",
                    time=now,
                    model=self.manifest.tag,
                    stage="champion",
                    client="bench",
                    image_sha256=seen.sha256[row].decode(),
                    perceptual_hash=int(seen.perceptual_hash[row]),
                    bytes=3 * side * side,
                    width=side,
                    height=side,
                    format="png",
                    brightness=float(seen.brightness[row]),
                    contrast=float(seen.contrast[row]),
                    sharpness=float(seen.sharpness[row]),
                    logits=seen.logits[row],
                    labels=labels[row],
                    confidence=float(sure[row]),
                    outlier_score=float(scores[row]),
                    p_value=float(p_values[row]),
                    flagged=bool(p_values[row] <= decider.alpha),
                    components=components[row],
                )
                for row in range(len(seen))
            ]
        )

    def vectors(self, seen: Seen) -> Vectors:
        """The seven streams, N x 7, read off records as the monitor reads them."""
        streams = streams_of(self.records(seen), self.manifest)
        return np.column_stack([streams[name] for name in STREAMS])

    def components(self, seen: Seen) -> NDArray[np.float32]:
        """Principal components of the embedding, N x P."""
        return self.decider.outlier.score(seen.embedding, seen.logits)[1]

    def edges(self) -> dict[str, NDArray[np.float64]]:
        """Of the evidence's bins, from the fit split."""
        return dict(edges_of(self.bundle))


def garments_of(home: Path) -> Version:
    """Fashion-MNIST by the default recipe."""
    return Version(home, GARMENTS, data="fashion-mnist", options=())


def _train(home: Path, name: str, data: Path | str, options: tuple[str, ...]) -> None:
    command = [
        *(sys.executable, "-m", "plumbline", "train", "--data", str(data), "--name", name),
        *("--track", "none", "--promote", *options),
    ]
    subprocess.run(command, env={**os.environ, "PLUMBLINE_HOME": str(home)}, check=True)
