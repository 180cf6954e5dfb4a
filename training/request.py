"""What `plumbline train` was asked for, and the data that it names.

Needs no torch: a wrong folder is told before the seconds that its import takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.decision import Task
from model.errors import SettingsError
from training.cost_matrix import read_cost_matrix
from training.objectives import COST, MACRO_F1, Objective, parse_objective
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
    alpha: float | None = None  # of the outlier flag; None: by training
    delimiter: str = " "
    pattern: str | None = None  # finds the label in file names
    columns: Columns | None = None  # of a table; None: by their usual names
    skip_bad: bool = False
    more: str | None = None  # CSV or Parquet of labelled images to add
    negatives: str | None = None  # a folder of images of none of the classes
    foreign: str | None = None  # a folder of images to judge the outlier score by
    leave_classes_out: int | None = None  # in a second training, to judge the outlier score by
    none_loss: float | None = None  # share of the images in class that may get no label or a flag
    clean: str | None = None  # list of `plumbline clean`, edited
    intended_use: str = ""  # in the user's words, for the model card
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of TrainingSettings, by name
    resume: bool = False  # go on from the checkpoint of an interrupted training
    keep_fine_tuned: bool = False  # also where the linear head is better
    retrain_to_overfit_point: bool = False
    track: TrackerName = "tensorboard"
    objective: str | None = None  # of multi-label thresholds; None: macro_f1, or cost
    cost_matrix: str | None = None  # CSV of what mistakes cost, by class
    per_class_thresholds: bool | None = None  # where they are surely better; None: yes
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
        negatives=None if request.negatives is None else Path(request.negatives),
        clean=request.clean,
    )


def choose_objective(request: TrainRequest, source: Source) -> Objective:
    """What thresholds will be tuned for.

    Raises `SettingsError` for an unknown objective and for options that would change nothing,
    `DataError` for a cost matrix that does not fit the classes.
    """
    given = {
        "--objective": request.objective,
        "--cost-matrix": request.cost_matrix,
        "--per-class-thresholds": request.per_class_thresholds,
    }
    named = [option for option, value in given.items() if value is not None]
    if source.task == "single":
        if named:
            raise SettingsError(
                f"{', '.join(named)}: these tune the thresholds of several labels per image, and"
                f" {source.name} has one label per image; leave it out, or give --task multi"
            )
        return MACRO_F1
    if request.cost_matrix is None:
        return parse_objective(request.objective or MACRO_F1.name)
    costs = read_cost_matrix(Path(request.cost_matrix), source.classes)
    return parse_objective(request.objective or COST, costs)
