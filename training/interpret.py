"""What a model gets wrong, and why: the findings of `plumbline interpret`.

Confusions, the answers that cost most with Grad-CAM and the training images nearest to them,
labels that are likely wrong, and kinds of images on which it is worse than on others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import NETWORK
from model.decision import Task, confidence, decide
from model.engines import Engine, Outputs
from model.errors import PlumblineError
from model.formats import read_header
from model.images import Pixels, properties
from model.store import ModelStore
from training.evaluate import Decider, Reopened, assess, joined, reopen, run_engine
from training.label_errors import (
    can_be_judged,
    find_label_errors,
    held_out_probabilities,
)
from training.loading import LoadedSplit
from training.mapped import ChosenRows, each_row
from training.metrics import NONE_COLUMN
from training.neighbours import NEIGHBOURS, nearest
from training.slices import Slice, find_slices
from training.sources import Source
from training.splits import Split

TOP_LOSSES = 12
MOST_BANK = 5_000  # fit images among which neighbours are looked for
OWN_PROBABILITIES = "the model's own probabilities, which did not learn these rows"
HELD_OUT_PROBABILITIES = (
    "a linear head on the model's embedding, fitted without the fold that it is asked about: the"
    " model's own probabilities would repeat the labels that it learned"
)
NOBODY = "nobody: where all labels are alike there is nothing to compare them by"

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """Labelled rows of one split and what a model said of them, N each.

    Single-label rows without a label are left out: there is nothing to hold the answer against.
    """

    split: str
    images: Any  # uint8 N x H x W x 3, or rows of that
    names: Sequence[str]
    targets: Array
    outputs: Outputs
    chances: Floats  # N x C
    truth: list[list[str]]
    labels: list[list[str]]
    loss: Floats
    sure: Floats

    def __len__(self) -> int:
        return len(self.names)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether all labels were given, and no other."""
        pairs = zip(self.truth, self.labels, strict=True)
        return np.array([set(one) == set(other) for one, other in pairs], bool)


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that were answered as another.

    With several labels: rows that lack the one label and were wrongly given the other.
    """

    truth: str
    answer: str
    count: int
    share: float  # of the rows of the class


@dataclass(frozen=True)
class NearImage:
    """A training image like the one asked about; `similarity` is a cosine."""

    name: str
    truth: list[str]
    similarity: float
    image: Pixels


@dataclass(frozen=True)
class TopLoss:
    """An answer that cost much: minus the log of the probability of the truth.

    `heat` is the picture under what spoke for the class that was answered, `heat_truth` for the
    class that would have been right; with several labels, for the class that cost most, alone.
    """

    name: str
    split: str
    truth: list[str]
    labels: list[str]
    loss: float
    confidence: float
    image: Pixels
    heat_class: str = ""
    heat: Pixels | None = None
    heat_truth_class: str = ""
    heat_truth: Pixels | None = None
    neighbours: tuple[NearImage, ...] = ()


@dataclass(frozen=True)
class WrongLabel:
    """A label that is likely wrong; `score` as in `training.label_errors.LabelError`."""

    name: str
    split: str
    label: list[str]
    suggested: list[str]
    score: float
    images: Any  # of its split; one is read when it is shown, and not before
    row: int

    @property
    def image(self) -> Pixels:
        """The picture, uint8 H x W x 3."""
        return np.asarray(self.images[self.row])


@dataclass(frozen=True)
class LabelCheck:
    """How many labels of a split were doubted, and on whose word."""

    split: str
    count: int
    doubted: int
    by: str


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
    worst, no_heat = _with_heat(top_losses(parts, top), opened)
    bank, no_neighbours = _bank(store, reference, opened, engine, outputs)
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
        top_losses=[_finished(place, bank) for place in worst],
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


# --- answers -------------------------------------------------------------------------------


def answers_of(decider: Decider, split: str, rows: LoadedSplit | Any, outputs: Outputs) -> Answers:
    """What a model says of the rows of one split, `rows` with images, targets and names."""
    images, targets = rows.images, np.asarray(rows.targets)
    names = list(rows.names) or [str(row) for row in range(len(targets))]
    if decider.task == "single" and (targets < 0).any():
        kept = np.flatnonzero(targets >= 0)
        images, targets = ChosenRows(images, kept), targets[kept]
        names = [names[row] for row in kept]
        outputs = Outputs(*(part[kept] for part in outputs))
    chances = decider.probabilities(outputs)
    return Answers(
        split=split,
        images=images,
        names=names,
        targets=targets,
        outputs=outputs,
        chances=chances,
        truth=decider.label_names(targets),
        labels=decide(chances, decider.thresholds, decider.classes, decider.task),
        loss=_loss(chances, targets),
        sure=confidence(chances, decider.task),
    )


def _loss(chances: Floats, targets: Array) -> Floats:
    """Cross-entropy of each row; with several labels the mean over the classes."""
    safe = np.clip(chances.astype(np.float64), 1e-7, 1 - 1e-7)
    if targets.ndim == 1:
        return np.asarray(-np.log(safe[np.arange(len(safe)), targets]), np.float32)
    each = -np.where(targets == 1, np.log(safe), np.log(1 - safe))
    return np.asarray(each.mean(axis=1), np.float32)


def most_confused(parts: Sequence[Answers]) -> list[Confusion]:
    """Pairs of what is true and what was answered, most frequent first (after fastai's).

    An image left without a label counts as answered "(none)", and one wrongly given a label that
    lacks none as truth "(none)".
    """
    counts: dict[tuple[str, str], int] = {}
    rows: dict[str, int] = {}
    for true, given in _pairs(parts):
        for name in true or [NONE_COLUMN]:
            rows[name] = rows.get(name, 0) + 1
        missed = [name for name in true if name not in given]
        wrong = [name for name in given if name not in true]
        if missed or wrong:
            for pair in product(missed or [NONE_COLUMN], wrong or [NONE_COLUMN]):
                counts[pair] = counts.get(pair, 0) + 1
    ranked = sorted(counts.items(), key=lambda its: (-its[1], its[0]))
    total = sum(map(len, parts))
    return [
        Confusion(true, answer, count, count / (rows.get(true) or total))
        for (true, answer), count in ranked
    ]


def _pairs(parts: Sequence[Answers]) -> Iterator[tuple[list[str], list[str]]]:
    for part in parts:
        yield from zip(part.truth, part.labels, strict=True)


# --- what cost most ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A row of some answers, and what Grad-CAM drew of it."""

    answers: Answers
    row: int
    heat_class: str = ""
    heat: Pixels | None = None
    heat_truth_class: str = ""
    heat_truth: Pixels | None = None


def top_losses(parts: Sequence[Answers], count: int) -> list[_Place]:
    """The rows that were answered wrongly and cost most; then those answered rightly."""
    places = [_Place(part, row) for part in parts for row in range(len(part))]
    right = np.concatenate([part.right for part in parts])
    loss = np.concatenate([part.loss for part in parts])
    return [places[its] for its in np.lexsort((-loss, right))[:count]]


def _with_heat(places: list[_Place], opened: Reopened) -> tuple[list[_Place], str]:
    """With Grad-CAM drawn; or as they are, and why."""
    from model.network import create_network, load_weights
    from training.grad_cam import NoFeatureMapError

    manifest = opened.manifest
    network = create_network(manifest.architecture, len(manifest.classes), manifest.input)
    load_weights(network, opened.bundle.path(NETWORK))
    try:
        return draw_heat(network, places, manifest.classes, manifest.task), ""
    except NoFeatureMapError as error:
        return places, f"{manifest.architecture}: {error}"


def draw_heat(
    network: Any, places: list[_Place], classes: Sequence[str], task: Task
) -> list[_Place]:
    """Grad-CAM for the answer and for the truth. Raises `NoFeatureMapError`."""
    from training.grad_cam import grad_cam, overlay

    if not places:
        return []
    images = np.stack([np.asarray(its.answers.images[its.row]) for its in places])
    pairs = [_classes_to_explain(its, task) for its in places]
    drawn = []
    for which in (0, 1):
        heat = grad_cam(network, images, [pair[which] for pair in pairs])
        drawn.append([overlay(*both) for both in zip(images, heat, strict=True)])
    return [
        _Place(
            its.answers,
            its.row,
            classes[answer],
            drawn[0][number],
            classes[truth] if truth != answer else "",
            drawn[1][number] if truth != answer else None,
        )
        for number, (its, (answer, truth)) in enumerate(zip(places, pairs, strict=True))
    ]


def _classes_to_explain(place: _Place, task: Task) -> tuple[int, int]:
    """Most probable class and the true one, as indices; of several labels the costliest, twice."""
    chances, target = place.answers.chances[place.row], place.answers.targets[place.row]
    if task == "single":
        return int(chances.argmax()), int(target)
    costliest = int(np.abs(chances - target).argmax())
    return costliest, costliest


def _finished(place: _Place, bank: _Bank | None) -> TopLoss:
    answers, row = place.answers, place.row
    return TopLoss(
        name=answers.names[row],
        split=answers.split,
        truth=answers.truth[row],
        labels=answers.labels[row],
        loss=float(answers.loss[row]),
        confidence=float(answers.sure[row]),
        image=np.asarray(answers.images[row]),
        heat_class=place.heat_class,
        heat=place.heat,
        heat_truth_class=place.heat_truth_class,
        heat_truth=place.heat_truth,
        neighbours=() if bank is None else bank.near(answers, row),
    )


# --- neighbours ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bank:
    """Images to fit on, with their embedding B x D by the engine."""

    images: Any
    names: Sequence[str]
    truth: list[list[str]]
    embedding: Floats

    def near(self, answers: Answers, row: int) -> tuple[NearImage, ...]:
        """The nearest to one answer; never the image itself."""
        is_fit = answers.split == Split.FIT
        own = [at for at, name in enumerate(self.names) if is_fit and name == answers.names[row]]
        found = nearest(answers.outputs.embedding[row], self.embedding, NEIGHBOURS, tuple(own))
        return tuple(
            NearImage(
                self.names[its.row],
                self.truth[its.row],
                its.similarity,
                np.asarray(self.images[its.row]),
            )
            for its in found
        )


def _bank(
    store: ModelStore,
    reference: str,
    opened: Reopened,
    engine: Engine,
    outputs: Mapping[Split, Outputs],
) -> tuple[_Bank | None, str]:
    """At most MOST_BANK rows that the version was fitted on; or why there are none."""
    training = opened
    if not opened.own:
        try:
            training = reopen(store, reference)
        except PlumblineError as error:
            return None, f"there are no training images to compare with: {error}"
    rows = training.splits[Split.FIT]
    if not len(rows):
        return None, "the data have no rows to fit on"
    seed = int(opened.manifest.training.get("seed", 0))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_BANK])
    images: Any = ChosenRows(rows.images, chosen)
    known = outputs.get(Split.FIT) if training is opened else None
    embedding = run_engine(engine, images).embedding if known is None else known.embedding[chosen]
    truth = opened.decider().label_names(rows.targets[chosen])
    return _Bank(images, [rows.names[row] for row in chosen], truth, embedding), ""


