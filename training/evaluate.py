"""What a packed model does on one split: metrics, share without a label, share flagged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import OUTLIER, Bundle, Manifest, Metric
from model.conformal_sets import ConformalSets, load_sets, no_sets
from model.decision import Calibration, Task, Thresholds, probabilities
from model.engines import Engine, Outputs, load_engine
from model.errors import DataError
from model.images import Pixels
from model.store import ModelStore
from model.views import mean_over_views, means_the_same_mirrored
from monitoring.outlier import OutlierModel
from training.conformal import coverage_by_class, measure_sets
from training.loading import LoadedSplit, load
from training.mapped import copy_rows
from training.metrics import evaluate, has_label, wilson_interval
from training.raw_tables import FASHION_MNIST
from training.sources import Source, open_source
from training.splits import Split
from training.tables import Columns

BATCH = 64


@dataclass(frozen=True)
class Decider:
    """Everything between the outputs of an engine and a decision."""

    task: Task
    classes: tuple[str, ...]
    calibration: Calibration
    thresholds: Thresholds
    outlier: OutlierModel
    alpha: float

    def probabilities(self, outputs: Outputs) -> NDArray[np.float32]:
        """Calibrated probabilities, N x C."""
        return probabilities(outputs.logits, self.calibration, self.task)

    def with_thresholds(self, thresholds: Thresholds, alpha: float | None = None) -> Decider:
        """The same with other thresholds, and another rate of the flag where one is given."""
        return replace(self, thresholds=thresholds, alpha=self.alpha if alpha is None else alpha)

    def scores(self, outputs: Outputs) -> NDArray[np.float32]:
        """Outlier scores, N."""
        return self.outlier.score(outputs.embedding, outputs.logits)[0]

    def label_names(self, targets: NDArray[Any]) -> list[list[str]]:
        """True labels as class names, in index order."""
        if self.task == "single":
            return [[] if index < 0 else [self.classes[index]] for index in targets]
        return [[self.classes[int(index)] for index in np.flatnonzero(row)] for row in targets]

    def flags(self, outputs: Outputs) -> NDArray[np.bool_]:
        """Whether each row is flagged as out of domain, N."""
        return np.asarray(self.outlier.p_value(self.scores(outputs)) <= self.alpha)


def run_engine(engine: Engine, images: Pixels) -> Outputs:
    """Run all images (N x H x W x 3, memory-mapped or not) through an engine in batches."""
    logits, embedding = [], []
    for start in range(0, len(images), BATCH):
        outputs = engine.run(copy_rows(images, slice(start, start + BATCH)))
        logits.append(outputs.logits)
        embedding.append(outputs.embedding)
    return Outputs(np.concatenate(logits), np.concatenate(embedding))


def augmented_probabilities(
    engine: Engine, decider: Decider, images: Pixels, outputs: Outputs, *, mirror: bool
) -> NDArray[np.float32]:
    """Mean probabilities (N x C) over several views; `outputs` of the images as they are."""

    def chances_of(view: Pixels) -> NDArray[np.float32]:
        return decider.probabilities(engine.run(view))

    plain = decider.probabilities(outputs)
    parts = []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        batch = copy_rows(images, rows)
        parts.append(mean_over_views(plain[rows], batch, chances_of, mirror=mirror))
    return np.concatenate(parts)


def assess(
    decider: Decider,
    outputs: Outputs,
    targets: NDArray[Any],
    chances: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Metrics with 95 % intervals; `flagged_rate` beside those of `training.metrics`.

    Single-label rows without a label (target -1) count for none of them. `chances` are other
    probabilities (N x C) than those of the outputs, such as means over several views.
    """
    chances = decider.probabilities(outputs) if chances is None else chances
    labelled = has_label(targets, decider.task)
    flags = decider.flags(outputs)[labelled]
    found = evaluate(
        chances[labelled],
        targets[labelled],
        classes=decider.classes,
        thresholds=decider.thresholds,
        task=decider.task,
    )
    found["flagged_rate"] = float(flags.mean()) if len(flags) else None
    found["intervals"]["flagged_rate"] = wilson_interval(int(flags.sum()), len(flags))
    return found


def headline_metrics(found: dict[str, Any]) -> dict[str, Metric]:
    """The single figures of `assess`, for the manifest."""
    intervals = found["intervals"]
    headlines = {}
    for name, value in found.items():
        if value is None or isinstance(value, float):
            low, high = intervals.get(name) or (None, None)
            headlines[name] = Metric(value=value, low=low, high=high, count=found["count"])
    return headlines


