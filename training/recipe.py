"""One training from data to a registered version: the steps of `plumbline train`, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from training.fine_tuning import fine_tune, train_from_scratch
from training.history import TrainingHistory
from training.loading import NONE_OF_THEM, LoadedSplit, load
from training.packing import Rows, Trained, pack
from training.progress import DecodingBar, ProgressBar
from training.settings import TrainingSettings
from training.sources import FASHION_MNIST, Source, open_source
from training.splits import Split

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
    shift_share=0.07,
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
    skip_bad: bool = False
    more: str | None = None  # CSV or Parquet of labelled images to add


def run_training(
    request: TrainRequest,
    store: ModelStore,
    *,
    show_progress: bool = True,
    say: Callable[[str], None] = lambda message: None,
) -> Bundle:
    """Train, pack and register. Raises a `PlumblineError`; nothing is then registered."""
    check_name(request.name)
    source = open_source(
        request.data,
        task=request.task,
        delimiter=request.delimiter,
        seed=request.seed,
        skip_bad=request.skip_bad,
        home=store.home,
        more=None if request.more is None else Path(request.more),
    )
    say(f"{len(source)} images of {len(source.classes)} classes, {source.task}-label")
    architecture, weights = choose_architecture(request, source)
    spec = _input_spec(architecture, request.size)
    network = create_network(
        architecture, len(source.classes), spec, pretrained=weights == "timm", seed=request.seed
    )
    _fill_body(network, weights, store)
    with DecodingBar(enabled=show_progress) as decoding:
        splits = load(source, spec, store.home / "cache", progress=decoding)
    source.notes.extend(_unlabelled_note(request, source, splits))
    settings = _settings(request, pretrained=weights is not None)
    bar = ProgressBar("training", enabled=show_progress)
    history, kept = _train(network, splits, settings, source.task, weights is not None, [bar])
    quality = f"validation {history.metric_name} {history.metric:.4f}"
    say(f"kept: {kept}; trained in {history.precision}: {quality}")
    trained = Trained(
        name=request.name,
        task=source.task,
        none_allowed=source.task == "multi" or request.none_allowed,
        classes=tuple(source.classes),
        architecture=architecture,
        network=network,
        input=spec,
        **{split.value: _rows(splits[split]) for split in Split},
        data=_summary(request, source, splits),
        settings={
            **_settings_of_kept(settings, history, kept).as_dict(),
            "weights": weights or "none",
            "kept": kept,
            "precision": history.precision,
            "delimiter": request.delimiter,
            "skip_bad": request.skip_bad,
            "more": None if request.more is None else _place(request.more),
        },
        curves=_curves(history, len(splits[Split.FIT].targets), settings),
        alpha=request.alpha,
        seed=request.seed,
    )
    bundle = pack(trained, store, say)
    say(bundle.manifest.outlier.statement)
    return bundle


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
    return replace(base, **given)


def _train(
    network: Network,
    splits: dict[Split, LoadedSplit],
    settings: TrainingSettings,
    task: Task,
    pretrained: bool,
    callbacks: Sequence[ProgressBar],
) -> tuple[TrainingHistory, str]:
    fit, validation = splits[Split.FIT], splits[Split.VALIDATION]
    if not pretrained and settings.epochs == 0:
        raise SettingsError("--epochs 0 trains the head alone, which needs pretrained --weights")
    if not pretrained:
        history = train_from_scratch(network, fit, validation, settings, task, callbacks)
        return history, "all layers, from scratch"
    tuned = fine_tune(network, fit, validation, settings, task, callbacks)
    return tuned.history, tuned.kept


def _settings_of_kept(
    settings: TrainingSettings, history: TrainingHistory, kept: str
) -> TrainingSettings:
    """What the model that was kept was trained with, which may be the linear head's."""
    if kept == "linear head":
        rate = float(f"{max(history.learning_rates):.3g}")
        return replace(settings, epochs=len(history.epochs), learning_rate=rate, optimizer="adamw")
    if kept == "fine-tuned":
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


def _curves(history: TrainingHistory, rows: int, settings: TrainingSettings) -> dict[str, Any]:
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
