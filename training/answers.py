"""What a model says of labelled rows, held against their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import confidence, decide
from model.engines import Outputs
from training.evaluate import Decider
from training.loading import LoadedSplit
from training.mapped import ChosenRows

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """Labelled rows of one split and what a model said of them, N each.

    Single-label rows without a label are left out: there is nothing to hold the answer against.
    """

    split: str
    images: Any  # uint8 N x H x W x 3, or rows of that
    names: Sequence[str]
    targets: Array
    outputs: Outputs
    chances: Floats  # N x C
    truth: list[list[str]]
    labels: list[list[str]]
    loss: Floats
    sure: Floats

    def __len__(self) -> int:
        return len(self.names)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether all labels were given, and no other."""
        pairs = zip(self.truth, self.labels, strict=True)
        return np.array([set(one) == set(other) for one, other in pairs], bool)


def answers_of(decider: Decider, split: str, rows: LoadedSplit | Any, outputs: Outputs) -> Answers:
    """What a model says of the rows of one split, `rows` with images, targets and names."""
    images, targets = rows.images, np.asarray(rows.targets)
    names = list(rows.names) or [str(row) for row in range(len(targets))]
    if decider.task == "single" and (targets < 0).any():
        kept = np.flatnonzero(targets >= 0)
        images, targets = ChosenRows(images, kept), targets[kept]
        names = [names[row] for row in kept]
        outputs = Outputs(*(part[kept] for part in outputs))
    chances = decider.probabilities(outputs)
    return Answers(
        split=split,
        images=images,
        names=names,
        targets=targets,
        outputs=outputs,
        chances=chances,
        truth=decider.label_names(targets),
        labels=decide(chances, decider.thresholds, decider.classes, decider.task),
        loss=_loss(chances, targets),
        sure=confidence(chances, decider.task),
    )


def _loss(chances: Floats, targets: Array) -> Floats:
    """Cross-entropy of each row; with several labels the mean over the classes."""
    safe = np.clip(chances.astype(np.float64), 1e-7, 1 - 1e-7)
    if targets.ndim == 1:
        return np.asarray(-np.log(safe[np.arange(len(safe)), targets]), np.float32)
    each = -np.where(targets == 1, np.log(safe), np.log(1 - safe))
    return np.asarray(each.mean(axis=1), np.float32)
