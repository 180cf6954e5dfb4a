"""The training loop: five verbs and ordered callbacks; and the two recipes built on it.

    predict  get_loss  backward  step  zero_grad

Everything else (rates, augmentation, precision, recording, progress) is a callback with an
explicit `order`, so that the loop itself stays readable from top to bottom (after fastai's
minai).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model.decision import Task
from model.errors import DataError, SettingsError, TrainingError
from model.network import Network
from training.augment import augment
from training.loading import NONE_OF_THEM
from training.schedule import discriminative_rates, one_cycle, one_cycle_momentum
from training.settings import TrainingSettings

Inputs = NDArray[Any]  # uint8 images N x H x W x 3, or float32 features N x D
Targets = NDArray[Any]  # int64 N (single) or float32 N x C (multi)
Floats = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]

_BODY_GROUPS = 2  # layer groups below the head that get rates of their own
_TIMED_STEPS = 3
_TIMED_PIXELS = 2**19  # in a timed batch; large images need no large batch to tell
_EVALUATION_BATCH = 500
_HEAD_EPOCHS = 40
_HEAD_RATE = 3e-3
_HEAD_WEIGHT_DECAY = 0.05


class Samples(Protocol):
    """What the loop needs of `training.loading.LoadedSplit`."""

    @property
    def images(self) -> Inputs:
        """N x H x W x 3 uint8, or features N x D."""

    @property
    def targets(self) -> Targets:
        """N class indices, or N x C of 0 and 1."""


@dataclass(frozen=True)
class Arrays:
    """Inputs and targets in memory: the simplest `Samples`."""

    images: Inputs
    targets: Targets


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch brought."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    validation_metric: float
    seconds: float


@dataclass
class TrainingHistory:
    """The course of a training, for the report. Losses and rates are per step."""

    metric_name: str  # accuracy, or mean average precision
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    precision: str = "fp32"

    @property
    def metric(self) -> float:
        """Validation metric after the last epoch."""
        return self.epochs[-1].validation_metric


@dataclass(frozen=True)
class Precision:
    """Number format of the arithmetic and layout of the images."""

    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def name(self) -> str:
        """As in `TrainingSettings.precision`."""
        number = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        layout = " channels_last" if self.memory_format == torch.channels_last else ""
        return number + layout

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context to run forward passes in."""
        enabled = self.dtype != torch.float32
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


PRECISIONS = [
    Precision(dtype, memory_format)
    for dtype in (torch.float32, torch.bfloat16)
    for memory_format in (torch.contiguous_format, torch.channels_last)
]


class Callback:
    """Takes part in training at the points it overrides; lower `order` comes first."""

    order = 50

    def before_fit(self, trainer: Trainer) -> None:
        """Once, before the first epoch."""

    def before_epoch(self, trainer: Trainer) -> None:
        """The network is in training mode."""

    def before_batch(self, trainer: Trainer) -> None:
        """`trainer.images` and `trainer.targets` hold the batch and may be replaced."""

    def after_loss(self, trainer: Trainer) -> None:
        """`trainer.loss` is there, gradients are not."""

    def after_backward(self, trainer: Trainer) -> None:
        """Gradients are there, weights are still the old ones."""

    def after_batch(self, trainer: Trainer) -> None:
        """Weights are new, gradients gone."""

    def after_epoch(self, trainer: Trainer) -> None:
        """The last of `trainer.history.epochs` is this one's."""

    def after_fit(self, trainer: Trainer) -> None:
        """Once, after the last epoch, and also when training is broken off."""