@dataclass(frozen=True)
class Reopened:
    """A version, and labelled images to measure it on.

    `splits` are all of the data, in the order of the version's classes; `split` names those to
    look at: test, valid, or all of them. Where the data are `own`, they are those of its training,
    dealt to splits as then.
    """

    bundle: Bundle
    source: Source
    splits: Mapping[Split, LoadedSplit]
    split: str
    own: bool

    @property
    def manifest(self) -> Manifest:
        """Of the version."""
        return self.bundle.manifest

    @property
    def chosen(self) -> dict[Split, LoadedSplit]:
        """The splits to look at, those without rows left out."""
        return {name: self.splits[name] for name in _SPLITS[self.split] if self.splits[name]}

    def engine(self) -> Engine:
        """The one that serves on a CPU; torch where that did not pass its gate."""
        passed = any(gate.passed for gate in self.manifest.gates_of("openvino"))
        return load_engine("openvino" if passed else "torch", self.bundle, threads=0)

    def decider(self) -> Decider:
        """What the version makes of outputs."""
        return Decider(
            self.manifest.task,
            self.manifest.classes,
            self.manifest.calibration,
            self.manifest.thresholds,
            OutlierModel.from_arrays(self.bundle.arrays(OUTLIER)),
            self.manifest.outlier.alpha,
        )


_SPLITS = {"test": (Split.TEST,), "valid": (Split.VALIDATION,), "all": tuple(Split)}


