"""Simple first: what a model has to beat, trained in seconds (fastai book, chapters 4 and 5)."""

from __future__ import annotations

import numpy as np

from model.decision import Task
from training.linear_head import choose_head
from training.loop import Samples
from training.loss import Floats, metric, trainable_rows
from training.mapped import copy_rows

CLASS_PRIOR = "the class prior"
LINEAR_ON_PIXELS = "a linear model on pixels"
LINEAR_HEAD = "a linear head on frozen features"

_MOST_ROWS = 10_000
_SIDE = 28  # px, that images are averaged down to


def class_prior(fit: Samples, validation: Samples, task: Task) -> float:
    """Validation metric of the class frequencies, the same for every image."""
    targets = np.asarray(fit.targets)[trainable_rows(fit.targets)]
    classes = targets.shape[1] if targets.ndim == 2 else _class_count(fit, validation)
    frequency = (
        targets.mean(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)
    )
    constant = np.tile(np.asarray(frequency, np.float32), (len(validation.targets), 1))
    return metric(constant, np.asarray(validation.targets), task)


def linear_on_pixels(
    fit: Samples, validation: Samples, task: Task, *, seed: int, device: str = "auto"
) -> float:
    """Validation metric of a linear model on small copies of at most 10,000 images."""
    rows = trainable_rows(fit.targets)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:_MOST_ROWS])
    targets = np.asarray(fit.targets[rows])
    classes = targets.shape[1] if targets.ndim == 2 else _class_count(fit, validation)
    head = choose_head(
        small_grey(fit, rows),
        targets,
        small_grey(validation, np.arange(len(validation.targets))),
        np.asarray(validation.targets),
        class_count=classes,
        task=task,
        seed=seed,
        device=device,
    )
    return head.history.metric


def _class_count(fit: Samples, validation: Samples) -> int:
    return 1 + int(max(np.max(fit.targets), np.max(validation.targets)))


def small_grey(samples: Samples, rows: np.ndarray) -> Floats:
    """Grey copies as features N x pixels, float32 0 to 1, block by block averaged."""
    side = samples.images.shape[1]
    factor = -(-side // _SIDE)
    kept = side // factor * factor
    features = np.empty((len(rows), (kept // factor) ** 2), np.float32)
    for start in range(0, len(rows), 500):
        images = copy_rows(samples.images, rows[start : start + 500])
        images = images[:, :kept, :kept].mean(axis=3) / 255
        blocks = images.reshape(len(images), kept // factor, factor, kept // factor, factor)
        features[start : start + 500] = blocks.mean(axis=(2, 4)).reshape(len(images), -1)
    return features
