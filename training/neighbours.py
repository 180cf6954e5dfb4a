"""Which training images a model finds most like a given one: often they explain a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.embedding import penultimate_columns
from model.engines import Engine, Outputs
from model.errors import PlumblineError
from model.images import Pixels
from model.store import ModelStore
from training.answers import Answers
from training.evaluate import Reopened, reopen, run_engine
from training.mapped import ChosenRows
from training.splits import Split

NEIGHBOURS = 5
MOST_BANK = 5_000  # fit images among which neighbours are looked for

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A row of the bank, and the cosine of its embedding with the one asked about."""

    row: int
    similarity: float


def nearest(
    embedding: Floats, bank: Floats, count: int = NEIGHBOURS, leave_out: tuple[int, ...] = ()
) -> list[Neighbour]:
    """The rows of a bank B x D nearest to one embedding D, nearest first.

    By the cosine after the mean of the bank is taken off, as the outlier score has it. Rows to
    `leave_out` are those of the image itself.

    >>> bank = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    >>> [its.row for its in nearest(np.array([1, 0.1], np.float32), bank, 2)]
    [0, 1]
    """
    center = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
    similarity = _unit(bank - center) @ _unit(embedding[None] - center)[0]
    similarity[list(leave_out)] = -np.inf
    order = np.argsort(-similarity, kind="stable")[:count]
    return [
        Neighbour(int(row), float(similarity[row])) for row in order if np.isfinite(similarity[row])
    ]


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-9), np.float32)


@dataclass(frozen=True)
class NearImage:
    """A training image like the one asked about; `similarity` is a cosine."""

    name: str
    truth: list[str]
    similarity: float
    image: Pixels


@dataclass(frozen=True)
class Bank:
    """Images to fit on, with their penultimate embedding B x D by the engine.

    `columns` are those of it in whole embeddings: the layer that the head reads is the one in which
    images of a class lie together, whatever layers the outlier score reads.
    """

    images: Any
    names: Sequence[str]
    truth: list[list[str]]
    embedding: Floats
    columns: slice

    def near(self, answers: Answers, row: int) -> tuple[NearImage, ...]:
        """The nearest to one answer; never the image itself."""
        is_fit = answers.split == Split.FIT
        own = [at for at, name in enumerate(self.names) if is_fit and name == answers.names[row]]
        asked = answers.outputs.embedding[row, self.columns]
        found = nearest(asked, self.embedding, NEIGHBOURS, tuple(own))
        return tuple(
            NearImage(
                self.names[its.row],
                self.truth[its.row],
                its.similarity,
                np.asarray(self.images[its.row]),
            )
            for its in found
        )


def bank_of(
    store: ModelStore,
    reference: str,
    opened: Reopened,
    engine: Engine,
    outputs: Mapping[Split, Outputs],
) -> tuple[Bank | None, str]:
    """At most MOST_BANK rows that the version was fitted on; or why there are none."""
    training = opened
    if not opened.own:
        try:
            training = reopen(store, reference)
        except PlumblineError as error:
            return None, f"there are no training images to compare with: {error}"
    rows = training.splits[Split.FIT]
    if not len(rows):
        return None, "the data have no rows to fit on"
    seed = int(opened.manifest.training.get("seed", 0))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_BANK])
    images: Any = ChosenRows(rows.images, chosen)
    known = outputs.get(Split.FIT) if training is opened else None
    embedding = run_engine(engine, images).embedding if known is None else known.embedding[chosen]
    truth = opened.decider().label_names(rows.targets[chosen])
    columns = penultimate_columns(opened.manifest.embedding_parts)
    names = [rows.names[row] for row in chosen]
    return Bank(images, names, truth, embedding[:, columns], columns), ""
