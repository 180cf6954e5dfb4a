"""The answers that cost most, and what is shown of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.images import Pixels
from training.answers import Answers
from training.neighbours import Bank, NearImage

TOP_LOSSES = 12


@dataclass(frozen=True)
class Place:
    """A row of some answers, and what Grad-CAM drew of it."""

    answers: Answers
    row: int
    heat_class: str = ""
    heat: Pixels | None = None
    heat_truth_class: str = ""
    heat_truth: Pixels | None = None


def top_losses(parts: Sequence[Answers], count: int) -> list[Place]:
    """The rows that were answered wrongly and cost most; then those answered rightly."""
    places = [Place(part, row) for part in parts for row in range(len(part))]
    right = np.concatenate([part.right for part in parts])
    loss = np.concatenate([part.loss for part in parts])
    return [places[its] for its in np.lexsort((-loss, right))[:count]]


@dataclass(frozen=True)
class TopLoss:
    """An answer that cost much: minus the log of the probability of the truth.

    `heat` is the picture under what spoke for the class that was answered, `heat_truth` for the
    class that would have been right; with several labels, for the class that cost most, alone.
    """

    name: str
    split: str
    truth: list[str]
    labels: list[str]
    loss: float
    confidence: float
    image: Pixels
    heat_class: str = ""
    heat: Pixels | None = None
    heat_truth_class: str = ""
    heat_truth: Pixels | None = None
    neighbours: tuple[NearImage, ...] = ()


def finished(place: Place, bank: Bank | None) -> TopLoss:
    """One of these with all that is shown of it; without a bank it has no neighbours."""
    answers, row = place.answers, place.row
    return TopLoss(
        name=answers.names[row],
        split=answers.split,
        truth=answers.truth[row],
        labels=answers.labels[row],
        loss=float(answers.loss[row]),
        confidence=float(answers.sure[row]),
        image=np.asarray(answers.images[row]),
        heat_class=place.heat_class,
        heat=place.heat,
        heat_truth_class=place.heat_truth_class,
        heat_truth=place.heat_truth,
        neighbours=() if bank is None else bank.near(answers, row),
    )
