"""Which training images a model finds most like a given one: often they explain a mistake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NEIGHBOURS = 5


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
