"""Every knob of one training run, in one flat, typed place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from model.errors import SettingsError
from training.augment import Augmentation
from training.warp import Warp

PrecisionName = Literal[
    "auto",
    "fp32",
    "fp32 channels_last",
    "bf16",
    "bf16 channels_last",
    "fp16",
    "fp16 channels_last",
]
SamplingName = Literal["shuffled", "balanced"]
ClassWeightsName = Literal["none", "balanced"]
OptimizerName = Literal["sgd", "adamw"]
HeadName = Literal["softmax", "sigmoid"]

BODY_GROUPS = 2  # layer groups below the head, that get rates of their own


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one run; the defaults suit `small-resnet` from scratch on small images.

    Raises `SettingsError` for a value outside its range.
    """

    epochs: int = 6  # 0: the linear head alone, when fine-tuning
    batch_size: int = 256  # images
    learning_rate: float = 0.2  # the peak of the cycle; of the head, where rates are sliced
    body_learning_rate: float | None = None  # of the first layers; None: a hundredth of the head's
    optimizer: OptimizerName = "sgd"
    weight_decay: float = 5e-4  # on matrices and kernels; never on biases and norms
    warmup_share: float = 0.25  # of all steps, spent climbing to the peak
    # Single-label alone. Smoothed labels make probabilities that no temperature sets right.
    label_smoothing: float = 0.0
    head: HeadName = "softmax"  # single-label alone; sigmoid: every class for itself
    learn_none: bool = False  # single-label: from rows without a label too
    small_epochs_share: float = 0.0  # of the epochs, the first, on smaller images
    small_share: float = 0.72  # side of those over the network's
    flip: bool = False  # tiny images are often signs, which a mirror spoils
    shift_share: float = 0.036  # of the side; 1 px at 28
    presize: float = 0.0  # side of the images to fit on over that of the network's; 0: the same
    least_crop: float = 0.5  # share of the largest cut that fits, that a warp keeps at least
    most_aspect: float = 4 / 3  # wider than high, or the reverse, at most
    rotation_degrees: float = 10.0  # at most, either way
    shear_degrees: float = 5.0
    perspective: float = 0.15  # by what share one side may come nearer
    lighting: float = 0.2  # share by which brightness and contrast change at most
    erase_probability: float = 0.0
    mixup: float = 0.0  # alpha of the blending of two images; 0: none
    cutmix: float = 0.0  # alpha of the pasting of one image into another; 0: none
    frozen_groups: int = 0  # of BODY_GROUPS, from the first layers on, that fine-tuning leaves
    freeze_batch_norm: bool = False  # keep running statistics, for fine-tuning
    sampling: SamplingName = "shuffled"  # balanced: draw rare classes as often as frequent ones
    class_weights: ClassWeightsName = "none"  # balanced: mistakes on rare classes cost more
    accumulate_batches: int = 1  # batches per step of the optimizer
    clip_gradient_norm: float | None = None  # bound on the length of all gradients together
    average_decay: float | None = None  # of a moving average of the weights, which is then kept
    compile: bool = False  # torch.compile: slow to start, faster after it
    deterministic: bool = False  # only algorithms that give the same bits each time
    precision: PrecisionName = "auto"  # auto: time a few batches of each, keep the fastest
    device: str = "auto"  # auto: cuda where there is one, else cpu
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no training can use."""
        for name in ("batch_size", "learning_rate"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "more than 0")
        for name in ("warmup_share", "label_smoothing", "shift_share", "erase_probability"):
            value = getattr(self, name)
            _require(name, value, 0 <= value <= 1, "between 0 and 1")
        _require(
            "accumulate_batches", self.accumulate_batches, self.accumulate_batches >= 1, "1 or more"
        )
        if self.clip_gradient_norm is not None:
            bound = self.clip_gradient_norm
            _require("clip_gradient_norm", bound, bound > 0, "more than 0")
        if self.average_decay is not None:
            decay = self.average_decay
            _require("average_decay", decay, 0 < decay < 1, "between 0 and 1")
        # At least the last epoch sees images as the network will be served them.
        some_small = self.small_epochs_share
        _require("small_epochs_share", some_small, 0 <= some_small < 1, "0 to under 1")
        _require("small_share", self.small_share, 0.25 <= self.small_share <= 1, "0.25 to 1")
        presized = self.presize == 0 or 1 < self.presize <= 4
        _require("presize", self.presize, presized, "0, or more than 1 and at most 4")
        _require("least_crop", self.least_crop, 0 < self.least_crop <= 1, "more than 0, at most 1")
        _require("most_aspect", self.most_aspect, 1 <= self.most_aspect <= 4, "between 1 and 4")
        for name in ("rotation_degrees", "shear_degrees"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 60, "0 to 60")
        for name in ("perspective", "lighting"):
            # Two perspectives of less than a half leave the horizon outside.
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 0.5, "0 to under 0.5")
        for name in ("mixup", "cutmix"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        frozen = self.frozen_groups
        _require("frozen_groups", frozen, 0 <= frozen <= BODY_GROUPS, f"0 to {BODY_GROUPS}")
        _require("epochs", self.epochs, self.epochs >= 0, "0 or more")
        _require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        if self.body_learning_rate is not None:
            in_order = 0 < self.body_learning_rate <= self.learning_rate
            _require(
                "body_learning_rate",
                self.body_learning_rate,
                in_order,
                f"more than 0 and at most the learning rate of the head, {self.learning_rate}",
            )

    def side_in_epoch(self, epoch: int, side: int) -> int:
        """Side in px that images are trained at in an epoch (from 1), of a network for `side`.

        Small ones first (progressive resizing, fastai book, chapter 7): they cost less, and the
        first epochs need no detail.

        >>> halves = TrainingSettings(epochs=5, small_epochs_share=0.5, small_share=0.75)
        >>> [halves.side_in_epoch(epoch, 28) for epoch in range(1, 6)]
        [21, 21, 28, 28, 28]
        """
        is_small = epoch <= int(self.small_epochs_share * self.epochs)
        return round(self.small_share * side) if is_small else side

    @property
    def warp(self) -> Warp:
        """The part that `training.warp` reads."""
        return Warp(
            flip=self.flip,
            least_crop=self.least_crop,
            aspect=self.most_aspect,
            rotation=self.rotation_degrees,
            shear=self.shear_degrees,
            perspective=self.perspective,
            lighting=self.lighting,
        )

    @property
    def augmentation(self) -> Augmentation:
        """The part that `training.augment` reads."""
        return Augmentation(self.flip, self.shift_share, self.erase_probability)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _require(name: str, value: float, holds: bool, valid: str) -> None:
    if not holds:
        raise SettingsError(f"{name} is {value}; it must be {valid}")
