"""Is it training properly? The book's question, answered in words from the curves (chapter 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from training.history import EpochRecord, TrainingHistory

_TURNED_SHARE = 0.02  # that validation loss has to rise above its least to have turned
_STILL_RISING = 0.003  # gain of the metric in the last epoch, from which more would help
_HARDLY_FELL = 0.05  # share that training loss has to fall by


def turning_epoch(history: TrainingHistory) -> int | None:
    """The epoch after which validation loss rose for good, or None where it did not.

    One that is within 2 % of the least at the end has not turned.
    """
    losses = [epoch.validation_loss for epoch in history.epochs]
    if not losses or not all(map(math.isfinite, losses)):
        return None
    least = min(losses)
    turned = losses[-1] > least * (1 + _TURNED_SHARE)
    return 1 + losses.index(least) if turned else None


def diagnose(history: TrainingHistory, baselines: Mapping[str, float]) -> list[str]:
    """Sentences on one training; `baselines` are validation metrics of simpler models."""
    if not history.epochs:
        return []
    return [
        _on_training_loss(history),
        _on_validation_loss(history),
        *_on_the_end(history.epochs, history.metric_name),
        *(_on_baseline(history, name, value) for name, value in baselines.items()),
    ]


def no_better(fine_tuned: TrainingHistory) -> str:
    """A sentence on a fine-tuned network that was not kept before the linear head."""
    turned = turning_epoch(fine_tuned)
    where = f"; its validation loss turned after epoch {turned}" if turned else ""
    return (
        f"The fine-tuned network was no better ({fine_tuned.metric_name} {fine_tuned.metric:.3f}"
        f"{where}): the linear head was kept."
    )


def _on_training_loss(history: TrainingHistory) -> str:
    first = history.losses[0] if history.losses else history.epochs[0].train_loss
    last = history.epochs[-1].train_loss
    if last > first * (1 - _HARDLY_FELL):
        return (
            f"It is not training: training loss went from {first:.3f} to {last:.3f}. Find a rate"
            " with plumbline lr-find, and look at a few items with plumbline data show."
        )
    return f"It is training: training loss fell from {first:.3f} to {last:.3f}."


def _on_validation_loss(history: TrainingHistory) -> str:
    losses = [epoch.validation_loss for epoch in history.epochs]
    turned = turning_epoch(history)
    if turned is None:
        return (
            f"Validation loss was {losses[-1]:.3f} at the end and had not turned upwards: no sign"
            " of overfitting."
        )
    return (
        f"Validation loss was least, {min(losses):.3f}, after epoch {turned} of {len(losses)} and"
        f" {losses[-1]:.3f} at the end: from there on the model grew surer of its mistakes. Train"
        f" anew with --epochs {turned} (--retrain-to-overfit-point does) rather than keep a model"
        " from the middle of the cycle, and compare the metric."
    )


def _on_the_end(epochs: list[EpochRecord], name: str) -> list[str]:
    if len(epochs) < 2:
        return []
    gain = epochs[-1].validation_metric - epochs[-2].validation_metric
    if gain <= _STILL_RISING:
        return []
    return [f"Validation {name} still rose by {gain:.3f} in the last epoch: more may help."]


def _on_baseline(history: TrainingHistory, name: str, value: float) -> str:
    metric = history.metric_name
    if history.metric > value:
        return f"It beats {name} ({metric} {value:.3f}) by {history.metric - value:.3f}."
    return (
        f"It does not beat {name} ({metric} {value:.3f} against {history.metric:.3f}): the simple"
        " model is the better one here."
    )