def evaluate_version(
    store: ModelStore,
    reference: str,
    data: str,
    split: str | None = None,
    *,
    coverage: float | None = None,
    tta: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Measure a version with the engine that serves it.

    `tta` adds the same figures under `tta`, of the mean over several views of each image. With a
    `coverage` its prediction sets are measured too: `prediction_sets` holds a `SetsMeasure`
    and the realised coverage `by_class`. For `split`, `reading` and errors see `reopen`; raises
    `CoverageError` for a coverage that the version cannot promise.
    """
    sets = None
    if coverage is not None:
        sets = _sets_for(store.load(store.find(reference)), coverage)
    opened = reopen(store, reference, data, split, **reading)
    engine = opened.engine()
    parts = list(opened.chosen.values())
    by_part = [run_engine(engine, part.images) for part in parts]
    outputs = joined(by_part)
    targets = np.concatenate([part.targets for part in parts])
    decider = opened.decider()
    found = {"split": opened.split, **assess(decider, outputs, targets)}
    if tta:
        mirror = means_the_same_mirrored(opened.manifest.training)
        chances = np.concatenate(
            [
                augmented_probabilities(engine, decider, part.images, its, mirror=mirror)
                for part, its in zip(parts, by_part, strict=True)
            ]
        )
        found["tta"] = assess(decider, outputs, targets, chances)
    if sets is not None and coverage is not None:
        found["prediction_sets"] = _assess_sets(decider, sets, outputs, targets, coverage)
    return found


def _sets_for(bundle: Bundle, coverage: float) -> ConformalSets:
    """The sets of a version, known to have this coverage: before minutes are spent on images."""
    sets = load_sets(bundle)
    if sets is None:
        raise no_sets(bundle)
    sets.threshold(coverage)
    return sets


def _assess_sets(
    decider: Decider,
    sets: ConformalSets,
    outputs: Outputs,
    targets: NDArray[Any],
    coverage: float,
) -> dict[str, Any]:
    chances, task = decider.probabilities(outputs), decider.task
    measured = measure_sets(sets, chances, targets, task, coverage)
    by_class = coverage_by_class(sets, chances, targets, decider.classes, task, coverage)
    return {
        **measured.model_dump(),
        "by_class": {name: metric.model_dump() for name, metric in by_class.items()},
    }


def joined(outputs: list[Outputs]) -> Outputs:
    """Outputs one after the other."""
    return Outputs(*(np.concatenate(parts) for parts in zip(*outputs, strict=True)))


def reopen(
    store: ModelStore,
    reference: str,
    data: str | None = None,
    split: str | None = None,
    *,
    delimiter: str = " ",
    skip_bad: bool = False,
    pattern: str | None = None,
    columns: Columns | None = None,
    clean: str | None = None,
) -> Reopened:
    """Open a version and labelled images; `split` is test, valid or all.

    `data` None takes those of its training, read and cleaned as then. On them the rows are dealt
    to splits as then, so that test rows stay test rows, and `split` None means test. On other data
    it means all. Raises `DataError` for data of its training that are gone or changed, classes
    that the version does not know, a split without rows or labels, and a split of other data.
    """
    bundle = store.load(store.find(reference))
    manifest = bundle.manifest
    reading: dict[str, Any] = {
        "delimiter": delimiter,
        "skip_bad": skip_bad,
        "pattern": pattern,
        "columns": columns,
        "clean": clean,
    }
    place = data
    if place is None:
        place = _place_of_training(manifest)
        reading |= _reading_of_training(manifest) if clean is None else {}
    source = open_source(
        place,
        task=manifest.task,
        seed=int(manifest.training.get("seed", 0)),
        home=store.home,
        for_training=False,
        **reading,
    )
    own = is_data_of(manifest, source)
    if data is None and not own:
        raise DataError(
            f"{place} is not what it was when {manifest.tag} was trained on it (its fingerprint is"
            f" {source.base_fingerprint[:12]}, was {_fingerprint(manifest)[:12]}), so its splits"
            f" mean nothing here; put the old data back, or look at all of these with"
            f" --data {place} --split all"
        )
    split = _split_to_use(split, own, manifest, place)
    loaded = load(source, manifest.input, store.home / "cache")
    _refuse_unmeasurable(manifest, source.classes, _targets_of(loaded, split, place))
    splits = {
        name: replace(its, targets=_by_classes_of(manifest, source.classes, its.targets))
        for name, its in loaded.items()
    }
    return Reopened(bundle, source, splits, split, own)


def is_data_of(manifest: Manifest, source: Source) -> bool:
    """Whether these are the very data of the training, whatever was added or cleaned away."""
    those = {source.fingerprint, source.base_fingerprint}
    return bool(those & {manifest.data.fingerprint, manifest.data.base_fingerprint})


def _fingerprint(manifest: Manifest) -> str:
    return manifest.data.base_fingerprint or manifest.data.fingerprint


def _place_of_training(manifest: Manifest) -> str:
    place = manifest.data.source
    if place != FASHION_MNIST and not Path(place).exists():
        raise DataError(
            f"the data that {manifest.tag} was trained on, {place}, are gone; put them back, or"
            " give others with --data"
        )
    return place


def _reading_of_training(manifest: Manifest) -> dict[str, Any]:
    """How the data were read; images that were added from production are left out."""
    settings = manifest.training
    return {
        "delimiter": str(settings.get("delimiter") or " "),
        "skip_bad": bool(settings.get("skip_bad")),
        "pattern": settings.get("pattern"),
        "columns": Columns.of(settings.get("columns") or {}),
        "clean": settings.get("clean"),
    }


def _split_to_use(asked: str | None, own: bool, manifest: Manifest, data: str) -> str:
    """Splits mean something for the very data of the training alone."""
    if own:
        return asked or "test"
    if asked in ("test", "valid"):
        raise DataError(
            f"--split {asked}: {data} is not, or is no longer, what {manifest.tag} was trained on"
            f" ({manifest.data.source}), so its splits mean nothing here; use --split all"
        )
    return "all"


def _targets_of(loaded: Mapping[Split, LoadedSplit], split: str, data: str) -> NDArray[Any]:
    parts = [loaded[name].targets for name in _SPLITS[split] if len(loaded[name])]
    if not parts:
        there = ", ".join(f"{name}: {len(part)}" for name, part in loaded.items())
        raise DataError(f"{data} has no {split} images ({there}); choose another --split")
    return np.concatenate(parts)


def _refuse_unmeasurable(manifest: Manifest, classes: list[str], targets: NDArray[Any]) -> None:
    """Raises `DataError` where there is nothing to measure by, or a class that is not known."""
    if not classes or (manifest.task == "single" and not (targets >= 0).any()):
        raise DataError(
            f"none of the {len(targets)} images has a label to measure {manifest.tag} by;"
            f" label some of them: {', '.join(manifest.classes)}"
        )
    unknown = [name for name in classes if name not in manifest.classes]
    if unknown:
        raise DataError(
            f"the data has classes that {manifest.tag} does not know: {', '.join(unknown[:5])};"
            f" it knows {', '.join(manifest.classes)}"
        )


def _by_classes_of(manifest: Manifest, classes: list[str], targets: NDArray[Any]) -> NDArray[Any]:
    """Targets by the data's class order -> by the model's."""
    index = np.array([manifest.classes.index(name) for name in classes])
    if manifest.task == "single":
        return np.where(targets >= 0, index[targets], -1)
    reordered = np.zeros((len(targets), len(manifest.classes)), targets.dtype)
    reordered[:, index] = targets
    return reordered
