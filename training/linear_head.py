"""A linear head on frozen features: the simple model that comes first, and is done in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.decision import Task
from training.callbacks import Callback
from training.history import TrainingHistory
from training.loop import Arrays, Trainer
from training.loss import Floats, Targets
from training.mapped import blocks
from training.settings import HeadName, TrainingSettings

# From the strongest on. Features of a few hundred images are more than there are images, and a head
# that is hardly held back then learns them by heart.
WEIGHT_DECAYS = (10.0, 3.0, 1.0, 0.05)

_EPOCHS = 40
_RATE = 3e-3


class LinearHead(nn.Module):
    """A linear classifier on features that stay as they are, but for `mean` and `scale`, D each."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        feature_count: int,
        class_count: int,
        mean: Floats | None = None,
        scale: Floats | None = None,
    ) -> None:
        super().__init__()
        zeros, ones = torch.zeros(feature_count), torch.ones(feature_count)
        self.register_buffer("mean", zeros if mean is None else torch.from_numpy(mean))
        self.register_buffer("scale", ones if scale is None else torch.from_numpy(scale))
        self.linear = nn.Linear(feature_count, class_count)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits N x C and the features N x D themselves."""
        return self.linear((features - self.mean) / self.scale), features


@dataclass(frozen=True)
class FittedHead:
    """A linear head for raw features: logits = features @ weight.T + bias."""

    weight: Tensor  # C x D
    bias: Tensor  # C
    history: TrainingHistory
    weight_decay: float

    @property
    def loss(self) -> float:
        """On validation, after the last epoch."""
        return self.history.epochs[-1].validation_loss


def choose_head(
    features: Floats,
    targets: Targets,
    validation_features: Floats,
    validation_targets: Targets,
    **options: Any,
) -> FittedHead:
    """The head of the weight decay that gives the least loss on validation; see `fit_head`.

    Weaker ones are tried as long as they are better.
    """
    data = features, targets, validation_features, validation_targets
    best = fit_head(*data, weight_decay=WEIGHT_DECAYS[0], **options)
    for weight_decay in WEIGHT_DECAYS[1:]:
        head = fit_head(*data, weight_decay=weight_decay, **options)
        if not head.loss < best.loss:
            break
        best = head
    return best


def fit_head(
    features: Floats,
    targets: Targets,
    validation_features: Floats,
    validation_targets: Targets,
    *,
    class_count: int,
    task: Task,
    weight_decay: float,
    seed: int = 0,
    device: str = "auto",
    deterministic: bool = False,
    head: HeadName = "softmax",
    learn_none: bool = False,
    callbacks: Sequence[Callback] = (),
) -> FittedHead:
    """Train a linear head on frozen features N x D.

    Features are standardised for training and the scales folded into the weights after it.
    """
    mean, scale = _mean_and_scale(features)
    settings = TrainingSettings(
        epochs=_EPOCHS,
        batch_size=min(256, max(8, len(features) // 16)),
        learning_rate=_RATE,
        optimizer="adamw",
        weight_decay=weight_decay,
        label_smoothing=0.0,
        head=head,
        learn_none=learn_none,
        precision="fp32",
        device=device,
        deterministic=deterministic,
        seed=seed,
    )
    linear_head = LinearHead(features.shape[1], class_count, mean, scale)
    with torch.no_grad():
        linear_head.linear.bias.copy_(prior_logits(targets, class_count, task, head))
    history = Trainer(
        linear_head,
        Arrays(features, targets),
        Arrays(validation_features, validation_targets),
        settings,
        task,
        callbacks=callbacks,
    ).fit()
    linear = linear_head.linear
    weight = linear.weight.detach().cpu() / torch.from_numpy(scale)
    bias = linear.bias.detach().cpu() - weight @ torch.from_numpy(mean)
    return FittedHead(weight, bias, history, weight_decay)


def prior_logits(targets: Targets, class_count: int, task: Task, head: HeadName) -> Tensor:
    """What a model that knows only how frequent the classes are would say, C.

    Rare labels lie logits away from zero, further than a bias walks in a few hundred steps.

    >>> prior_logits(np.array([0, 0, 0, 1]), 2, "single", "sigmoid").exp().round(decimals=2)
    tensor([2.3300, 0.4300])
    """
    rows = len(targets)
    if targets.ndim == 2:
        counts = np.asarray(targets.sum(axis=0), np.float64)
    else:
        counts = np.bincount(targets[targets >= 0], minlength=class_count).astype(np.float64)
    share = (counts + 0.5) / (rows + 1)
    by_itself = task == "multi" or head == "sigmoid"
    logits = np.log(share / (1 - share)) if by_itself else np.log(share)
    return torch.from_numpy(logits.astype(np.float32))


def _mean_and_scale(features: Floats) -> tuple[Floats, Floats]:
    """Per feature, D each; block by block, since the features may lie in a file."""
    count, width = features.shape
    total, squares = np.zeros(width), np.zeros(width)
    for block in blocks(features):
        total += block.sum(axis=0, dtype=np.float64)
        squares += (block.astype(np.float64) ** 2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(0, squares / count - mean**2))
    return mean.astype(np.float32), (deviation + 1e-6).astype(np.float32)
