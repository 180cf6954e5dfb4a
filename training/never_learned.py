"""A second training that never sees some classes, to see what the model makes of such images.

The outlier score can be fitted anew without a class, which costs nothing, but a network that was
trained on the class has made room for it in its embedding, and that flatters. So on request
(`--leave-classes-out`) the same recipe is trained once more without some classes, and the score of
every embedding and detector is measured on their validation images. The choice between those then
rests on images that are foreign in earnest, though they come from the same cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import Metric
from model.embedding import PENULTIMATE
from model.errors import SettingsError
from model.network import Network
from model.whole_embedding import WholeEmbedding
from monitoring.outlier import BANK_LIMIT, NEIGHBOURS, OutlierModel
from training.baseline_detectors import fit_baselines
from training.export import run_network
from training.loading import LoadedSplit
from training.mapped import ChosenRows
from training.outlier_choice import detectors_for, embedding_choices, measured_auroc
from training.preparation import Prepared
from training.splits import Split

LEAST_CLASSES_KEPT = 2


@dataclass(frozen=True)
class NeverLearned:
    """AUROC on images of classes that a network was never trained on.

    `auroc` by embedding and detector; `images` of those classes, against `others` of validation.
    """

    classes: tuple[str, ...]
    images: int
    others: int
    auroc: Mapping[str, Mapping[str, Metric]]


def choose_left_out(prepared: Prepared, count: int | None) -> tuple[str, ...]:
    """Classes to leave out, drawn by the seed of the training, in their order; none for None.

    Raises `SettingsError` where too few classes, or too few images, would remain.
    """
    if count is None:
        return ()
    classes = prepared.source.classes
    most = len(classes) - LEAST_CLASSES_KEPT
    if count > most:
        raise SettingsError(
            f"--leave-classes-out {count}: of {len(classes)} classes at least"
            f" {LEAST_CLASSES_KEPT} must remain; valid is 1 to {most}"
            if most > 0
            else f"--leave-classes-out {count}: with {len(classes)} classes none can be left out"
        )
    drawn = np.random.default_rng(prepared.seed).permutation(len(classes))[:count]
    chosen = tuple(classes[index] for index in np.sort(drawn))
    numbers = _numbers(prepared, chosen)
    for split, least in ((Split.FIT, 2 * NEIGHBOURS), (Split.VALIDATION, 1)):
        targets = prepared.splits[split].targets
        has = _has_any(targets, numbers)
        others = int((~has & _is_labelled(targets)).sum())
        if others < least or (split is Split.VALIDATION and not has.any()):
            raise SettingsError(
                f"--leave-classes-out {count}: without {', '.join(chosen)} the {split.value} split"
                f" has {others} images, and {int(has.sum())} of those classes, which is"
                " too few; leave fewer out"
            )
    return chosen


def without_classes(prepared: Prepared, classes: tuple[str, ...]) -> Prepared:
    """The same start without images of these classes, and without their labels."""
    numbers = _numbers(prepared, classes)
    kept = [name for name in prepared.source.classes if name not in classes]
    splits = {split: _without(rows, numbers) for split, rows in prepared.splits.items()}
    presized = None if prepared.presized is None else _without(prepared.presized, numbers)
    source = replace(prepared.source, classes=kept, notes=[])
    return replace(prepared, source=source, splits=splits, presized=presized)


def judge_never_learned(
    network: Network, prepared: Prepared, classes: tuple[str, ...]
) -> NeverLearned:
    """What each outlier score makes of validation images of `classes`.

    `network` was trained on `without_classes(prepared, classes)`.
    """
    numbers = _numbers(prepared, classes)
    whole = WholeEmbedding(network)
    fit, validation = (prepared.splits[its] for its in (Split.FIT, Split.VALIDATION))
    rows = np.flatnonzero(~_has_any(fit.targets, numbers) & _is_labelled(fit.targets))
    chosen = np.random.default_rng(prepared.seed).permutation(rows)[: 2 * BANK_LIMIT]
    known = run_network(whole, _images(fit, np.sort(chosen)))
    has = _has_any(validation.targets, numbers)
    foreign = run_network(whole, _images(validation, np.flatnonzero(has)))
    others = run_network(
        whole, _images(validation, np.flatnonzero(~has & _is_labelled(validation.targets)))
    )
    found: dict[str, dict[str, Metric]] = {}
    choices = embedding_choices(whole.parts, known.embedding)
    for name, choice in choices.items():
        fitted = OutlierModel.fit(
            known.embedding,
            known.logits,
            choice=choice,
            scaled_on=(others.embedding, others.logits),
            seed=prepared.seed,
        )
        for detector in detectors_for(fit.targets):
            model = fitted.with_detector(detector)
            strange, usual = (
                model.score(its.embedding, its.logits)[0] for its in (foreign, others)
            )
            found.setdefault(name, {})[detector] = measured_auroc(strange, usual)
    read = choices[PENULTIMATE]
    targets = np.asarray(fit.targets[np.sort(chosen)])
    baselines = fit_baselines(read.of(known.embedding), known.logits, targets)
    for name, score in baselines.items():
        strange, usual = (score(read.of(its.embedding), its.logits) for its in (foreign, others))
        found[PENULTIMATE][name] = measured_auroc(strange, usual)
    return NeverLearned(classes, len(foreign.logits), len(others.logits), found)


def _numbers(prepared: Prepared, classes: tuple[str, ...]) -> list[int]:
    return [prepared.source.classes.index(name) for name in classes]


def _has_any(targets: NDArray[Any], numbers: list[int]) -> NDArray[np.bool_]:
    """Rows of any of these classes, N."""
    if targets.ndim == 2:
        return np.asarray(targets[:, numbers].any(axis=1))
    return np.isin(targets, numbers)


def _is_labelled(targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows of the domain: of single-label data those with a label, N."""
    return np.ones(len(targets), bool) if targets.ndim == 2 else np.asarray(targets >= 0)


def _without(rows: LoadedSplit, numbers: list[int]) -> LoadedSplit:
    kept = np.flatnonzero(~_has_any(rows.targets, numbers))
    targets = rows.targets[kept]
    if targets.ndim == 2:
        targets = np.delete(targets, numbers, axis=1)
    else:
        # Each number goes down by how many of those left out stood before it; -1 stays.
        targets = targets - np.searchsorted(np.sort(numbers), targets)
    return LoadedSplit(_images(rows, kept), targets, [rows.names[row] for row in kept])


def _images(rows: LoadedSplit, chosen: NDArray[np.intp]) -> Any:
    return ChosenRows(rows.images, chosen)
