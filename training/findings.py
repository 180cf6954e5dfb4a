"""What training hands over to be packed, and what packing found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import DataSummary, EngineGate
from model.decision import Task
from model.embedding import EmbeddingPart
from model.engines import Outputs
from model.images import InputSpec, Pixels
from model.network import Network
from training.evaluate import Decider
from training.linear_head import WEIGHT_DECAYS
from training.mapped import ChosenRows
from training.never_learned import NeverLearned
from training.none_choice import NoneChoice
from training.objectives import MACRO_F1, Objective
from training.self_check import SelfCheck
from training.settings import HeadName
from training.thresholds import ThresholdChoice


@dataclass(frozen=True)
class Rows:
    """Images (uint8 N x H x W x 3) and targets (N indices, or N x C of 0 and 1) of one split."""

    images: Pixels
    targets: NDArray[Any]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int, seed: int) -> Rows:
        """At most `count` rows, drawn at random, in order."""
        if count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def distinct(self) -> Rows:
        """Each image once: retraining repeats what is new, which is no more evidence for it."""
        if not self.names:
            return self
        _, first = np.unique(self.names, return_index=True)
        return self if len(first) == len(self) else self.take(np.sort(first))

    def take(self, chosen: NDArray[np.intp]) -> Rows:
        """The rows of these indices."""
        names = tuple(self.names[row] for row in chosen) if self.names else ()
        images: Any = ChosenRows(self.images, chosen)
        return Rows(images, self.targets[chosen], names)


@dataclass(frozen=True)
class Trained:
    """What training hands over to be packed; `curves` is drawn in the report."""

    name: str
    task: Task
    none_allowed: bool
    classes: tuple[str, ...]
    architecture: str
    network: Network
    input: InputSpec
    fit: Rows
    validation: Rows
    calibration: Rows
    test: Rows
    data: DataSummary
    settings: Mapping[str, Any]
    curves: Mapping[str, Any]
    alpha: float | None  # None: by the choice of "none", else the usual one
    seed: int
    none_loss: float | None = None
    foreign: Pixels | None = None  # real foreign images, N x H x W x 3
    head: HeadName = "softmax"
    learn_none: bool = False  # from rows without a label, too
    is_body_frozen: bool = False  # as it was pretrained; only the head was fitted
    head_weight_decay: float = WEIGHT_DECAYS[0]  # that it was fitted with
    objective: Objective = MACRO_F1  # of multi-label thresholds
    per_class_thresholds: bool = True  # where they are surely better
    intended_use: str = ""
    # Width and height as stored, N x 2, of the rows of test and validation, by split.
    image_sizes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    int8: bool = False  # to be exported in int8, too
    never_learned: NeverLearned | None = None  # of a second training, on request


@dataclass(frozen=True)
class SplitOutputs:
    """Outputs of the engine that will serve, by split; `fit` of a sample of its rows."""

    fit_rows: Rows
    fit: Outputs
    validation: Outputs
    calibration: Outputs
    test: Outputs | None
    # By kind: made foreign images, and real ones where given. Those of `foreign` choose, and those
    # of `foreign_reported`, which are others, are what is reported.
    foreign: Mapping[str, Outputs]
    foreign_reported: Mapping[str, Outputs]
    parts: tuple[EmbeddingPart, ...]  # of every embedding


@dataclass(frozen=True)
class Findings:
    """Everything that was found out about the trained network; the model card shows it."""

    decider: Decider
    choice: ThresholdChoice | None
    self_check: SelfCheck
    none: NoneChoice | None
    gates: dict[str, EngineGate]
    outputs: SplitOutputs
    test_metrics: dict[str, Any] | None
    validation_metrics: dict[str, Any]
    decided_by: str | None = None  # key of the engine whose outputs these are
    engines_left_out: Mapping[str, str] = field(default_factory=dict)  # by key: why