# --- labels that are likely wrong ----------------------------------------------------------


def wrong_labels(
    opened: Reopened, decider: Decider, outputs: Mapping[Split, Outputs]
) -> tuple[list[WrongLabel], list[LabelCheck]]:
    """Of the splits that have outputs, the likeliest first, and how each split was looked at."""
    found: list[WrongLabel] = []
    checks = []
    for name, given in outputs.items():
        rows = opened.splits[name]
        learned = opened.own and name is Split.FIT
        chances = (
            held_out_probabilities(
                given.embedding,
                rows.targets,
                class_count=len(decider.classes),
                task=decider.task,
                seed=int(opened.manifest.training.get("seed", 0)),
            )
            if learned
            else decider.probabilities(given)
        )
        doubted = wrong_labels_of(decider.classes, decider.task, name.value, rows, chances)
        by = HELD_OUT_PROBABILITIES if learned else OWN_PROBABILITIES
        if not can_be_judged(rows.targets):
            by = NOBODY
        checks.append(LabelCheck(name.value, len(rows), len(doubted), by))
        found += doubted
    return sorted(found, key=lambda its: its.score), checks


def wrong_labels_of(
    classes: Sequence[str], task: Task, split: str, rows: LoadedSplit | Any, chances: Floats
) -> list[WrongLabel]:
    """Of one split, by probabilities out of sample."""
    return [
        WrongLabel(
            name=rows.names[its.row],
            split=split,
            label=_names(classes, rows.targets[its.row]),
            suggested=[classes[index] for index in its.suggested],
            score=its.score,
            images=rows.images,
            row=its.row,
        )
        for its in find_label_errors(chances, rows.targets, task)
    ]


