"""A trained network becomes a registered version: what `plumbline train` does last."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import Bundle, DataSummary, Metric
from model.decision import Task
from model.network import Network
from model.store import ModelStore
from training.diagnosis import diagnose, no_better
from training.findings import Rows, Trained
from training.fine_tuning import LINEAR_HEAD_KEPT
from training.history import TrainingHistory
from training.image_sizes import image_sizes
from training.linear_head import WEIGHT_DECAYS
from training.loading import LoadedSplit
from training.loss import trainable_rows
from training.metrics import has_label, share_of
from training.never_learned import NeverLearned
from training.objectives import costs_of
from training.packing import pack
from training.preparation import Prepared, Say
from training.raw_tables import FASHION_MNIST
from training.request import TrainRequest
from training.settings import TrainingSettings
from training.sources import Source
from training.splits import Split
from training.tables import Columns
from training.tracking import Tracker


@dataclass(frozen=True)
class Outcome:
    """A trained network, and how it came about."""

    network: Network
    history: TrainingHistory
    whole_history: TrainingHistory | None  # of all layers, where they were trained, kept or not
    kept: str  # of `FineTuned`, or all layers
    settings: TrainingSettings
    baselines: dict[str, float]  # validation metrics of simpler models
    head_weight_decay: float = WEIGHT_DECAYS[0]  # where the head was fitted by itself


def register(
    prepared: Prepared,
    outcome: Outcome,
    never_learned: NeverLearned | None,
    request: TrainRequest,
    store: ModelStore,
    tracker: Tracker | None,
    say: Say,
) -> Bundle:
    """Tell how it went, and make a version of it."""
    sentences = _tell(outcome, say)
    trained = _trained(prepared, outcome, sentences, never_learned, request)
    bundle = pack(trained, store, say)
    if tracker is not None:
        measured = bundle.manifest.metrics.items()
        metrics = {name: its.value for name, its in measured if its.value is not None}
        tracker.registered(bundle.manifest.tag, bundle.manifest.metrics_split, metrics)
        say(f"tracked: {tracker.shown_by}")
    say(bundle.manifest.outlier.statement)
    return bundle


def _tell(outcome: Outcome, say: Say) -> list[str]:
    """Say what was kept and how it went; the sentences go into the report too."""
    history = outcome.history
    say(
        f"kept: {outcome.kept}; trained in {history.precision}:"
        f" validation {history.metric_name} {history.metric:.4f}"
    )
    sentences = diagnose(history, outcome.baselines)
    if outcome.kept == LINEAR_HEAD_KEPT and outcome.whole_history is not None:
        sentences.append(no_better(outcome.whole_history))
    for sentence in sentences:
        say(sentence)
    return sentences


def _trained(
    prepared: Prepared,
    outcome: Outcome,
    sentences: list[str],
    never_learned: NeverLearned | None,
    request: TrainRequest,
) -> Trained:
    """All that is known of a training, for packing."""
    source, splits = prepared.source, prepared.splits
    rows = {split: _rows(splits[split], split, source.task) for split in Split}
    return Trained(
        name=request.name,
        task=source.task,
        none_allowed=source.task == "multi" or request.none_allowed,
        classes=tuple(source.classes),
        architecture=prepared.architecture,
        network=outcome.network,
        input=prepared.spec,
        **{split.value: its for split, its in rows.items()},
        data=_summary(request, source, splits),
        settings=_settings(prepared, outcome, never_learned, request),
        curves={**_curves(outcome.history), "diagnosis": sentences},
        alpha=request.alpha,
        seed=request.seed,
        none_loss=request.none_loss,
        foreign=prepared.foreign,
        head=outcome.settings.head,
        learn_none=outcome.settings.learn_none,
        is_body_frozen=outcome.kept == LINEAR_HEAD_KEPT,
        head_weight_decay=outcome.head_weight_decay,
        objective=prepared.objective,
        per_class_thresholds=request.per_class_thresholds is not False,
        intended_use=request.intended_use.strip(),
        image_sizes={
            split.value: image_sizes(source, rows[split].names)
            for split in (Split.VALIDATION, Split.TEST)
        },
        int8=request.int8,
        never_learned=never_learned,
    )


def _settings(
    prepared: Prepared,
    outcome: Outcome,
    never_learned: NeverLearned | None,
    request: TrainRequest,
) -> dict[str, Any]:
    """What the version was trained with; a retraining reads it."""
    return {
        **_settings_of_kept(outcome).as_dict(),
        "weights": prepared.weights or "none",
        "kept": outcome.kept,
        "precision": outcome.history.precision,
        "baselines": {
            name: _measured(value, prepared) for name, value in outcome.baselines.items()
        },
        "delimiter": request.delimiter,
        "pattern": request.pattern,
        "columns": asdict(request.columns or Columns()),
        "skip_bad": request.skip_bad,
        "more": None if request.more is None else _place(request.more),
        "negatives": None if request.negatives is None else _place(request.negatives),
        "foreign": None if request.foreign is None else _place(request.foreign),
        "none_loss": request.none_loss,
        **_threshold_settings(prepared, request),
        "clean": None if request.clean is None else _place(request.clean),
        "int8": request.int8,
        "never_learned": [] if never_learned is None else list(never_learned.classes),
    }


def _measured(value: float, prepared: Prepared) -> dict[str, Any]:
    """A simpler model's validation metric with its 95 % interval, count and split.

    Of several labels it is a mean average precision, whose interval is not known: low and high are
    None. In versions made before there were intervals the number stands alone.
    """
    targets = prepared.splits[Split.VALIDATION].targets
    count = len(trainable_rows(targets))
    is_share = prepared.source.task == "single"
    its = share_of(round(value * count), count) if is_share else Metric(value=value, count=count)
    return {**its.model_dump(), "split": Split.VALIDATION.value}


def _settings_of_kept(outcome: Outcome) -> TrainingSettings:
    """What the model that was kept was trained with, which may be the linear head's."""
    settings, history = outcome.settings, outcome.history
    if outcome.kept == LINEAR_HEAD_KEPT:
        rate = float(f"{max(history.learning_rates):.3g}")
        return replace(
            settings,
            epochs=len(history.epochs),
            learning_rate=rate,
            optimizer="adamw",
            weight_decay=outcome.head_weight_decay,
        )
    if outcome.kept == "fine-tuned":
        lowest = settings.body_learning_rate or settings.learning_rate / 100
        return replace(settings, body_learning_rate=lowest, freeze_batch_norm=True)
    return settings


