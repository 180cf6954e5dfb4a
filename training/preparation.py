"""What a training starts from: data decoded, architecture and settings chosen."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from model.bundle import NETWORK
from model.errors import SettingsError
from model.images import InputSpec
from model.network import (
    PACKAGE_ARCHITECTURE,
    SMALL_RESNET,
    Network,
    check_pretrained,
    create_network,
    default_input_spec,
    has_pretrained,
    load_body_weights,
    load_package_weights,
    takes_any_size,
)
from model.store import ModelStore
from training.allocation import keep_freed_memory
from training.decoding_bar import DecodingBar
from training.loading import NONE_OF_THEM, LoadedSplit, load, load_foreign, load_presized
from training.objectives import Objective
from training.readers import Pixels
from training.request import TrainRequest, choose_objective, open_request
from training.settings import TrainingSettings
from training.sources import Source
from training.splits import Split
from training.thresholds import check_labels_differ
from training.useless_options import refuse_useless_options
from training.world import local_device

Say = Callable[[str], None]

NO_WEIGHTS = "none"
TINY_SIDE_PIXELS = 64
# Of photographs; of tiny images the defaults are.
_FROM_SCRATCH = TrainingSettings(
    batch_size=64, learning_rate=0.05, epochs=20, flip=True, presize=1.75
)
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
    objective: Objective  # of multi-label thresholds
    foreign: Pixels | None = None  # N x H x W x 3, to choose and check the outlier score by

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
    source: Source | None = None,
    show_progress: bool = True,
    say: Say = lambda message: None,
) -> Prepared:
    """Open and decode the data, and choose what the request leaves open.

    `source` is what `open_request` gave, where the data are open already.
    """
    keep_freed_memory()
    source = source or open_request(request, store.home)
    objective = choose_objective(request, source)
    say(f"{len(source)} images of {len(source.classes)} classes, {source.task}-label")
    for note in source.notes:
        say(note)
    architecture, weights = choose_architecture(request, source)
    settings = _settings(request, source, pretrained=weights is not None)
    if settings.small_epochs_share and not takes_any_size(architecture):
        raise SettingsError(
            f"--small-epochs: {architecture} takes images of one size alone; leave it out"
        )
    # Before the minutes that decoding may take.
    local_device(settings.device)
    if settings.deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _check_weights(architecture, weights)
    spec = _input_spec(architecture, weights, request.size, store)
    with DecodingBar(enabled=show_progress) as decoding:
        splits = load(source, spec, store.home / "cache", progress=decoding)
    if source.task == "multi":
        check_labels_differ(splits[Split.VALIDATION].targets)
    presized = _presized(source, spec, settings, store, show_progress)
    source.notes.extend(_unlabelled_note(request, source, splits))
    foreign = None
    if request.foreign is not None:
        foreign = load_foreign(Path(request.foreign), spec, request.seed, request.skip_bad)
    return Prepared(
        *(source, architecture, weights, spec, splits, presized, settings, request.seed),
        objective=objective,
        foreign=foreign,
    )


def choose_pipeline(
    request: TrainRequest, store: ModelStore
) -> tuple[Source, InputSpec, TrainingSettings]:
    """What images would pass through, without decoding any: for a look at single items.

    Unusable files are left out, and classes may be missing. Raises `DataError`.
    """
    lenient = replace(request, skip_bad=True)
    source = open_request(lenient, store.home, for_training=False)
    architecture, weights = choose_architecture(request, source)
    settings = _settings(request, source, pretrained=weights is not None)
    return source, _input_spec(architecture, weights, request.size, store), settings


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
    """Architecture and weights (None: from scratch), where the request leaves them open.

    Tiny images get a small residual network from scratch; anything else the pretrained
    EfficientNet-Lite0, since transfer beats a fresh start on all but very large data. An
    architecture of timm's begins with the weights that it has, but for tiny images.
    """
    tiny, wanted = are_tiny(source), request.weights
    small = tiny and wanted in (None, NO_WEIGHTS)
    architecture = request.architecture or (SMALL_RESNET if small else PACKAGE_ARCHITECTURE)
    if wanted is not None:
        return architecture, None if wanted == NO_WEIGHTS else wanted
    if tiny or not has_pretrained(architecture):
        return architecture, None
    return architecture, "package" if architecture == PACKAGE_ARCHITECTURE else "timm"


def are_tiny(source: Source) -> bool:
    """Whether a small network from scratch is for them, where nothing else is asked."""
    return source.reader.largest_side() <= TINY_SIDE_PIXELS


def _input_spec(
    architecture: str, weights: str | None, size: int | None, store: ModelStore
) -> InputSpec:
    """That of the version whose weights these are, else the architecture's own.

    From scratch there is no reason to crop as an architecture's weights would want it.
    """
    spec = default_input_spec(architecture)
    if weights is None:
        spec = spec.model_copy(update={"crop": 1.0})
    elif _is_version(weights):
        spec = store.load(store.find(weights)).manifest.input
    return spec if size is None else InputSpec(**{**spec.model_dump(), "size": size})


def _is_version(weights: str) -> bool:
    return ":" in weights and not Path(weights).is_file()


def _check_weights(architecture: str, weights: str | None) -> None:
    if weights == "timm":
        check_pretrained(architecture)
    elif weights not in (None, "package") and not (Path(weights).is_file() or _is_version(weights)):
        raise SettingsError(
            f"--weights {weights!r}: no such file; valid are none, timm, package, a safetensors"
            " file, or a model version (name:YYYYMMDD-8hex, name:champion, name:latest)"
        )


def _fill_body(network: Network, weights: str | None, store: ModelStore) -> None:
    if weights is None or weights == "timm":
        return
    if weights == "package":
        load_package_weights(network)
    elif Path(weights).is_file():
        load_body_weights(network, Path(weights))
    else:
        load_body_weights(network, store.load(store.find(weights)).path(NETWORK))


def _settings(request: TrainRequest, source: Source, *, pretrained: bool) -> TrainingSettings:
    """Raises `SettingsError` for options that would change nothing."""
    base = _FINE_TUNING if pretrained else _FROM_SCRATCH
    if not pretrained and are_tiny(source):
        base = TrainingSettings()
    given = {
        name: value
        for name in ("epochs", "learning_rate", "body_learning_rate", "batch_size", "seed")
        if (value := getattr(request, name)) is not None
    }
    settings = replace(base, **given, **request.knobs)
    refuse_useless_options(request, source, settings, pretrained=pretrained)
    if _learns_none(request, source):
        return replace(settings, learn_none=True)
    return settings


def _learns_none(request: TrainRequest, source: Source) -> bool:
    """Whether there are rows without a label to learn "none of the classes" from."""
    may_say_none = request.none_allowed and source.task == "single"
    return may_say_none and not all(source.labels[row] for row in source.rows(Split.FIT))


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
