"""The labels of a version's data that are likely wrong, split by split, and on whose word.

`training.label_errors` finds them by probabilities out of sample; here it is decided whose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task
from model.embedding import penultimate_columns
from model.engines import Outputs
from model.images import Pixels
from training.evaluate import Decider, Reopened
from training.label_errors import (
    can_be_judged,
    find_label_errors,
    held_out_probabilities,
)
from training.loading import LoadedSplit
from training.splits import Split

OWN_PROBABILITIES = "the model's own probabilities, which did not learn these rows"
HELD_OUT_PROBABILITIES = (
    "a linear head on the model's embedding, fitted without the fold that it is asked about: the"
    " model's own probabilities would repeat the labels that it learned"
)
NOBODY = "nobody: where all labels are alike there is nothing to compare them by"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WrongLabel:
    """A label that is likely wrong; `score` as in `training.label_errors.LabelError`."""

    name: str
    split: str
    label: list[str]
    suggested: list[str]
    score: float
    images: Any  # of its split; one is read when it is shown, and not before
    row: int

    @property
    def image(self) -> Pixels:
        """The picture, uint8 H x W x 3."""
        return np.asarray(self.images[self.row])


@dataclass(frozen=True)
class LabelCheck:
    """How many labels of a split were doubted, and on whose word."""

    split: str
    count: int
    doubted: int
    by: str


def wrong_labels(
    opened: Reopened, decider: Decider, outputs: Mapping[Split, Outputs]
) -> tuple[list[WrongLabel], list[LabelCheck]]:
    """Of the splits that have outputs, the likeliest first, and how each split was looked at."""
    found: list[WrongLabel] = []
    checks = []
    for name, given in outputs.items():
        rows = opened.splits[name]
        learned = opened.own and name is Split.FIT
        chances = (
            held_out_probabilities(
                given.embedding[:, penultimate_columns(opened.manifest.embedding_parts)],
                rows.targets,
                class_count=len(decider.classes),
                task=decider.task,
                seed=int(opened.manifest.training.get("seed", 0)),
            )
            if learned
            else decider.probabilities(given)
        )
        doubted = wrong_labels_of(decider.classes, decider.task, name.value, rows, chances)
        by = HELD_OUT_PROBABILITIES if learned else OWN_PROBABILITIES
        if not can_be_judged(rows.targets):
            by = NOBODY
        checks.append(LabelCheck(name.value, len(rows), len(doubted), by))
        found += doubted
    return sorted(found, key=lambda its: its.score), checks


def wrong_labels_of(
    classes: Sequence[str], task: Task, split: str, rows: LoadedSplit | Any, chances: Floats
) -> list[WrongLabel]:
    """Of one split, by probabilities out of sample."""
    return [
        WrongLabel(
            name=rows.names[its.row],
            split=split,
            label=_names(classes, rows.targets[its.row]),
            suggested=[classes[index] for index in its.suggested],
            score=its.score,
            images=rows.images,
            row=its.row,
        )
        for its in find_label_errors(chances, rows.targets, task)
    ]


def _names(classes: Sequence[str], target: Any) -> list[str]:
    if np.ndim(target):
        return [classes[int(index)] for index in np.flatnonzero(target)]
    return [classes[int(target)]] if target >= 0 else []
