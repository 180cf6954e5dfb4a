"""The training loop: five verbs and ordered callbacks.

    predict  get_loss  backward  step  zero_grad

Everything else (rates, augmentation, precision, recording, progress, checkpoints) is a callback
with an explicit `order`, so that the loop itself stays readable from top to bottom (after
fastai's minai).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.decision import Task
from model.errors import SettingsError, TrainingError
from training.augment import shrink
from training.callbacks import Callback, standard_callbacks
from training.history import EpochRecord, TrainingHistory
from training.loss import (
    Floats,
    Targets,
    class_weights,
    loss_for,
    metric,
    metric_name,
    row_weights,
    trainable_rows,
)
from training.mapped import copy_rows
from training.precision import Precision
from training.settings import TrainingSettings
from training.world import ALONE, World, current_world, local_device

Inputs = NDArray[Any]  # uint8 images N x H x W x 3, or float32 features N x D

# Images that are predicted at once: many small ones, or few large ones.
_EVALUATION_BATCH = 500
# Of a batch: many on a GPU; on a CPU no more than is still fast, since all of it is resident.
_EVALUATION_PIXELS = {"cuda": 2**22, "cpu": 2**19}


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


class Trainer:
    """Trains one network on one split, validating on another after every epoch.

    The network maps inputs to (logits N x C, embedding N x D). Rows whose target is
    `NONE_OF_THEM` are left out. `groups` are the optimizer's parameter groups, each with its
    own `peak` rate; None takes the whole network at `settings.learning_rate`.

    >>> from training.linear_head import LinearHead
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
        self.world = current_world()
        self.device = local_device(settings.device)
        self.network = network.to(self.device)
        self.fit_split, self.validation_split = fit, validation
        learned = trainable_rows(fit.targets)
        self.rows = np.arange(len(fit.targets)) if settings.learn_none else learned
        self.groups = groups or [
            {"params": list(network.parameters()), "peak": settings.learning_rate}
        ]
        self.optimizer = _optimizer(self.groups, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.loss_function = loss_for(
            task,
            settings.label_smoothing,
            self._class_weights(),
            head=settings.head,
            learn_none=settings.learn_none,
        )
        self.history = TrainingHistory(metric_name(task))
        self.precision = Precision()
        self.evaluation_network = self.network  # an average of its weights, where one is kept
        self.forward: Any = torch.compile(self.network) if settings.compile else self.network
        self.callbacks = sorted(
            [*standard_callbacks(settings, fit, self.world), *callbacks],
            key=lambda one: one.order,
        )
        self.step_number = 0
        self.batch_number = 0  # within the epoch
        self.accumulated_batches = 1  # that share the coming step

    def fit(self) -> TrainingHistory:
        """Train for the epochs that the settings name, from the first or where a checkpoint ends.

        Raises `TrainingError` when the loss is not finite or memory is out.
        """
        with _random_state(self.device, self.settings), memory_error(self):
            self.notify("before_fit")
            try:
                for epoch in range(len(self.history.epochs) + 1, self.settings.epochs + 1):
                    self.run_epoch(epoch)
            finally:
                self.notify("after_fit")
        return self.history

    def run_epoch(self, epoch: int) -> None:
        """Every training row once, then validation."""
        start = time.perf_counter()
        self.network.train()
        self.notify("before_epoch")
        for number, batch in enumerate(self.batches(epoch)):
            self.images, self.targets = batch
            self.batch_number = number
            self.accumulated_batches = self.batches_of_step
            self.notify("before_batch")
            self.predict()
            self.get_loss()
            self.notify("after_loss")
            self.backward()
            self.notify("after_backward")
            if self.ends_step:
                self.step()
                self.zero_grad()
            self.notify("after_batch")
            self.step_number += 1
        self.history.epochs.append(self.validate(epoch, start))
        self.notify("after_epoch")

    def predict(self) -> None:
        """Images to logits, in the chosen precision; logits are float32 again."""
        with self.precision.autocast(self.device):
            logits, _ = self.forward(self.images)
        self.logits = logits.float()

    def get_loss(self) -> None:
        """Logits and targets to one number."""
        self.loss = self.loss_function(self.logits, self.targets)

    def backward(self) -> None:
        """Loss to gradients, which add up over the batches of one step."""
        self.scaler.scale(self.loss / self.accumulated_batches).backward()

    def step(self) -> None:
        """Gradients to new weights."""
        self.scaler.unscale_(self.optimizer)
        self.notify("before_step")
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self) -> None:
        """Gradients to none."""
        self.optimizer.zero_grad()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches on the device; order depends on seed and epoch alone.

        Of several processes each gets its part of every batch.
        """
        order = self.order(epoch)
        for start in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            # Sorted: neighbours in a memory-mapped file are read together.
            rows = self.world.part(np.sort(order[start : start + self.batch_size]))
            yield self.to_device(self.fit_split, rows)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of one epoch: each once, or drawn so that rare classes come as often as others."""
        shuffle = np.random.default_rng((self.settings.seed, epoch))
        if self.settings.sampling == "balanced":
            weights = row_weights(np.asarray(self.fit_split.targets[self.rows]))
            return shuffle.choice(self.rows, len(self.rows), p=weights)
        return shuffle.permutation(self.rows)

    def to_device(self, split: Samples, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows, as tensors."""
        images = torch.from_numpy(copy_rows(split.images, rows))
        targets = torch.from_numpy(np.asarray(split.targets[rows]))
        return images.to(self.device), targets.to(self.device)

    def validate(self, epoch: int, start: float) -> EpochRecord:
        """Loss and metric on the validation split."""
        inputs = self.validation_split.images
        side = self.side_in_epoch(epoch) if inputs.ndim == 4 else None
        logits, _ = predict_all(
            self.evaluation_network, inputs, self.precision, self.world, side=side
        )
        targets = self.validation_split.targets
        kept = trainable_rows(targets)
        loss = loss_for(self.task, 0.0, head=self.settings.head)(
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
    def image_size(self) -> int:
        """Side in px of what the network takes; images to fit on may be larger, to be warped."""
        return int(self.validation_split.images.shape[1])

    def side_in_epoch(self, epoch: int) -> int:
        """Side in px that images of an epoch have, in training and in validation."""
        return self.settings.side_in_epoch(epoch, self.image_size)

    @property
    def batches_of_step(self) -> int:
        """How many batches share the step that the present one belongs to."""
        most = self.settings.accumulate_batches
        return min(most, self.steps_per_epoch - self.batch_number // most * most)

    @property
    def ends_step(self) -> bool:
        """Whether the present batch is the last of its step."""
        done = self.batch_number + 1
        return done % self.settings.accumulate_batches == 0 or done == self.steps_per_epoch

    def _class_weights(self) -> Tensor | None:
        if self.settings.class_weights == "none":
            return None
        targets = np.asarray(self.fit_split.targets[self.rows])
        return torch.from_numpy(class_weights(targets)).to(self.device)

    @property
    def batch_size(self) -> int:
        """At most the number of rows; of several processes each has equally many."""
        most = min(self.settings.batch_size, len(self.rows))
        if most < self.world.size:
            raise SettingsError(
                f"{self.world.size} processes cannot share batches of {most} images; start fewer,"
                " or give a larger --batch-size"
            )
        return most // self.world.size * self.world.size

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches: a last one of a few rows would upset batch norm."""
        return len(self.rows) // self.batch_size

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * self.settings.epochs


def predict_all(
    network: nn.Module,
    images: Inputs,
    precision: Precision | None = None,
    world: World = ALONE,
    *,
    side: int | None = None,
) -> tuple[Floats, Floats]:
    """Logits N x C and embeddings N x D of all inputs, in evaluation mode, float32.

    Images larger than `side` px are shrunk to it, where one is given. The processes of a `world`
    take a part each, and all get the whole. Raises `TrainingError` when memory is out.
    """
    precision = precision or Precision()
    device = next(network.parameters()).device
    network.eval()
    rows = world.part(np.arange(len(images)))
    batch_size = evaluation_batch(images, device.type)
    # Made once: small arrays that stay between large ones that go would leave holes in the heap.
    parts: list[Floats] = []
    with torch.inference_mode(), precision.autocast(device), _no_room_for(batch_size, images):
        for start in range(0, len(rows), batch_size):
            chunk = torch.from_numpy(copy_rows(images, rows[start : start + batch_size]))
            inputs = chunk.to(device)
            if side is not None and side < inputs.shape[1]:
                inputs = shrink(inputs, side)
            found = [output.float().cpu().numpy() for output in network(inputs)]
            parts = parts or [np.empty((len(rows), its.shape[1]), np.float32) for its in found]
            for part, its in zip(parts, found, strict=True):
                part[start : start + batch_size] = its
    joined = [world.join(part, len(images), device) for part in parts]
    return joined[0], joined[1]


def evaluation_batch(images: Inputs, device: str) -> int:
    """How many rows are predicted at once.

    >>> evaluation_batch(np.empty((9, 28, 28, 3), np.uint8), "cpu")
    500
    >>> evaluation_batch(np.empty((9, 224, 224, 3), np.uint8), "cpu")
    10
    >>> evaluation_batch(np.empty((9, 224, 224, 3), np.uint8), "cuda")
    83
    """
    if images.ndim == 2:  # features
        return _EVALUATION_BATCH
    pixels = int(images.shape[1] * images.shape[2])
    most = _EVALUATION_PIXELS.get(device, _EVALUATION_PIXELS["cpu"])
    return max(1, min(_EVALUATION_BATCH, most // pixels))


def _optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; weight decay on kernels and matrices alone.

    Fused: one pass over the weights instead of several, which small batches of large networks feel.
    """
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
        return torch.optim.AdamW(split, lr=settings.learning_rate, fused=True)
    return torch.optim.SGD(
        split, lr=settings.learning_rate, momentum=0.9, nesterov=True, fused=True
    )


@contextmanager
def _random_state(device: torch.device, settings: TrainingSettings) -> Iterator[None]:
    """Seeded inside; the caller's random state and determinism come back after it."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        torch.use_deterministic_algorithms(settings.deterministic or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextmanager
def memory_error(trainer: Trainer) -> Iterator[None]:
    """Say which batch size to try when the device's memory is out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        half = max(1, trainer.batch_size // 2)
        raise TrainingError(
            f"out of memory on {trainer.device} with batches of {trainer.batch_size} images; try"
            f" --batch-size {half}, with --accumulate-batches"
            f" {2 * trainer.settings.accumulate_batches} for steps of the same size"
        ) from error


@contextmanager
def _no_room_for(batch_size: int, images: Inputs) -> Iterator[None]:
    """Nothing that is trained is in the way here: only smaller images need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory predicting {batch_size} inputs of {images.shape[1:]} at once; try a"
            " smaller --size, or --device cpu"
        ) from error


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)
