"""What the report shows, as training hands it over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from numpy.typing import NDArray

from model.bundle import SetsSummary
from model.decision import Calibration, Task
from training.calibration import Reliability
from training.confusions import Confusion
from training.slices import Slice
from training.thresholds import ThresholdChoice
from training.wrong_labels import LabelCheck, WrongLabel

Array = NDArray[Any]


class Epoch(TypedDict, total=False):
    """One epoch of the learning curve; `step` is its last step, counted from 1."""

    step: int
    train_loss: float
    valid_loss: float
    metric: float
    seconds: float  # of training and validation


class ForeignKind(TypedDict):
    """How one kind of foreign images fared; `flagged` is a share of `count` images."""

    kind: str
    auroc: float
    flagged: float
    count: int


class ReadBy(TypedDict):
    """What the outlier score could have read: AUROC by kind, and what the choice was made by."""

    name: str
    auroc: Mapping[str, float]
    mean: float
    is_chosen: bool
    is_baseline: bool


class OutlierCheck(TypedDict, total=False):
    """The self-check at the end of training: does the model know what it does not know?"""

    passed: bool
    sentence: str
    detector: str
    embedding: str
    alpha: float
    calibration_count: int
    false_positive_count: int  # validation images flagged
    validation_count: int
    kinds: list[ForeignKind]
    candidates: list[ReadBy]


class EngineRow(TypedDict, total=False):
    """One exported engine at the gate; shares in 0 to 1, `reason` why it was left out.

    `lost` is torch's accuracy less its own on the same `count` images, with the paired interval
    `lost_low` to `lost_high`; `serves` marks the one that decisions were fitted to.
    """

    engine: str
    precision: str
    agreement: float
    accuracy: float
    lost: float
    lost_low: float
    lost_high: float
    ece: float
    flagged: float
    count: int
    images_per_second: float
    passed: bool
    serves: bool
    reason: str


class Mistake(TypedDict, total=False):
    """A wrongly answered image: uint8 H x W or H x W x 3, or the bytes of a PNG."""

    image: Array | bytes
    name: str
    truth: Sequence[str]
    labels: Sequence[str]
    confidence: float
    heat: Array  # what spoke for the answer, drawn over the image


@dataclass(frozen=True)
class ReportData:
    """What the report shows; a part left empty is left out, or said to be missing.

    `metrics` and `validation_metrics` are those of `training.metrics.evaluate`; `metrics` is None
    when there is no test split. `counts` {split: {class: rows}} (multi: rows carrying the label),
    `split_sizes` {split: rows}. `step_losses` and `learning_rates` one figure a step. An empty
    `verdict` is written from the figures; `diagnosis` are sentences on the curves. `no_heat` says
    why the mistakes have no Grad-CAM; `command` is what stands for this version in commands.
    """

    name: str
    version: str
    created: str
    task: Task
    classes: Sequence[str]
    verdict: str = ""
    architecture: str = ""
    input_size: int | None = None
    intended_use: str = ""
    metrics: Mapping[str, Any] | None = None
    validation_metrics: Mapping[str, Any] | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    split_sizes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    step_losses: Sequence[float] | Array = ()
    learning_rates: Sequence[float] | Array = ()
    epochs: Sequence[Epoch] = ()
    metric_name: str = "metric"
    diagnosis: Sequence[str] = ()
    calibration: Calibration | None = None
    reliability_before: Reliability | None = None
    reliability_after: Reliability | None = None
    ece_before: float | None = None
    ece_after: float | None = None
    reliability_split: str = "validation"
    thresholds: ThresholdChoice | None = None
    prediction_sets: SetsSummary | None = None
    outlier: OutlierCheck | None = None
    engines: Sequence[EngineRow] = ()
    mistakes: Sequence[Mistake] = ()
    no_heat: str = ""
    confused: Sequence[Confusion] = ()
    slices: Sequence[Slice] = ()
    label_checks: Sequence[LabelCheck] = ()
    wrong_labels: Sequence[WrongLabel] = ()
    data_source: str = ""
    fingerprint: str = ""
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