def _names(classes: Sequence[str], target: Any) -> list[str]:
    if np.ndim(target):
        return [classes[int(index)] for index in np.flatnonzero(target)]
    return [classes[int(target)]] if target >= 0 else []


# --- slices --------------------------------------------------------------------------------


def slices_of(parts: Sequence[Answers], sizes: Sequence[Array | None]) -> list[Slice]:
    """Of the answers of some splits together; `sizes` N x 2 for each of them, or None."""
    seen = [properties(image) for part in parts for image in each_row(part.images)]
    values: dict[str, Array] = {
        name: np.array([getattr(its, name) for its in seen])
        for name in ("brightness", "contrast", "sharpness")
    }
    known = [its for its in sizes if its is not None]
    if len(known) == len(sizes):
        both = np.concatenate(known).astype(np.float64)
        values["shorter side, px"] = both.min(axis=1)
        values["longer over shorter side"] = both.max(axis=1) / both.min(axis=1)
    return find_slices(values, np.concatenate([part.right for part in parts]))


def image_sizes(source: Source, names: Sequence[str]) -> Array:
    """Width and height as stored, int64 N x 2, of the rows of these names."""
    rows = {name: row for row, name in enumerate(source.names)}

    def size(name: str) -> tuple[int, int]:
        stored = source.reader.stored(rows[name])
        if isinstance(stored, bytes):
            header = read_header(stored)
            return header.width, header.height
        return stored.shape[1], stored.shape[0]

    with ThreadPoolExecutor() as threads:
        return np.array(list(threads.map(size, names)), np.int64).reshape(len(names), 2)


# --- for programs --------------------------------------------------------------------------


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
