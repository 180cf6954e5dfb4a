"""Logits -> calibrated probabilities -> labels (possibly none). numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Task = Literal["single", "multi"]
FloatArray = NDArray[np.float32]


class Calibration(BaseModel):
    """How logits become probabilities.

    `temperature`: softmax(logits / temperature), for single-label models (Guo et al. 2017).
    `platt`: sigmoid(slope * logit + intercept) per class, for multi-label models, and for
    single-label ones with a sigmoid head (Platt 1999). `temperature and priors`:
    softmax(logits / temperature + intercept), for a class mix other than that of training: the
    intercepts are the logarithms of new share over old (Saerens et al. 2002).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["temperature", "temperature and priors", "platt"]
    temperature: float = Field(default=1.0, gt=0)
    slopes: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()


class Thresholds(BaseModel):
    """Which probabilities become labels.

    `value` is the one global threshold; None stands for a single-label model that always names
    its most probable class. `per_class` overrides it for the classes it names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    value: float | None = Field(default=None, ge=0, le=1)
    per_class: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)

    def as_array(self, classes: Sequence[str]) -> FloatArray:
        """Thresholds in class order, float32 of shape C; zeros where there is no threshold."""
        default = 0.0 if self.value is None else self.value
        return np.array([self.per_class.get(name, default) for name in classes], np.float32)


def probabilities(logits: FloatArray, calibration: Calibration, task: Task) -> FloatArray:
    """Calibrated probabilities, float32 of shape N x C, from logits of shape N x C.

    >>> uncalibrated = Calibration(method="temperature", temperature=1.0)
    >>> probabilities(np.zeros((1, 4), np.float32), uncalibrated, "single").tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    if task == "single" and calibration.method == "temperature":
        return softmax(logits / np.float32(calibration.temperature))
    if task == "single" and calibration.method == "temperature and priors":
        added = np.asarray(calibration.intercepts, np.float32)
        return softmax(logits / np.float32(calibration.temperature) + added)
    slopes = np.asarray(calibration.slopes, np.float32)
    intercepts = np.asarray(calibration.intercepts, np.float32)
    return sigmoid(logits * slopes + intercepts)


def decide(
    probabilities: FloatArray, thresholds: Thresholds, classes: Sequence[str], task: Task
) -> list[list[str]]:
    """Labels per row; an empty list means that none of the classes applies.

    >>> by_half = Thresholds(objective="macro_f1", value=0.5)
    >>> decide(np.array([[0.9, 0.6], [0.2, 0.1]], np.float32), by_half, ["cat", "dog"], "multi")
    [['cat', 'dog'], []]
    """
    accepted = probabilities >= thresholds.as_array(classes)
    if task == "multi":
        return [[classes[int(index)] for index in np.flatnonzero(row)] for row in accepted]
    best = probabilities.argmax(axis=1)
    return [[classes[index]] if accepted[row, index] else [] for row, index in enumerate(best)]


def predicted_class(
    probabilities: FloatArray, thresholds: Thresholds, classes: Sequence[str], task: Task
) -> NDArray[np.intp]:
    """Index of the predicted class, N, as `decide` labels a row; C stands for none.

    Single-label: the most probable class if it reaches its threshold. Multi-label: the most
    probable one of those that reach theirs.
    """
    accepted = probabilities >= thresholds.as_array(classes)
    ranked = probabilities if task == "single" else np.where(accepted, probabilities, -1)
    best = ranked.argmax(axis=1)
    taken = accepted[np.arange(len(best)), best]
    return np.asarray(np.where(taken, best, len(classes)))


def confidence(probabilities: FloatArray, task: Task) -> FloatArray:
    """How sure the model is, per row, float32 of shape N.

    Single-label: the largest probability. Multi-label: the smallest over classes of
    max(p, 1 - p), since a row is right only when every class is.
    """
    if task == "single":
        return np.asarray(probabilities.max(axis=1))
    return np.asarray(np.maximum(probabilities, 1 - probabilities).min(axis=1))


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis, shifted by the maximum so that it never overflows."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(logits: FloatArray) -> FloatArray:
    """Logistic function; written by tanh, which never overflows."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)
