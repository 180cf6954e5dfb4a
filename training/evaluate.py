"""What a packed model does on one split: metrics, share without a label, share flagged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import OUTLIER, Bundle, Manifest, Metric
from model.decision import Calibration, Task, Thresholds, probabilities
from model.engines import Engine, Outputs, load_engine
from model.errors import DataError
from model.images import Pixels
from model.store import ModelStore
from model.views import mean_over_views, means_the_same_mirrored
from monitoring.outlier import OutlierModel
from training.loading import LoadedSplit, load
from training.mapped import copy_rows
from training.metrics import evaluate, wilson_interval
from training.sources import open_source
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

    Single-label rows without a label (target -1) count for `flagged_rate` alone. `chances` are
    other probabilities (N x C) than those of the outputs, such as means over several views.
    """
    chances = decider.probabilities(outputs) if chances is None else chances
    flags = decider.flags(outputs)
    labelled = targets >= 0 if decider.task == "single" else np.ones(len(targets), bool)
    found = evaluate(
        chances[labelled],
        targets[labelled],
        classes=decider.classes,
        thresholds=decider.thresholds,
        task=decider.task,
    )
    found["flagged_rate"] = float(flags.mean())
    found["intervals"]["flagged_rate"] = wilson_interval(int(flags.sum()), len(flags))
    return found


def headline_metrics(found: dict[str, Any]) -> dict[str, Metric]:
    """The single figures of `assess`, for the manifest."""
    intervals = found["intervals"]
    headlines = {}
    for name, value in found.items():
        if value is None or isinstance(value, float):
            low, high = intervals.get(name) or (None, None)
            headlines[name] = Metric(value=value, low=low, high=high)
    return headlines


def evaluate_version(
    store: ModelStore,
    reference: str,
    data: str,
    split: str | None = None,
    *,
    tta: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Measure a version with the engine that serves it; see `open_version` for what is measured.

    `tta` adds the same figures under `tta`, of the mean over several views of each image.
    """
    opened = open_version(store, reference, data, split, **reading)
    manifest, decider, images = opened.bundle.manifest, opened.decider, opened.images
    engine = load_engine("openvino", opened.bundle, threads=0)
    outputs = run_engine(engine, images)
    found = {"split": opened.split, **assess(decider, outputs, opened.targets)}
    if tta:
        mirror = means_the_same_mirrored(manifest.training)
        chances = augmented_probabilities(engine, decider, images, outputs, mirror=mirror)
        found["tta"] = assess(decider, outputs, opened.targets, chances)
    return found


@dataclass(frozen=True)
class OpenedVersion:
    """A version and what it is to be measured on; targets are in the order of its classes."""

    bundle: Bundle
    decider: Decider
    split: str
    images: Pixels
    targets: NDArray[Any]


def open_version(
    store: ModelStore,
    reference: str,
    data: str,
    split: str | None = None,
    *,
    delimiter: str = " ",
    skip_bad: bool = False,
    pattern: str | None = None,
    columns: Columns | None = None,
) -> OpenedVersion:
    """A version and the rows of one `split` of the data: test, valid or all.

    On the data of its training the rows are dealt to splits as then, so that test rows stay test
    rows, and `split` None means test. On other data it means all. Raises `DataError` for classes
    that the version does not know, for a split without rows or labels, and for a split of other
    data.
    """
    bundle = store.load(store.find(reference))
    manifest = bundle.manifest
    source = open_source(
        data,
        task=manifest.task,
        delimiter=delimiter,
        pattern=pattern,
        columns=columns,
        seed=int(manifest.training.get("seed", 0)),
        skip_bad=skip_bad,
        home=store.home,
        for_training=False,
    )
    split = _split_to_use(split, source.fingerprint, manifest, data)
    loaded = load(source, manifest.input, store.home / "cache")
    images, targets = _chosen_rows(loaded, split, data)
    in_order = _to_classes_of(manifest, source.classes, targets)
    decider = Decider(
        manifest.task,
        manifest.classes,
        manifest.calibration,
        manifest.thresholds,
        OutlierModel.from_arrays(bundle.arrays(OUTLIER)),
        manifest.outlier.alpha,
    )
    return OpenedVersion(bundle, decider, split, images, in_order)


def _split_to_use(asked: str | None, fingerprint: str, manifest: Manifest, data: str) -> str:
    """Splits mean something for the very data of the training alone, whatever was added to it."""
    if fingerprint in (manifest.data.fingerprint, manifest.data.base_fingerprint):
        return asked or "test"
    if asked in ("test", "valid"):
        raise DataError(
            f"--split {asked}: {data} is not, or is no longer, what {manifest.tag} was trained on"
            f" ({manifest.data.source}), so its splits mean nothing here; use --split all"
        )
    return "all"


def _chosen_rows(
    loaded: dict[Split, LoadedSplit], split: str, data: str
) -> tuple[Pixels, NDArray[Any]]:
    wanted = {"test": [Split.TEST], "valid": [Split.VALIDATION], "all": list(Split)}[split]
    parts = [loaded[name] for name in wanted if len(loaded[name].targets)]
    if not parts:
        there = ", ".join(f"{name}: {len(part.targets)}" for name, part in loaded.items())
        raise DataError(f"{data} has no {split} images ({there}); choose another --split")
    images = np.concatenate([part.images for part in parts]) if len(parts) > 1 else parts[0].images
    return images, np.concatenate([part.targets for part in parts])


def _to_classes_of(manifest: Manifest, classes: list[str], targets: NDArray[Any]) -> NDArray[Any]:
    """Targets by the data's class order -> by the model's.

    Raises `DataError` where there is nothing to measure by.
    """
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
    index = np.array([manifest.classes.index(name) for name in classes])
    if manifest.task == "single":
        return np.where(targets >= 0, index[targets], -1)
    reordered = np.zeros((len(targets), len(manifest.classes)), targets.dtype)
    reordered[:, index] = targets
    return reordered
