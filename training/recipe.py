"""One training from data to a registered version: the steps of `plumbline train`, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import NETWORK, Bundle, DataSummary
from model.decision import Task
from model.errors import SettingsError
from model.images import InputSpec
from model.network import (
    PACKAGE_ARCHITECTURE,
    SMALL_RESNET,
    Network,
    create_network,
    default_input_spec,
    load_body_weights,
    load_package_weights,
)
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
from training.diagnosis import diagnose, turning_epoch
from training.fine_tuning import (
    LINEAR_HEAD_KEPT,
    body_trainer,
    fine_tune,
    train_from_scratch,
)
from training.history import TrainingHistory
from training.learning_rate import Sweep, find_learning_rate
from training.loading import NONE_OF_THEM, LoadedSplit, load, load_presized
from training.loop import Trainer
from training.loss import metric_name
from training.packing import Rows, Trained, pack
from training.progress import DecodingBar, ProgressBar
from training.settings import TrainingSettings
from training.sources import FASHION_MNIST, Source, open_source
from training.splits import Split
from training.tables import Columns
from training.tracking import TensorBoard, TrackerName, run_folder

Say = Callable[[str], None]

DEFAULT_ALPHA = 0.01
TINY_SIDE_PIXELS = 64
_SIZED_FILES = 20
_FINE_TUNING = TrainingSettings(
    epochs=3,
    batch_size=32,
    learning_rate=1e-3,
    optimizer="adamw",
    weight_decay=0.01,
    flip=True,
    presize=1.75,
)


@dataclass(frozen=True)
class TrainRequest:
    """What `plumbline train` was asked for; None leaves the choice to the recipe."""

    data: str
    name: str
    task: Task | None = None
    none_allowed: bool = False
    architecture: str | None = None
    weights: str | None = None  # timm, package, a safetensors file, or a version
    size: int | None = None  # px
    epochs: int | None = None
    learning_rate: float | None = None  # the highest
    body_learning_rate: float | None = None  # the lowest
    batch_size: int | None = None  # images
    seed: int = 0
    alpha: float = DEFAULT_ALPHA
    delimiter: str = " "
    pattern: str | None = None  # finds the label in file names
    columns: Columns | None = None  # of a table; None: by their usual names
    skip_bad: bool = False
    more: str | None = None  # CSV or Parquet of labelled images to add
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of TrainingSettings, by name
    resume: bool = False  # go on from the checkpoint of an interrupted training
    keep_fine_tuned: bool = False  # also where the linear head is better
    retrain_to_overfit_point: bool = False
    track: TrackerName = "tensorboard"


@dataclass(frozen=True)
class Prepared:
    """All that a training starts from."""

    source: Source
    architecture: str
    weights: str | None
    spec: InputSpec
    splits: dict[Split, LoadedSplit]
    presized: LoadedSplit | None  # the fit rows, larger, where they are to be warped
    settings: TrainingSettings
    seed: int

    @property
    def fit(self) -> LoadedSplit:
        """What the network is trained on."""
        return self.presized or self.splits[Split.FIT]

    def network(self, store: ModelStore) -> Network:
        """A fresh network with its starting weights; equal each time."""
        made = create_network(
            self.architecture,
            len(self.source.classes),
            self.spec,
            pretrained=self.weights == "timm",
            seed=self.seed,
        )
        _fill_body(made, self.weights, store)
        return made


def prepare_training(
    request: TrainRequest,
    store: ModelStore,
    *,
    show_progress: bool = True,
    say: Say = lambda message: None,
) -> Prepared:
    """Open and decode the data, and choose what the request leaves open."""
    source = _open(request, store)
    say(f"{len(source)} images of {len(source.classes)} classes, {source.task}-label")
    for note in source.notes:
        say(note)
    architecture, weights = choose_architecture(request, source)
    settings = _settings(request, pretrained=weights is not None)
    if weights is None and settings.epochs == 0:
        raise SettingsError("--epochs 0 trains the head alone, which needs pretrained --weights")
    spec = _input_spec(architecture, request.size)
    with DecodingBar(enabled=show_progress) as decoding:
        splits = load(source, spec, store.home / "cache", progress=decoding)
    presized = _presized(source, spec, settings, store, show_progress)
    source.notes.extend(_unlabelled_note(request, source, splits))
    return Prepared(source, architecture, weights, spec, splits, presized, settings, request.seed)


def choose_pipeline(
    request: TrainRequest, store: ModelStore
) -> tuple[Source, InputSpec, TrainingSettings]:
    """What images would pass through, without decoding any: for a look at single items.

    Unusable files are left out, and classes may be missing. Raises `DataError`.
    """
    source = _open(replace(request, skip_bad=True), store, for_training=False)
    architecture, weights = choose_architecture(request, source)
    settings = _settings(request, pretrained=weights is not None)
    return source, _input_spec(architecture, request.size), settings


def _open(request: TrainRequest, store: ModelStore, *, for_training: bool = True) -> Source:
    return open_source(
        request.data,
        task=request.task,
        delimiter=request.delimiter,
        seed=request.seed,
        skip_bad=request.skip_bad,
        home=store.home,
        for_training=for_training,
        more=None if request.more is None else Path(request.more),
        pattern=request.pattern,
        columns=request.columns,
    )


def _presized(
    source: Source,
    spec: InputSpec,
    settings: TrainingSettings,
    store: ModelStore,
    show_progress: bool,
) -> LoadedSplit | None:
    """The first step of presizing, where the settings ask for it."""
    if not settings.presize or not settings.epochs:
        return None
    side = math.ceil(settings.presize * spec.size)
    cache = store.home / "cache"
    with DecodingBar("presizing", enabled=show_progress) as bar:
        return load_presized(source, side, spec, cache, seed=settings.seed, progress=bar)


def run_training(
    request: TrainRequest,
    store: ModelStore,
    *,
    show_progress: bool = True,
    say: Say = lambda message: None,
) -> Bundle:
    """Train, pack and register. Raises a `PlumblineError`; nothing is then registered."""
    check_name(request.name)
    prepared = prepare_training(request, store, show_progress=show_progress, say=say)
    bar = ProgressBar("training", enabled=show_progress)
    tracker = None
    if request.track == "tensorboard":
        tracker = TensorBoard(run_folder(store.home, request.name), say)
    callbacks = [bar] if tracker is None else [bar, tracker]
    outcome = _train(prepared, request, store, callbacks, say)
    source, splits, history = prepared.source, prepared.splits, outcome.history
    say(
        f"kept: {outcome.kept}; trained in {history.precision}:"
        f" validation {history.metric_name} {history.metric:.4f}"
    )
    sentences = diagnose(history, outcome.baselines)
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
        },
        curves={**_curves(history), "diagnosis": sentences},
        alpha=request.alpha,
        seed=request.seed,
    )
    bundle = pack(trained, store, say)
    outcome.checkpoint.unlink(missing_ok=True)
    if tracker is not None:
        measured = bundle.manifest.metrics.items()
        metrics = {name: its.value for name, its in measured if its.value is not None}
        tracker.registered(bundle.manifest.tag, bundle.manifest.metrics_split, metrics)
        say(f"tracked: tensorboard --logdir {store.home / 'runs'}")
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
        fine_tune(network, *data, replace(settings, epochs=0), task)
        trainer = body_trainer(network, prepared.fit, data[1], settings, task)
    return find_learning_rate(trainer, lowest=lowest, highest=highest, steps=steps)


def choose_architecture(request: TrainRequest, source: Source) -> tuple[str, str | None]:
    """Architecture and weights, where the request leaves them open.

    Tiny images get a small residual network from scratch; anything else the pretrained
    EfficientNet-Lite0, since transfer beats a fresh start on all but very large data.
    """
    if request.architecture is not None:
        return request.architecture, request.weights
    if request.weights is not None:
        return PACKAGE_ARCHITECTURE, request.weights
    if source.reader.largest_side() <= TINY_SIDE_PIXELS:
        return SMALL_RESNET, None
    return PACKAGE_ARCHITECTURE, "package"


def _input_spec(architecture: str, size: int | None) -> InputSpec:
    spec = default_input_spec(architecture)
    return spec if size is None else InputSpec(**{**spec.model_dump(), "size": size})


def _fill_body(network: Network, weights: str | None, store: ModelStore) -> None:
    if weights is None or weights == "timm":
        return
    if weights == "package":
        load_package_weights(network)
    elif Path(weights).is_file():
        load_body_weights(network, Path(weights))
    elif ":" in weights:
        load_body_weights(network, store.load(store.find(weights)).path(NETWORK))
    else:
        raise SettingsError(
            f"--weights {weights!r}: no such file; valid are timm, package, a safetensors file,"
            " or a model version (name:YYYYMMDD-8hex, name:champion, name:latest)"
        )


def _settings(request: TrainRequest, *, pretrained: bool) -> TrainingSettings:
    base = _FINE_TUNING if pretrained else TrainingSettings()
    given = {
        name: value
        for name in ("epochs", "learning_rate", "body_learning_rate", "batch_size", "seed")
        if (value := getattr(request, name)) is not None
    }
    return replace(base, **given, **request.knobs)


@dataclass(frozen=True)
class _Outcome:
    network: Network
    history: TrainingHistory
    kept: str  # of `FineTuned`, or all layers
    settings: TrainingSettings
    baselines: dict[str, float]  # validation metrics of simpler models
    checkpoint: Path


def _train(
    prepared: Prepared,
    request: TrainRequest,
    store: ModelStore,
    callbacks: Sequence[Callback],
    say: Say,
) -> _Outcome:
    """Train; anew with fewer epochs where validation loss turned and that was asked for."""
    baselines = _baselines(prepared, say)
    outcome = _train_once(prepared, prepared.settings, request, store, callbacks, say)
    turned = turning_epoch(outcome.history)
    if request.retrain_to_overfit_point and turned and outcome.kept != LINEAR_HEAD_KEPT:
        say(f"validation loss turned after epoch {turned}: training anew with that many")
        settings = replace(prepared.settings, epochs=turned)
        outcome = _train_once(prepared, settings, request, store, callbacks, say)
    return replace(outcome, baselines={**baselines, **outcome.baselines})


def _baselines(prepared: Prepared, say: Say) -> dict[str, float]:
    """What the network has to beat: told before it is trained."""
    fit, validation = (prepared.splits[its] for its in (Split.FIT, Split.VALIDATION))
    task = prepared.source.task
    found = {CLASS_PRIOR: class_prior(fit, validation, task)}
    if prepared.weights is None:
        found[LINEAR_ON_PIXELS] = linear_on_pixels(fit, validation, task, prepared.seed)
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    say(f"simple first, validation {metric_name(task)}: {told}")
    return found


def _train_once(
    prepared: Prepared,
    settings: TrainingSettings,
    request: TrainRequest,
    store: ModelStore,
    callbacks: Sequence[Callback],
    say: Say,
) -> _Outcome:
    network = prepared.network(store)
    data = prepared.splits[Split.FIT], prepared.splits[Split.VALIDATION]
    task = prepared.source.task
    saving = _checkpoint(prepared, settings, request, store, say)
    if prepared.weights is None:
        taking_part = [*callbacks, saving]
        history = train_from_scratch(network, prepared.fit, data[1], settings, task, taking_part)
        kept = "all layers, from scratch"
        return _Outcome(network, history, kept, settings, {}, saving.path)
    tuned = fine_tune(
        network,
        *data,
        settings,
        task,
        callbacks,
        body_callbacks=[saving],
        keep_fine_tuned=request.keep_fine_tuned,
        body_fit=prepared.fit,
    )
    # The linear head is no baseline of itself.
    simple = {LINEAR_HEAD: tuned.head_history.metric} if tuned.kept != LINEAR_HEAD_KEPT else {}
    return _Outcome(network, tuned.history, tuned.kept, settings, simple, saving.path)


def _checkpoint(
    prepared: Prepared,
    settings: TrainingSettings,
    request: TrainRequest,
    store: ModelStore,
    say: Say,
) -> Checkpoint:
    """After every epoch below the home folder; gone when the version is registered."""
    path = store.home / "checkpoints" / f"{request.name}.safetensors"
    parts = (prepared.architecture, prepared.weights, prepared.spec, prepared.source.task)
    key = checkpoint_key(prepared.source.fingerprint, *parts, sorted(settings.as_dict().items()))
    done = epochs_in(path, key)
    if done and not request.resume:
        say(
            f"an interrupted training like this one reached epoch {done} of {settings.epochs};"
            " this one starts anew (--resume would go on from there)"
        )
    if request.resume and not done:
        say("there is no interrupted training like this one to resume: starting anew")
    return Checkpoint(path, key, resume=request.resume and done > 0, say=say)


def _settings_of_kept(outcome: _Outcome) -> TrainingSettings:
    """What the model that was kept was trained with, which may be the linear head's."""
    settings, history = outcome.settings, outcome.history
    if outcome.kept == LINEAR_HEAD_KEPT:
        rate = float(f"{max(history.learning_rates):.3g}")
        return replace(settings, epochs=len(history.epochs), learning_rate=rate, optimizer="adamw")
    if outcome.kept == "fine-tuned":
        lowest = settings.body_learning_rate or settings.learning_rate / 100
        return replace(settings, body_learning_rate=lowest, freeze_batch_norm=True)
    return settings


def _rows(split: LoadedSplit) -> Rows:
    return Rows(split.images, split.targets, tuple(split.names))


def _unlabelled_note(
    request: TrainRequest, source: Source, splits: dict[Split, LoadedSplit]
) -> list[str]:
    """What becomes of single-label rows without a label where "none" is no answer."""
    if source.task == "multi" or request.none_allowed:
        return []
    count = sum(int((split.targets == NONE_OF_THEM).sum()) for split in splits.values())
    if not count:
        return []
    return [f"{count} images without a label were left out of single-label training."]


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
            }
            for epoch in history.epochs
        ],
        "metric_name": history.metric_name,
    }