def _threshold_settings(prepared: Prepared, request: TrainRequest) -> dict[str, Any]:
    """What a retraining needs, to tune for the same."""
    source, objective = prepared.source, prepared.objective
    if source.task == "single":
        return {}
    return {
        "objective": objective.name,
        "costs": costs_of(objective, source.classes),
        "per_class_thresholds": request.per_class_thresholds is not False,
    }


def _rows(loaded: LoadedSplit, split: Split, task: Task) -> Rows:
    """Those of a split; images of none of the classes take part in fit and validation alone.

    No promise is calibrated on them, and no figure reported on them.
    """
    rows = Rows(loaded.images, loaded.targets, tuple(loaded.names))
    labelled = has_label(loaded.targets, task)
    if split in (Split.FIT, Split.VALIDATION) or labelled.all():
        return rows
    return rows.take(np.flatnonzero(labelled))


def _summary(
    request: TrainRequest, source: Source, splits: dict[Split, LoadedSplit]
) -> DataSummary:
    return DataSummary(
        source=_place(request.data),
        fingerprint=source.fingerprint,
        base_fingerprint=source.base_fingerprint,
        images={split.value: len(splits[split].targets) for split in Split},
        notes=tuple(source.notes),
    )


def _place(data: str) -> str:
    """Where the data are, from wherever one asks later."""
    return data if data == FASHION_MNIST else str(Path(data).absolute())


def _curves(history: TrainingHistory) -> dict[str, Any]:
    """The learning curves, as the report wants them."""
    steps = max(1, round(len(history.losses) / max(1, len(history.epochs))))
    return {
        "step_losses": np.asarray(history.losses),
        "learning_rates": np.asarray(history.learning_rates),
        "epochs": [
            {
                "step": epoch.epoch * steps,
                "train_loss": epoch.train_loss,
                "valid_loss": epoch.validation_loss,
                "metric": epoch.validation_metric,
                "seconds": epoch.seconds,
            }
            for epoch in history.epochs
        ],
        "metric_name": history.metric_name,
    }
