"""The two recipes on the loop: from scratch, and from pretrained weights, simple first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.decision import Task
from model.errors import SettingsError
from model.network import Network
from training.callbacks import Callback
from training.history import TrainingHistory
from training.linear_head import FittedHead, choose_head
from training.loop import Samples, Trainer, predict_all
from training.mapped import ChosenRows, KeepRows, file_of_rows
from training.schedule import discriminative_rates
from training.settings import BODY_GROUPS, TrainingSettings
from training.world import current_world, local_device

LINEAR_HEAD_KEPT = "linear head"

_EMBEDDED_IMAGES = 4_000  # before their features are put away


@dataclass(frozen=True)
class FineTuned:
    """Outcome of `fine_tune`: both candidates, and which of them the network now is."""

    head_history: TrainingHistory
    body_history: TrainingHistory | None  # None when no epochs were asked for
    kept: str  # "linear head" or "fine-tuned"
    head_weight_decay: float

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


def fine_tune(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback] = (),
    *,
    body_callbacks: Sequence[Callback] = (),
    keep_fine_tuned: bool = False,
    body_fit: Samples | None = None,
    folder: Path | None = None,
) -> FineTuned:
    """Fit the head on frozen features, then train all layers; keep the better on validation.

    `body_callbacks` take part in the second training alone, on `body_fit` where that is given
    (presized images of the same rows). `keep_fine_tuned` keeps its outcome
    also where it is no better. The features of the images to fit on lie in a file in `folder`
    while the head is fitted (None: the system's folder for temporary files).

    Batch norm statistics stay frozen. The body's rates climb from
    `settings.body_learning_rate` (a hundredth of the head's where it is None) to the head's.
    """
    network.to(local_device(settings.device))
    with file_of_rows(folder) as keep:
        head = _fit_head_of(network, fit, validation, settings, task, callbacks, keep)
    if settings.epochs == 0:
        return FineTuned(head.history, None, LINEAR_HEAD_KEPT, head.weight_decay)
    frozen = copy.deepcopy(network.state_dict())
    trainer = body_trainer(
        network, body_fit or fit, validation, settings, task, [*callbacks, *body_callbacks]
    )
    history = trainer.fit()
    if keep_fine_tuned or history.metric > head.history.metric:
        return FineTuned(head.history, history, "fine-tuned", head.weight_decay)
    network.load_state_dict(frozen)
    return FineTuned(head.history, history, LINEAR_HEAD_KEPT, head.weight_decay)


def body_trainer(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Trains all layers at discriminative rates, batch norm statistics frozen.

    The first `settings.frozen_groups` groups of layers stay as they are.
    """
    lowest = settings.body_learning_rate or settings.learning_rate / 100
    groups = layer_groups(network, lowest, settings.learning_rate)
    for group in groups[: settings.frozen_groups]:
        for parameter in group["params"]:
            parameter.requires_grad_(False)
    return Trainer(
        network,
        fit,
        validation,
        replace(settings, freeze_batch_norm=True),
        task,
        callbacks=callbacks,
        groups=groups[settings.frozen_groups :],
    )


def layer_groups(network: Network, lowest: float, highest: float) -> list[dict[str, Any]]:
    """The body's first and second half and the head, as optimizer groups with peak rates."""
    body = network.body_parameters()
    middle = len(body) // BODY_GROUPS
    parts = [body[:middle], body[middle:], network.head_parameters()]
    rates = discriminative_rates(lowest, highest, len(parts))
    return [{"params": part, "peak": rate} for part, rate in zip(parts, rates, strict=True)]


def _fit_head_of(
    network: Network,
    fit: Samples,
    validation: Samples,
    settings: TrainingSettings,
    task: Task,
    callbacks: Sequence[Callback],
    keep: KeepRows,
) -> FittedHead:
    """Embed both splits once, fit the head on that, and put it into the network.

    `keep` puts the many features to fit on where they need no memory.
    """
    world = current_world()
    parts: Iterator[Any] = (ChosenRows(fit.images, rows) for rows in _parts_of(len(fit.images)))
    features = keep(predict_all(network, part, world=world)[1] for part in parts)
    _, validation_features = predict_all(network, validation.images, world=world)
    head = choose_head(
        features,
        fit.targets,
        validation_features,
        validation.targets,
        class_count=network.head.out_features,
        task=task,
        seed=settings.seed,
        device=settings.device,
        deterministic=settings.deterministic,
        head=settings.head,
        learn_none=settings.learn_none,
        callbacks=callbacks,
    )
    with torch.no_grad():
        network.head.weight.copy_(head.weight)
        network.head.bias.copy_(head.bias)
    return head


def _parts_of(count: int) -> Iterator[NDArray[np.int64]]:
    """Of about equal length: none is so short that one of several processes had nothing of it."""
    yield from np.array_split(np.arange(count), -(-count // _EMBEDDED_IMAGES))
