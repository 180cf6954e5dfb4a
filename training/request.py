"""What `plumbline train` was asked for, and the data that it names.

Needs no torch: a wrong folder is told before the seconds that its import takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.decision import Task
from training.sources import Source, open_source
from training.tables import Columns

TrackerName = Literal["tensorboard", "mlflow", "none"]

DEFAULT_ALPHA = 0.01


@dataclass(frozen=True)
class TrainRequest:
    """What `plumbline train` was asked for; None leaves the choice to the recipe."""

    data: str
    name: str
    task: Task | None = None
    none_allowed: bool = False
    architecture: str | None = None
    weights: str | None = None  # none, timm, package, a safetensors file, or a version
    size: int | None = None  # px
    epochs: int | None = None
    learning_rate: float | None = None  # the highest
    body_learning_rate: float | None = None  # the lowest
    batch_size: int | None = None  # images
    seed: int = 0
    alpha: float = DEFAULT_ALPHA
    delimiter: str = " "
    pattern: str | None = None  # finds the label in file names
    columns: Columns | None = None  # of a table; None: by their usual names
    skip_bad: bool = False
    more: str | None = None  # CSV or Parquet of labelled images to add
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of TrainingSettings, by name
    resume: bool = False  # go on from the checkpoint of an interrupted training
    keep_fine_tuned: bool = False  # also where the linear head is better
    retrain_to_overfit_point: bool = False
    track: TrackerName = "tensorboard"
    int8: bool = False  # export in int8, too


def open_request(request: TrainRequest, home: Path, *, for_training: bool = True) -> Source:
    """The data; see `open_source`, also for what it raises."""
    return open_source(
        request.data,
        task=request.task,
        delimiter=request.delimiter,
        seed=request.seed,
        skip_bad=request.skip_bad,
        home=home,
        for_training=for_training,
        more=None if request.more is None else Path(request.more),
        pattern=request.pattern,
        columns=request.columns,
    )