class Trainer:
    """Trains one network on one split, validating on another after every epoch.

    The network maps inputs to (logits N x C, embedding N x D). Rows whose target is
    `NONE_OF_THEM` are left out. `groups` are the optimizer's parameter groups, each with its
    own `peak` rate; None takes the whole network at `settings.learning_rate`.

    >>> xor = Arrays(np.eye(4, dtype=np.float32), np.array([0, 1, 1, 0]))
    >>> settings = TrainingSettings(epochs=30, batch_size=4, precision="fp32", device="cpu")
    >>> trainer = Trainer(LinearHead(4, 2), xor, xor, settings, "single")
    >>> trainer.fit().metric
    1.0
    """

    images: Tensor
    targets: Tensor
    logits: Tensor
    loss: Tensor

    def __init__(
        self,
        network: nn.Module,
        fit: Samples,
        validation: Samples,
        settings: TrainingSettings,
        task: Task,
        *,
        callbacks: Sequence[Callback] = (),
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.settings = settings
        self.task = task
        self.device = pick_device(settings.device)
        self.network = network.to(self.device)
        self.fit_split, self.validation_split = fit, validation
        self.rows = trainable_rows(fit.targets)
        self.groups = groups or [
            {"params": list(network.parameters()), "peak": settings.learning_rate}
        ]
        self.optimizer = _optimizer(self.groups, settings)
        self.loss_function = loss_for(task, settings.label_smoothing)
        self.history = TrainingHistory(metric_name(task))
        self.precision = Precision()
        self.callbacks = sorted(
            [*_standard_callbacks(settings, fit), *callbacks], key=lambda one: one.order
        )
        self.step_number = 0

    def fit(self) -> TrainingHistory:
        """Train for the epochs that the settings name. Raises `TrainingError`."""
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            torch.manual_seed(self.settings.seed)
            self.notify("before_fit")
            try:
                for epoch in range(1, self.settings.epochs + 1):
                    self.run_epoch(epoch)
            finally:
                self.notify("after_fit")
        return self.history

    def run_epoch(self, epoch: int) -> None:
        """Every training row once, then validation."""
        start = time.perf_counter()
        self.network.train()
        self.notify("before_epoch")
        for batch in self.batches(epoch):
            self.images, self.targets = batch
            self.notify("before_batch")
            self.predict()
            self.get_loss()
            self.notify("after_loss")
            self.backward()
            self.notify("after_backward")
            self.step()
            self.zero_grad()
            self.notify("after_batch")
            self.step_number += 1
        self.history.epochs.append(self.validate(epoch, start))
        self.notify("after_epoch")

    def predict(self) -> None:
        """Images to logits, in the chosen precision; logits are float32 again."""
        with self.precision.autocast(self.device):
            logits, _ = self.network(self.images)
        self.logits = logits.float()

    def get_loss(self) -> None:
        """Logits and targets to one number."""
        self.loss = self.loss_function(self.logits, self.targets)

    def backward(self) -> None:
        """Loss to gradients."""
        self.loss.backward()

    def step(self) -> None:
        """Gradients to new weights."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Gradients to none."""
        self.optimizer.zero_grad()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches on the device; order depends on seed and epoch alone."""
        shuffle = np.random.default_rng((self.settings.seed, epoch))
        order = shuffle.permutation(self.rows)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            # Sorted: neighbours in a memory-mapped file are read together.
            rows = np.sort(order[start : start + self.batch_size])
            yield self.to_device(self.fit_split, rows)

    def to_device(self, split: Samples, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows, as tensors."""
        images = torch.from_numpy(np.asarray(split.images[rows]))
        targets = torch.from_numpy(np.asarray(split.targets[rows]))
        return images.to(self.device), targets.to(self.device)

    def validate(self, epoch: int, start: float) -> EpochRecord:
        """Loss and metric on the validation split."""
        logits, _ = predict_all(self.network, self.validation_split.images, self.precision)
        targets = self.validation_split.targets
        kept = trainable_rows(targets)
        loss = loss_for(self.task, 0.0)(
            torch.from_numpy(logits[kept]), torch.from_numpy(np.asarray(targets[kept]))
        )
        losses = self.history.losses[-self.steps_per_epoch :]
        return EpochRecord(
            epoch=epoch,
            train_loss=float(np.mean(losses)),
            validation_loss=float(loss),
            validation_metric=metric(logits, targets, self.task),
            seconds=time.perf_counter() - start,
        )

    def notify(self, event: str) -> None:
        """Call one method of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, event)(self)

    @property
    def batch_size(self) -> int:
        """At most the number of rows."""
        return min(self.settings.batch_size, len(self.rows))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches: a last one of a few rows would upset batch norm."""
        return len(self.rows) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * self.settings.epochs


class ChoosePrecision(Callback):
    """Sets number format and layout: as the settings name them, or the fastest by the clock."""

    order = 0

    def before_fit(self, trainer: Trainer) -> None:
        """Decide once; leaves weights and random state as they were."""
        wanted = trainer.settings.precision
        if wanted == "auto" and isinstance(trainer.network, Network):
            trainer.precision = fastest_precision(trainer)
        elif wanted != "auto":
            trainer.precision = next(one for one in PRECISIONS if one.name == wanted)
        if isinstance(trainer.network, Network):
            trainer.network.use_memory_format(trainer.precision.memory_format)
        trainer.history.precision = trainer.precision.name


class OneCycle(Callback):
    """Rate and momentum of every parameter group, before every step."""

    order = 10

    def before_batch(self, trainer: Trainer) -> None:
        """Set what the schedule says for this step."""
        step, total = trainer.step_number, trainer.total_steps
        warmup = trainer.settings.warmup_share
        momentum = one_cycle_momentum(step, total, warmup_share=warmup)
        for group in trainer.optimizer.param_groups:
            group["lr"] = one_cycle(step, total, group["peak"], warmup_share=warmup)
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


class Augment(Callback):
    """Random changes to every training batch."""

    order = 20

    def before_fit(self, trainer: Trainer) -> None:
        """A generator of its own, so that nothing else moves its numbers."""
        self._generator = torch.Generator().manual_seed(trainer.settings.seed)

    def before_batch(self, trainer: Trainer) -> None:
        """Replace the images."""
        trainer.images = augment(trainer.images, trainer.settings.augmentation, self._generator)


class FreezeBatchNorm(Callback):
    """Keeps the running statistics of batch norm.

    With few images moving statistics break the embedding that the outlier score reads
    (design.md, "Outlier score").
    """

    order = 30

    def before_epoch(self, trainer: Trainer) -> None:
        """Evaluation mode for these layers alone; their weights still learn."""
        for module in trainer.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class StopOnBadLoss(Callback):
    """Stops when the loss is not a number any more, saying where."""

    order = 40

    def after_loss(self, trainer: Trainer) -> None:
        """Raise `TrainingError` before the gradients spoil the weights."""
        if math.isfinite(trainer.loss.item()):
            return
        rate = trainer.optimizer.param_groups[-1]["lr"]
        raise TrainingError(
            f"the loss is {trainer.loss.item()} at step {trainer.step_number} of "
            f"{trainer.total_steps}, at learning rate {rate:.3g}; train with a lower "
            "--learning-rate, a tenth is a good try"
        )


class Record(Callback):
    """Writes losses and rates into the history."""

    order = 60

    def after_batch(self, trainer: Trainer) -> None:
        """One of each per step; the rate is that of the last group, the head."""
        trainer.history.losses.append(trainer.loss.item())
        trainer.history.learning_rates.append(trainer.optimizer.param_groups[-1]["lr"])


class LinearHead(nn.Module):
    """A linear classifier on features that stay as they are."""

    def __init__(self, feature_count: int, class_count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_count, class_count)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits N x C and the features N x D themselves."""
        return self.linear(features), features


@dataclass(frozen=True)
class FittedHead:
    """A linear head for raw features: logits = features @ weight.T + bias."""

    weight: Tensor  # C x D
    bias: Tensor  # C
    history: TrainingHistory


@dataclass(frozen=True)
class FineTuned:
    """Outcome of `fine_tune`: both candidates, and which of them the network now is."""

    head_history: TrainingHistory
    body_history: TrainingHistory | None  # None when no epochs were asked for
    kept: str  # "linear head" or "fine-tuned"

    @property
    def history(self) -> TrainingHistory:
        """Of the one that was kept."""
        fine_tuned = self.kept == "fine-tuned" and self.body_history is not None
        return self.body_history if fine_tuned and self.body_history else self.head_history


def train_from_scratch(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback] = (),
) -> TrainingHistory:
    """One cycle over the whole network. Raises `TrainingError`, `SettingsError` on no epochs."""
    if settings.epochs == 0:
        raise SettingsError("epochs is 0; training from scratch needs at least 1")
    return Trainer(network, fit, validation, settings, task, callbacks=callbacks).fit()


def fit_head(
    features: Floats,
    targets: Targets,
    validation_features: Floats,
    validation_targets: Targets,
    *,
    class_count: int,
    task: Task,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> FittedHead:
    """Train a linear head on frozen features N x D: simple first, and done in seconds.

    Features are standardised for training and the scales folded into the weights after it.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    settings = TrainingSettings(
        epochs=_HEAD_EPOCHS,
        batch_size=min(256, max(8, len(features) // 16)),
        learning_rate=_HEAD_RATE,
        optimizer="adamw",
        weight_decay=_HEAD_WEIGHT_DECAY,
        label_smoothing=0.0,
        precision="fp32",
        seed=seed,
    )
    head = LinearHead(features.shape[1], class_count)
    history = Trainer(
        head,
        Arrays((features - mean) / scale, targets),
        Arrays((validation_features - mean) / scale, validation_targets),
        settings,
        task,
        callbacks=callbacks,
    ).fit()
    weight = head.linear.weight.detach().cpu() / torch.from_numpy(scale)
    bias = head.linear.bias.detach().cpu() - weight @ torch.from_numpy(mean)
    return FittedHead(weight, bias, history)


def fine_tune(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback] = (),
) -> FineTuned:
    """Fit the head on frozen features, then train all layers; keep the better on validation.

    Batch norm statistics stay frozen. The body's rates climb from
    `settings.body_learning_rate` (a hundredth of the head's where it is None) to the head's.
    """
    network.to(pick_device(settings.device))
    head = _fit_head_of(network, fit, validation, settings, task, callbacks)
    if settings.epochs == 0:
        return FineTuned(head.history, None, "linear head")
    frozen = copy.deepcopy(network.state_dict())
    lowest = settings.body_learning_rate or settings.learning_rate / 100
    trainer = Trainer(
        network,
        fit,
        validation,
        replace(settings, freeze_batch_norm=True),
        task,
        callbacks=callbacks,
        groups=layer_groups(network, lowest, settings.learning_rate),
    )
    history = trainer.fit()
    if history.metric > head.history.metric:
        return FineTuned(head.history, history, "fine-tuned")
    network.load_state_dict(frozen)
    return FineTuned(head.history, history, "linear head")


def layer_groups(network: Network, lowest: float, highest: float) -> list[dict[str, Any]]:
    """The body's first and second half and the head, as optimizer groups with peak rates."""
    body = network.body_parameters()
    middle = len(body) // _BODY_GROUPS
    parts = [body[:middle], body[middle:], network.head_parameters()]
    rates = discriminative_rates(lowest, highest, len(parts))
    return [{"params": part, "peak": rate} for part, rate in zip(parts, rates, strict=True)]


def predict_all(
    network: nn.Module,
    images: Inputs,
    precision: Precision | None = None,
    batch_size: int = _EVALUATION_BATCH,
) -> tuple[Floats, Floats]:
    """Logits N x C and embeddings N x D of all inputs, in evaluation mode, float32."""
    precision = precision or Precision()
    device = next(network.parameters()).device
    network.eval()
    logits, embeddings = [], []
    with torch.inference_mode(), precision.autocast(device):
        for start in range(0, len(images), batch_size):
            # A copy: torch warns about memory-mapped arrays, which are read-only.
            chunk = np.array(images[start : start + batch_size])
            batch_logits, embedding = network(torch.from_numpy(chunk).to(device))
            logits.append(batch_logits.float().cpu().numpy())
            embeddings.append(embedding.float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(embeddings)


def loss_for(task: Task, label_smoothing: float) -> Loss:
    """Cross-entropy for one label, binary cross-entropy per class for several.

    The gradient of cross-entropy by the logits is softmax minus one-hot.
    """
    if task == "multi":
        return functional.binary_cross_entropy_with_logits

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    return cross_entropy


def metric_name(task: Task) -> str:
    """What `metric` measures."""
    return "accuracy" if task == "single" else "mean average precision"


def metric(logits: Floats, targets: Targets, task: Task) -> float:
    """Accuracy, or average precision averaged over the classes that have positives."""
    if task == "single":
        kept = trainable_rows(targets)
        return float((logits[kept].argmax(axis=1) == targets[kept]).mean())
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero(targets.sum(axis=0))
    return float(average_precision_score(targets[:, present], logits[:, present]))


def trainable_rows(targets: Targets) -> NDArray[np.int64]:
    """Rows that can be learned: all but single-label ones without a class."""
    rows = np.arange(len(targets)) if targets.ndim == 2 else np.flatnonzero(targets != NONE_OF_THEM)
    if not len(rows):
        raise DataError("no labelled rows to train or validate on; label at least one image")
    return rows


def pick_device(wanted: str) -> torch.device:
    """The device that the settings name; `auto` is cuda where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def fastest_precision(trainer: Trainer) -> Precision:
    """Time a few training steps of each precision on a copy of the network.

    bf16 with channels_last halves the time of a plain residual network on a CPU with AVX-512
    and doubles that of EfficientNet-Lite0, so no table replaces the clock.
    """
    rows = max(1, _TIMED_PIXELS // int(np.prod(trainer.fit_split.images.shape[1:3])))
    batch = trainer.to_device(trainer.fit_split, trainer.rows[: min(rows, trainer.batch_size)])
    with torch.random.fork_rng(devices=_cuda_devices(trainer.device)):
        seconds = [_step_seconds(trainer, precision, *batch) for precision in PRECISIONS]
    return PRECISIONS[int(np.argmin(seconds))]


def _step_seconds(trainer: Trainer, precision: Precision, images: Tensor, targets: Tensor) -> float:
    network = copy.deepcopy(trainer.network)
    assert isinstance(network, Network)
    network.train()
    network.use_memory_format(precision.memory_format)
    seconds = []
    for _ in range(1 + _TIMED_STEPS):  # the first warms up and is not counted
        start = time.perf_counter()
        with precision.autocast(trainer.device):
            logits, _ = network(images)
        trainer.loss_function(logits.float(), targets).backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _fit_head_of(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback],
) -> FittedHead:
    """Embed both splits once, fit the head on that, and put it into the network."""
    _, features = predict_all(network, fit.images)
    _, validation_features = predict_all(network, validation.images)
    head = fit_head(
        features,
        fit.targets,
        validation_features,
        validation.targets,
        class_count=network.head.out_features,
        task=task,
        seed=settings.seed,
        callbacks=callbacks,
    )
    with torch.no_grad():
        network.head.weight.copy_(head.weight)
        network.head.bias.copy_(head.bias)
    return head


def _standard_callbacks(settings: TrainingSettings, fit: Samples) -> list[Callback]:
    callbacks: list[Callback] = [ChoosePrecision(), OneCycle(), StopOnBadLoss(), Record()]
    if fit.images.ndim == 4:
        callbacks.append(Augment())
    if settings.freeze_batch_norm:
        callbacks.append(FreezeBatchNorm())
    return callbacks


def _optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay on kernels and matrices alone."""
    split = [
        {
            "params": chosen,
            "peak": group["peak"],
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for group in groups
        for decays in (True, False)
        if (chosen := [one for one in group["params"] if (one.ndim > 1) == decays])
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(split, lr=settings.learning_rate)
    return torch.optim.SGD(split, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
