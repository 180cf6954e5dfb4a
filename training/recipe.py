"""One training from data to a registered version: the steps of `plumbline train`, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from model.bundle import Bundle, DataSummary
from model.errors import TrainingError
from model.network import Network
from model.store import ModelStore, check_name
from training.baselines import (
    CLASS_PRIOR,
    LINEAR_HEAD,
    LINEAR_ON_PIXELS,
    class_prior,
    linear_on_pixels,
)
from training.callbacks import Callback
from training.checkpoint import Checkpoint, checkpoint_key, epochs_in
from training.diagnosis import diagnose, no_better, turning_epoch
from training.export import check_int8
from training.findings import Rows, Trained
from training.fine_tuning import (
    LINEAR_HEAD_KEPT,
    body_trainer,
    fine_tune,
    train_from_scratch,
)
from training.history import TrainingHistory
from training.image_sizes import image_sizes
from training.learning_rate import Sweep, find_learning_rate
from training.linear_head import WEIGHT_DECAYS
from training.loading import LoadedSplit
from training.loop import Trainer
from training.loss import metric_name
from training.never_learned import (
    NeverLearned,
    choose_left_out,
    judge_never_learned,
    without_classes,
)
from training.objectives import costs_of
from training.packing import pack
from training.preparation import Prepared, Say, prepare_training
from training.progress import ProgressBar
from training.raw_tables import FASHION_MNIST
from training.request import TrainRequest
from training.settings import TrainingSettings
from training.sources import Source
from training.splits import Split
from training.tables import Columns
from training.tracking import Tracker, open_tracker
from training.world import World, training_together

# Trainings of one request: anew with fewer epochs, and without some classes.
Part = Literal["first", "anew", "without"]
PARTS: tuple[Part, ...] = get_args(Part)


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


def run_training(
    request: TrainRequest,
    store: ModelStore,
    *,
    source: Source | None = None,
    show_progress: bool = True,
    say: Say = lambda message: None,
) -> Bundle | None:
    """Train, pack and register. Raises a `PlumblineError`; nothing is then registered.

    `source` is what `open_request` gave, where the data are open already.

    Started by torchrun, all processes train together; the first one speaks and registers, and
    the others return None.
    """
    check_name(request.name)
    if request.int8:
        check_int8()
    with training_together(str(request.knobs.get("device", "auto"))) as world:
        if not world.is_first:
            _take_part(request, store, world)
            return None
        with world.first_goes_first():
            prepared = prepare_training(
                request, store, source=source, show_progress=show_progress, say=say
            )
        tracker = open_tracker(request.track, store.home, request.name, say)
        bar = ProgressBar("training", enabled=show_progress)
        callbacks = [bar] if tracker is None else [bar, tracker]
        left_out = choose_left_out(prepared, request.leave_classes_out)
        outcome = train_network(prepared, request, store, callbacks, say)
        second = _train_without(left_out, prepared, outcome, request, store, show_progress, say)
    never_learned = None if second is None else judge_never_learned(second, prepared, left_out)
    return _register(prepared, outcome, never_learned, request, store, tracker, say)


def _take_part(request: TrainRequest, store: ModelStore, world: World) -> None:
    """What processes after the first do: the same training, in silence."""
    with world.first_goes_first():
        prepared = prepare_training(request, store, show_progress=False)
    left_out = choose_left_out(prepared, request.leave_classes_out)
    outcome = train_network(prepared, request, store, [])
    _train_without(left_out, prepared, outcome, request, store)


def _train_without(
    classes: tuple[str, ...],
    prepared: Prepared,
    outcome: Outcome,
    request: TrainRequest,
    store: ModelStore,
    show_progress: bool = False,
    say: Say = lambda message: None,
) -> Network | None:
    """A network that never saw some classes, where that was asked for and tells more."""
    if not classes:
        return None
    if outcome.kept == LINEAR_HEAD_KEPT:
        say(
            "no second training: only the head was fitted, so the score without a class is what a"
            " network would give that never learned it"
        )
        return None
    say(f"training a second time without {', '.join(classes)}")
    without = without_classes(prepared, classes)
    # As long as the first, and fine-tuned as it is.
    settings = replace(prepared.settings, epochs=len(outcome.history.epochs))
    request = replace(request, keep_fine_tuned=True)
    saving = _checkpoint(without, settings, request, store, say, part="without")
    bar = ProgressBar("training without", enabled=show_progress)
    try:
        return _train_once(without, settings, request, store, [bar], saving).network
    except TrainingError as error:  # the first training is none the worse for it
        say(f"the second training ended early, and nothing is judged by it: {error}")
        return None


def _register(
    prepared: Prepared,
    outcome: Outcome,
    never_learned: NeverLearned | None,
    request: TrainRequest,
    store: ModelStore,
    tracker: Tracker | None,
    say: Say,
) -> Bundle:
    """Tell how it went, and make a version of it."""
    source, splits, history = prepared.source, prepared.splits, outcome.history
    say(
        f"kept: {outcome.kept}; trained in {history.precision}:"
        f" validation {history.metric_name} {history.metric:.4f}"
    )
    sentences = diagnose(history, outcome.baselines)
    if outcome.kept == LINEAR_HEAD_KEPT and outcome.whole_history is not None:
        sentences.append(no_better(outcome.whole_history))
    for sentence in sentences:
        say(sentence)
    trained = Trained(
        name=request.name,
        task=source.task,
        none_allowed=source.task == "multi" or request.none_allowed,
        classes=tuple(source.classes),
        architecture=prepared.architecture,
        network=outcome.network,
        input=prepared.spec,
        **{split.value: _rows(splits[split]) for split in Split},
        data=_summary(request, source, splits),
        settings={
            **_settings_of_kept(outcome).as_dict(),
            "weights": prepared.weights or "none",
            "kept": outcome.kept,
            "precision": history.precision,
            "baselines": outcome.baselines,
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
        },
        curves={**_curves(history), "diagnosis": sentences},
        alpha=request.alpha,
        seed=request.seed,
        none_loss=request.none_loss,
        foreign=prepared.foreign,
        head=outcome.settings.head,
        is_body_frozen=outcome.kept == LINEAR_HEAD_KEPT,
        head_weight_decay=outcome.head_weight_decay,
        objective=prepared.objective,
        per_class_thresholds=request.per_class_thresholds is not False,
        intended_use=request.intended_use.strip(),
        image_sizes={
            split.value: image_sizes(source, splits[split].names)
            for split in (Split.VALIDATION, Split.TEST)
        },
        int8=request.int8,
        never_learned=never_learned,
    )
    bundle = pack(trained, store, say)
    for part in PARTS:
        _checkpoint_path(store, request.name, part).unlink(missing_ok=True)
    if tracker is not None:
        measured = bundle.manifest.metrics.items()
        metrics = {name: its.value for name, its in measured if its.value is not None}
        tracker.registered(bundle.manifest.tag, bundle.manifest.metrics_split, metrics)
        say(f"tracked: {tracker.shown_by}")
    say(bundle.manifest.outlier.statement)
    return bundle


def sweep_learning_rate(
    request: TrainRequest,
    store: ModelStore,
    *,
    lowest: float,
    highest: float,
    steps: int,
    show_progress: bool = True,
) -> Sweep:
    """The sweep of `plumbline lr-find`, on the network that `run_training` would train."""
    prepared = prepare_training(request, store, show_progress=show_progress)
    network, settings = prepared.network(store), prepared.settings
    data = prepared.splits[Split.FIT], prepared.splits[Split.VALIDATION]
    task = prepared.source.task
    if prepared.weights is None:
        trainer = Trainer(network, prepared.fit, data[1], settings, task)
    else:
        head_alone = replace(settings, epochs=0)
        fine_tune(network, *data, head_alone, task, folder=store.home / "cache")
        trainer = body_trainer(network, prepared.fit, data[1], settings, task)
    return find_learning_rate(trainer, lowest=lowest, highest=highest, steps=steps)


def train_network(
    prepared: Prepared,
    request: TrainRequest,
    store: ModelStore,
    callbacks: Sequence[Callback],
    say: Say = lambda message: None,
) -> Outcome:
    """Train; anew with fewer epochs where validation loss turned and that was asked for."""
    baselines = _baselines(prepared, say)
    saving = _checkpoint(prepared, prepared.settings, request, store, say)
    outcome = _train_once(prepared, prepared.settings, request, store, callbacks, saving)
    if request.retrain_to_overfit_point and outcome.whole_history is not None:
        turned = turning_epoch(outcome.whole_history)
        if turned:
            before = outcome.whole_history.metric
            outcome = _train_to(turned, before, prepared, request, store, callbacks, say)
    return replace(outcome, baselines={**baselines, **outcome.baselines})


def _train_to(
    epochs: int,
    before: float,
    prepared: Prepared,
    request: TrainRequest,
    store: ModelStore,
    callbacks: Sequence[Callback],
    say: Say,
) -> Outcome:
    """Train anew with so many epochs; `before` is the metric of the training it replaces."""
    say(f"validation loss turned after epoch {epochs}: training anew with that many")
    settings = replace(prepared.settings, epochs=epochs)
    saving = _checkpoint(prepared, settings, request, store, say, part="anew")
    outcome = _train_once(prepared, settings, request, store, callbacks, saving)
    whole = outcome.whole_history or outcome.history
    name = whole.metric_name
    say(f"with {epochs} epochs: validation {name} {whole.metric:.4f}, before {before:.4f}")
    return outcome


def _baselines(prepared: Prepared, say: Say) -> dict[str, float]:
    """What the network has to beat: told before it is trained."""
    fit, validation = (prepared.splits[its] for its in (Split.FIT, Split.VALIDATION))
    task = prepared.source.task
    found = {CLASS_PRIOR: class_prior(fit, validation, task)}
    if prepared.weights is None:
        found[LINEAR_ON_PIXELS] = linear_on_pixels(
            fit, validation, task, seed=prepared.seed, device=prepared.settings.device
        )
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    say(f"simple first, validation {metric_name(task)}: {told}")
    return found


def _train_once(
    prepared: Prepared,
    settings: TrainingSettings,
    request: TrainRequest,
    store: ModelStore,
    callbacks: Sequence[Callback],
    saving: Checkpoint,
) -> Outcome:
    network = prepared.network(store)
    data = prepared.splits[Split.FIT], prepared.splits[Split.VALIDATION]
    task = prepared.source.task
    if prepared.weights is None:
        taking_part = [*callbacks, saving]
        history = train_from_scratch(network, prepared.fit, data[1], settings, task, taking_part)
        kept = "all layers, from scratch"
        return Outcome(network, history, history, kept, settings, {})
    tuned = fine_tune(
        network,
        *data,
        settings,
        task,
        callbacks,
        body_callbacks=[saving],
        keep_fine_tuned=request.keep_fine_tuned,
        body_fit=prepared.fit,
        folder=saving.path.parent,
    )
    # The linear head is no baseline of itself.
    simple = {LINEAR_HEAD: tuned.head_history.metric} if tuned.kept != LINEAR_HEAD_KEPT else {}
    return Outcome(
        network,
        tuned.history,
        tuned.body_history,
        tuned.kept,
        settings,
        simple,
        tuned.head_weight_decay,
    )


def _checkpoint(
    prepared: Prepared,
    settings: TrainingSettings,
    request: TrainRequest,
    store: ModelStore,
    say: Say,
    *,
    part: Part = "first",
) -> Checkpoint:
    """After every epoch below the home folder; gone when the version is registered.

    A training that follows the first has a file of its own.
    """
    path = _checkpoint_path(store, request.name, part)
    parts = (prepared.architecture, prepared.weights, prepared.spec, prepared.source.task)
    trained_on = (prepared.source.fingerprint, *prepared.source.classes)
    key = checkpoint_key(*trained_on, *parts, sorted(settings.as_dict().items()))
    done = epochs_in(path, key)
    if done and not request.resume:
        say(
            f"an interrupted training like this one reached epoch {done} of {settings.epochs};"
            " this one starts anew (--resume would go on from there)"
        )
    if request.resume and not done and part == "first":
        say("there is no interrupted training like this one to resume: starting anew")
    return Checkpoint(path, key, resume=request.resume and done > 0, say=say)


def _checkpoint_path(store: ModelStore, name: str, part: Part) -> Path:
    # No model is named with a plus.
    suffix = "" if part == "first" else f"+{part}"
    return store.home / "checkpoints" / f"{name}{suffix}.safetensors"


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


def _rows(split: LoadedSplit) -> Rows:
    return Rows(split.images, split.targets, tuple(split.names))


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
