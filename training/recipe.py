"""One training from data to a registered version: the steps of `plumbline train`, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from model.bundle import Bundle
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
from training.diagnosis import turning_epoch
from training.export import check_int8
from training.fine_tuning import (
    LINEAR_HEAD_KEPT,
    body_trainer,
    fine_tune,
    train_from_scratch,
)
from training.learning_rate import Sweep, find_learning_rate
from training.loop import Trainer
from training.loss import metric_name
from training.never_learned import (
    choose_left_out,
    judge_never_learned,
    without_classes,
)
from training.preparation import Prepared, Say, prepare_training
from training.progress import ProgressBar
from training.registering import Outcome, register
from training.request import TrainRequest
from training.settings import TrainingSettings
from training.sources import Source
from training.splits import Split
from training.tracking import open_tracker
from training.world import World, training_together

# Trainings of one request: anew with fewer epochs, and without some classes.
Part = Literal["first", "anew", "without"]
PARTS: tuple[Part, ...] = get_args(Part)


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
    bundle = register(prepared, outcome, never_learned, request, store, tracker, say)
    for part in PARTS:
        _checkpoint_path(store, request.name, part).unlink(missing_ok=True)
    return bundle


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
            "no second training: only the head was fitted, and it is fitted anew without each class"
            " anyway to see what the outlier score makes of classes never learned"
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
