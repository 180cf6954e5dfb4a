"""Loss and validation metric of the two tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.decision import Task
from model.errors import DataError
from training.loading import NONE_OF_THEM
from training.mixing import soft_targets
from training.settings import HeadName

Targets = NDArray[Any]  # int64 N (single) or float32 N x C (multi)
Floats = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]

MOST_POSITIVE_WEIGHT = 20.0


def loss_for(
    task: Task,
    label_smoothing: float,
    weights: Tensor | None = None,
    *,
    head: HeadName = "softmax",
    learn_none: bool = False,
) -> Loss:
    """Cross-entropy for one label, binary cross-entropy per class for several.

    Targets are class indices N, or shares N x C from 0 to 1 (several labels, mixed images).
    `weights`, one per class, make mistakes on rare classes dearer. The gradient of cross-entropy
    by the logits is softmax minus one-hot.

    A `head` of "sigmoid" takes binary cross-entropy per class for one label too. To `learn_none`,
    rows of no class (-1) count: by a sigmoid as negatives of every class, by softmax as equally
    likely to be of any (Hendrycks et al. 2019, "Deep Anomaly Detection with Outlier Exposure").
    """
    if task == "multi":
        return partial(functional.binary_cross_entropy_with_logits, pos_weight=weights)
    if head == "sigmoid":
        return partial(_one_against_the_rest, weights=weights)
    smoothed = partial(functional.cross_entropy, weight=weights, label_smoothing=label_smoothing)
    return partial(_none_as_any, loss=smoothed) if learn_none else smoothed


def _one_against_the_rest(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Summed over classes, so that a row counts as much as by cross-entropy."""
    shares = soft_targets(targets, logits.shape[1])
    each = functional.binary_cross_entropy_with_logits(logits, shares, weights)
    return each * logits.shape[1]


def _none_as_any(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    shares = soft_targets(targets, logits.shape[1])
    missing = 1 - shares.sum(dim=1, keepdim=True)  # 1 for rows of no class, 0 for others
    return loss(logits, shares + missing / logits.shape[1])


def class_weights(targets: Targets) -> Floats:
    """A weight per class, float32 C, that makes rare classes count as much as frequent ones.

    Single-label: rows / (classes x rows of the class), as scikit-learn's "balanced". Multi-label:
    negatives per positive, at most MOST_POSITIVE_WEIGHT.

    >>> class_weights(np.array([0, 0, 0, 1])).tolist()[1]
    2.0
    """
    if targets.ndim == 2:
        positives = targets.sum(axis=0)
        ratio = (len(targets) - positives) / np.maximum(positives, 1)
        bounded = np.clip(ratio, 1 / MOST_POSITIVE_WEIGHT, MOST_POSITIVE_WEIGHT)
        return np.asarray(bounded, np.float32)
    targets = targets[targets != NONE_OF_THEM]
    counts = np.bincount(targets)
    return np.asarray(len(targets) / (len(counts) * np.maximum(counts, 1)), np.float32)


def row_weights(targets: Targets) -> NDArray[np.float64]:
    """Chance of every row to be drawn, N, so that each class is drawn about equally often.

    A multi-label row goes by its rarest label; rows without one are a class of their own.
    """
    if targets.ndim == 2:
        counts = targets.sum(axis=0)
        frequency = np.where(targets > 0, counts, np.inf).min(axis=1, initial=np.inf)
        frequency = np.where(np.isinf(frequency), np.isinf(frequency).sum(), frequency)
    else:
        each = targets + 1  # none of the classes is one of its own
        frequency = np.bincount(each)[each]
    chance = 1.0 / np.maximum(frequency, 1)
    return np.asarray(chance / chance.sum(), np.float64)


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
