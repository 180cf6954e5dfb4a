"""Rows of data that a person should look at: labels that are likely wrong, and copies.

What `plumbline clean` lists. With a version, its own answers judge the labels of rows that it did
not learn, and heads fitted without them those that it did (`training.label_errors`); without one,
linear heads on features of the pretrained network, or on pixels where the images are tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.network import (
    PACKAGE_ARCHITECTURE,
    create_network,
    default_input_spec,
    load_package_weights,
)
from training.baselines import small_grey
from training.cleaning import DELETE, Suspect
from training.data_check import Progress, exact_duplicates, look, near_duplicates
from training.evaluate import Reopened, run_engine
from training.label_errors import find_label_errors, held_out_probabilities
from training.loading import load
from training.loop import predict_all
from training.preparation import are_tiny
from training.sources import Source
from training.splits import Labels, Split
from training.wrong_labels import wrong_labels

Say = Callable[[str], None]

# Of a group of copies the one to keep: that which figures are reported on.
_KEPT_FIRST = (Split.TEST, Split.CALIBRATION, Split.VALIDATION, Split.FIT)


def suspects_of_version(
    opened: Reopened, *, progress: Progress | None = None, say: Say = lambda message: None
) -> list[Suspect]:
    """Of the splits to look at, by a version; the likeliest label errors first, then copies."""
    engine = opened.engine()
    outputs = {}
    for name, rows in opened.chosen.items():
        say(f"running {len(rows)} {name} images")
        outputs[name] = run_engine(engine, rows.images)
    found, checks = wrong_labels(opened, opened.decider(), outputs)
    for check in checks:
        say(f"{check.split}: {check.doubted} of {check.count} labels doubted, by {check.by}")
    judged = "held-out linear head" if opened.own else "the model"
    by = {split.value: "the model" for split in Split} | {Split.FIT.value: judged}
    errors = [
        Suspect(
            file=its.name,
            label=tuple(its.label),
            suggested=tuple(its.suggested),
            reason=f"label error ({its.split}), says {by[its.split]}",
            score=its.score,
        )
        for its in found
    ]
    return joined_by_row([*errors, *copies(opened.source, set(opened.chosen), progress)])


def suspects_of_data(
    source: Source,
    home: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    say: Say = lambda message: None,
) -> list[Suspect]:
    """Of all rows, without any version: by linear heads that did not see the row."""
    features, targets, names = _features(source, home, say)
    say(f"asking linear heads about {len(names)} labels")
    chances = held_out_probabilities(
        features, targets, class_count=len(source.classes), task=source.task, seed=seed
    )
    errors = [
        Suspect(
            file=names[its.row],
            label=_labels(source, targets[its.row]),
            suggested=tuple(source.classes[index] for index in its.suggested),
            reason="label error, says a held-out linear head",
            score=its.score,
        )
        for its in find_label_errors(chances, targets, source.task)
    ]
    return joined_by_row([*errors, *copies(source, set(Split), progress)])


def _features(
    source: Source, home: Path, say: Say
) -> tuple[NDArray[np.float32], NDArray[Any], list[str]]:
    """N x D of all rows, their targets and names, split after split."""
    tiny = are_tiny(source)
    spec = default_input_spec("small-resnet" if tiny else PACKAGE_ARCHITECTURE)
    parts = [its for its in load(source, spec, home / "cache").values() if len(its)]
    if tiny:
        features = [small_grey(its, np.arange(len(its))) for its in parts]
    else:
        network = create_network(PACKAGE_ARCHITECTURE, len(source.classes), spec)
        load_package_weights(network)
        say(f"embedding {len(source)} images with the pretrained {PACKAGE_ARCHITECTURE}")
        features = [predict_all(network, its.images)[1] for its in parts]
    targets = np.concatenate([its.targets for its in parts])
    return np.concatenate(features), targets, [name for its in parts for name in its.names]


def _labels(source: Source, target: Any) -> Labels:
    if np.ndim(target):
        return tuple(source.classes[int(index)] for index in np.flatnonzero(target))
    return (source.classes[int(target)],) if target >= 0 else ()


def copies(source: Source, splits: set[Split], progress: Progress | None = None) -> list[Suspect]:
    """All but one row of every group of exact or near copies, in the splits to look at.

    The one that is left is the first of those in test, else calibration, validation, fit.
    """
    looked, _ = look(source, progress)
    found = []
    for kind, groups in (
        ("exact", exact_duplicates(looked)),
        ("near", near_duplicates(looked)),
    ):
        for group in groups:
            kept = min(group, key=lambda row: (_KEPT_FIRST.index(source.splits[row]), row))
            found += [
                _copy(source, row, kept, kind)
                for row in group
                if row != kept and source.splits[row] in splits
            ]
    return found


def _copy(source: Source, row: int, kept: int, kind: str) -> Suspect:
    reason = f"{kind} duplicate of {source.names[kept]}"
    if source.splits[row] is not source.splits[kept]:
        reason += f", which is in {source.splits[kept]}"
    if set(source.labels[row]) != set(source.labels[kept]):
        reason += f", which is labelled {' and '.join(source.labels[kept]) or 'none'}"
    return Suspect(source.names[row], source.labels[row], DELETE, reason)


def joined_by_row(suspects: Sequence[Suspect]) -> list[Suspect]:
    """One line per file and label, with every reason; what comes first says what is suggested."""
    lines: dict[tuple[str, frozenset[str]], Suspect] = {}
    for its in suspects:
        key = its.file, frozenset(its.label)
        before = lines.get(key)
        if before is None:
            lines[key] = its
        elif its.reason not in before.reason:
            lines[key] = Suspect(
                before.file,
                before.label,
                before.suggested,
                f"{before.reason}; {its.reason}",
                before.score,
            )
    return list(lines.values())
