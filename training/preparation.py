"""What a training starts from: the request, data decoded, architecture and settings chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.bundle import NETWORK
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
from model.store import ModelStore
from training.loading import NONE_OF_THEM, LoadedSplit, load, load_presized
from training.progress import DecodingBar
from training.settings import TrainingSettings
from training.sources import Source, open_source
from training.splits import Split
from training.tables import Columns
from training.tracking import TrackerName

Say = Callable[[str], None]

DEFAULT_ALPHA = 0.01
TINY_SIDE_PIXELS = 64
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
