"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from training.answers import Answers
from training.metrics import NONE_COLUMN


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that were answered as another.

    With several labels: rows that lack the one label and were wrongly given the other.
    """

    truth: str
    answer: str
    count: int
    share: float  # of the rows of the class


def most_confused(parts: Sequence[Answers]) -> list[Confusion]:
    """Pairs of what is true and what was answered, most frequent first (after fastai's).

    An image left without a label counts as answered "(none)", and one wrongly given a label that
    lacks none as truth "(none)".
    """
    counts: dict[tuple[str, str], int] = {}
    rows: dict[str, int] = {}
    for true, given in _pairs(parts):
        for name in true or [NONE_COLUMN]:
            rows[name] = rows.get(name, 0) + 1
        missed = [name for name in true if name not in given]
        wrong = [name for name in given if name not in true]
        if missed or wrong:
            for pair in product(missed or [NONE_COLUMN], wrong or [NONE_COLUMN]):
                counts[pair] = counts.get(pair, 0) + 1
    ranked = sorted(counts.items(), key=lambda its: (-its[1], its[0]))
    total = sum(map(len, parts))
    return [
        Confusion(true, answer, count, count / (rows.get(true) or total))
        for (true, answer), count in ranked
    ]


def _pairs(parts: Sequence[Answers]) -> Iterator[tuple[list[str], list[str]]]:
    for part in parts:
        yield from zip(part.truth, part.labels, strict=True)
