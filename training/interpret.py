"""What a model gets wrong, and why: the findings of `plumbline interpret`.

Confusions, the answers that cost most with Grad-CAM and the training images nearest to them,
labels that are likely wrong, and kinds of images on which it is worse than on others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.decision import Task
from model.store import ModelStore
from training.answers import answers_of
from training.confusions import Confusion, most_confused
from training.evaluate import Reopened, assess, joined, reopen, run_engine
from training.heat import with_heat
from training.image_sizes import image_sizes
from training.neighbours import bank_of
from training.slices import Slice, slices_of
from training.top_losses import TOP_LOSSES, TopLoss, finished, top_losses
from training.wrong_labels import LabelCheck, WrongLabel, wrong_labels


@dataclass(frozen=True)
class Interpretation:
    """All that `plumbline interpret` found."""

    version: str
    data: str
    split: str
    own: bool
    task: Task
    classes: tuple[str, ...]
    metrics: dict[str, Any]  # of `training.evaluate.assess`
    confused: list[Confusion]
    top_losses: list[TopLoss]
    no_heat: str  # why there is no Grad-CAM; empty where there is
    no_neighbours: str
    wrong_labels: list[WrongLabel]
    label_checks: list[LabelCheck]
    slices: list[Slice]
    notes: list[str] = field(default_factory=list)


def interpret_version(
    store: ModelStore,
    reference: str,
    data: str | None = None,
    split: str | None = None,
    *,
    top: int = TOP_LOSSES,
    **reading: Any,
) -> Interpretation:
    """Look at the answers of a version; for data, split, `reading` and errors see `reopen`."""
    opened = reopen(store, reference, data, split, **reading)
    engine = opened.engine()
    decider = opened.decider()
    outputs = {name: run_engine(engine, its.images) for name, its in opened.chosen.items()}
    parts = [
        answers_of(decider, name.value, its, outputs[name]) for name, its in opened.chosen.items()
    ]
    targets = np.concatenate([its.targets for its in opened.chosen.values()])
    worst, no_heat = with_heat(top_losses(parts, top), opened)
    bank, no_neighbours = bank_of(store, reference, opened, engine, outputs)
    wrong, checks = wrong_labels(opened, decider, outputs)
    return Interpretation(
        version=opened.manifest.tag,
        data=opened.source.name,
        split=opened.split,
        own=opened.own,
        task=opened.manifest.task,
        classes=opened.manifest.classes,
        metrics=assess(decider, joined(list(outputs.values())), targets),
        confused=most_confused(parts),
        top_losses=[finished(place, bank) for place in worst],
        no_heat=no_heat,
        no_neighbours=no_neighbours,
        wrong_labels=wrong,
        label_checks=checks,
        slices=slices_of(parts, [image_sizes(opened.source, its.names) for its in parts]),
        notes=_notes(opened),
    )


def _notes(opened: Reopened) -> list[str]:
    notes = list(opened.source.notes)
    if not opened.own:
        notes.append(
            f"These are not the data that {opened.manifest.tag} was trained on"
            f" ({opened.manifest.data.source}): all rows are looked at."
        )
    elif opened.split == "all":
        notes.append(
            "Rows to fit on are among these: the figures, the confusions and the slices flatter,"
            " since the model has learned their labels. Look at --split test for honest ones."
        )
    elif opened.split == "valid":
        notes.append("Validation made the choices, so these figures flatter a little.")
    return notes


def as_json(found: Interpretation) -> dict[str, Any]:
    """All but the pictures."""
    metrics = {
        name: value
        for name, value in found.metrics.items()
        if name not in ("confusion", "per_class", "task", "count")
    }
    return {
        "version": found.version,
        "data": found.data,
        "split": found.split,
        "own_data": found.own,
        "task": found.task,
        "classes": list(found.classes),
        "count": found.metrics["count"],
        "metrics": metrics,
        "confusion": found.metrics["confusion"],
        "per_class": found.metrics["per_class"],
        "most_confused": [vars(its) for its in found.confused],
        "top_losses": [_top_loss_as_json(its) for its in found.top_losses],
        "grad_cam": {"drawn": not found.no_heat, "reason": found.no_heat or None},
        "label_errors": [
            {name: value for name, value in vars(its).items() if name not in ("images", "row")}
            for its in found.wrong_labels
        ],
        "label_checks": [vars(its) for its in found.label_checks],
        "slices": [{**vars(its), "is_worse": its.is_worse} for its in found.slices],
        "notes": [*found.notes, *([found.no_neighbours] if found.no_neighbours else [])],
    }


def _top_loss_as_json(its: TopLoss) -> dict[str, Any]:
    return {
        "name": its.name,
        "split": its.split,
        "truth": its.truth,
        "labels": its.labels,
        "loss": its.loss,
        "confidence": its.confidence,
        "neighbours": [
            {"name": near.name, "labels": near.truth, "similarity": near.similarity}
            for near in its.neighbours
        ],
    }
