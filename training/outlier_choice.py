"""Which layers the outlier score reads, and which detector: chosen on evidence, not by habit.

The score is only as good as the embedding. Fine-tuning can break the last layer for it, and what
makes an image foreign often shows early. So several embeddings and detectors are tried, on

- made foreign images (`self_check.made_foreign_images`), against validation images, and
- classes left out: the score is fitted anew without the images of one class, whose validation
  images are then to be told from the others. Where only the head of the network was fitted, that is
  fitted anew without them, too. A network that was trained has seen them, which flatters; but what
  it learned of the class must not flatter some scores more than others. Without its logit, the
  images of the class would have low logits everywhere, as those of a class never learned have not.
  So the logit stays, and a score that reads logits has to find images of which the network is sure.

No foreign image that the self-check reports takes part in the choice: of every kind one half
chooses, and the other is reported (`self_check.deal_halves`). Scores that are not for the choosing
(`baseline_detectors`) are measured beside it, on the half that chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.bundle import Metric
from model.embedding import PENULTIMATE, EmbeddingPart
from model.engines import Outputs
from monitoring.outlier import (
    DETECTORS,
    NEIGHBOURS,
    WITHOUT_LOGITS,
    EmbeddingChoice,
    OutlierModel,
)
from training.baseline_detectors import FloatArray, Score, fit_baselines
from training.metrics import auroc_interval
from training.refitted_head import HeadRecipe

ALL_LAYERS = "all layers"
EARLIER_LAYERS = "earlier layers"
CLASSES_LEFT_OUT = "classes left out of the score"
# Of a network that was trained on them: it has made room for them.
LEARNED_LEFT_OUT = f"{CLASSES_LEFT_OUT} (learned, so it flatters)"
CLASSES_NEVER_LEARNED = "classes never learned"  # by a second training, on request
MOST_LEFT_OUT = 5  # classes, the most frequent ones
# Over the square root of the number of validation images: what is within it of the best mean AUROC
# is level with it. The standard error of an AUROC is of that size (Hanley and McNeil 1982).
LEVEL = 0.25
_LEFT_OUT_FIT = 2_000  # rows to fit on without a class
_LEAST_ROWS = 5  # of a class in validation


@dataclass(frozen=True)
class Candidate:
    """One embedding with one detector, and the AUROC by kind that it reached."""

    embedding: str
    detector: str
    # By foreign kind, on the half that chooses, and CLASSES_LEFT_OUT and CLASSES_NEVER_LEARNED
    # where that could be tried.
    measured: Mapping[str, Metric]

    @property
    def auroc(self) -> dict[str, float]:
        """The same without intervals."""
        return {kind: float(its.value or 0) for kind, its in self.measured.items()}

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.detector} on {self.embedding}"

    @property
    def mean(self) -> float:
        """Of the made kinds together and other classes, half each.

        Those never learned speak for other classes; without a second training those left out.
        """
        others, auroc = (CLASSES_LEFT_OUT, CLASSES_NEVER_LEARNED), self.auroc
        made = [value for kind, value in auroc.items() if kind not in others]
        left_out = auroc.get(CLASSES_NEVER_LEARNED, auroc.get(CLASSES_LEFT_OUT))
        mean = float(np.mean(made))
        return mean if left_out is None else (mean + left_out) / 2


@dataclass(frozen=True)
class OutlierChoice:
    """The fitted score, and what it was chosen from; the first candidate is the default.

    `baselines` are other scores on the penultimate layer, measured and never chosen.
    """

    model: OutlierModel
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    baselines: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """Outputs with the targets of their rows: N class indices, or N x C of 0 and 1."""

    outputs: Outputs
    targets: NDArray[np.int64]


def choose_outlier_model(
    parts: Sequence[EmbeddingPart],
    fit: Labelled,
    validation: Labelled,
    foreign: Mapping[str, Outputs],
    *,
    never_learned: Mapping[str, Mapping[str, Metric]] | None = None,
    head: HeadRecipe | None = None,
    seed: int = 0,
) -> OutlierChoice:
    """Fit every candidate on the fit split, judge it on validation and foreign images, keep one.

    `foreign` by kind are images that choose; what is chosen is to be reported on others.

    The default is the penultimate layer with KNN + ViM; where several labels may apply with KNN +
    residual, and no score that reads logits is tried: theirs say how many labels an image has.
    Of those that are level with the best the first is kept, in the order of detectors, then of
    embeddings: a smaller gain is luck, and the first ones fail on fewer networks. `never_learned`:
    AUROC on classes that a second network was not trained on, by embedding and detector, where
    there was one; of the penultimate one also by baseline. `head` is how the head was fitted,
    where nothing else was. Raises ValueError for fewer than 2 * NEIGHBOURS rows.
    """
    detectors = detectors_for(fit.targets)
    without = tuple(leave_classes_out(fit, validation, head=head, seed=seed))
    tried: list[tuple[Candidate, OutlierModel]] = []
    for name, choice in embedding_choices(parts, fit.outputs.embedding).items():
        fitted = OutlierModel.fit(
            fit.outputs.embedding,
            fit.outputs.logits,
            choice=choice,
            scaled_on=(validation.outputs.embedding, validation.outputs.logits),
            seed=seed,
        )
        left_out = _auroc_without_classes(without, choice, detectors)
        for detector in detectors:
            model = fitted.with_detector(detector)
            found = auroc_of_kinds(model, validation.outputs, foreign)
            if detector in left_out:
                found[CLASSES_LEFT_OUT] = left_out[detector]
            if never_learned is not None:
                found[CLASSES_NEVER_LEARNED] = never_learned[name][detector]
            tried.append((Candidate(name, detector, found), model))
    best = max(candidate.mean for candidate, _ in tried)
    least = best - LEVEL / math.sqrt(len(validation.targets))
    level = [one for one in tried if one[0].mean >= least]
    kept = min(level, key=lambda one: detectors.index(one[0].detector))  # of one, the first
    candidates = tuple(candidate for candidate, _ in tried)
    read = next(iter(embedding_choices(parts, fit.outputs.embedding).values()))
    baselines = _baselines(read, fit, validation, foreign, without, never_learned)
    return OutlierChoice(kept[1], kept[0], candidates, baselines)


def detectors_for(targets: NDArray[np.int64]) -> tuple[str, ...]:
    """What can be tried where targets are class indices (N), or 0 and 1 for every label (N x C)."""
    return WITHOUT_LOGITS if targets.ndim == 2 else tuple(DETECTORS)


def embedding_choices(
    parts: Sequence[EmbeddingPart], embedding: FloatArray
) -> dict[str, EmbeddingChoice]:
    """By name: the penultimate layer first, then others where there are any.

    `embedding` N x D of fit images. Layers that are joined count equally: each is scaled to a mean
    length of 1. A penultimate layer that itself joins all parts has scaled them already, and
    stands alone: its last part by itself told classes left out a little better, and flagged fewer
    images of every real foreign kind (61 % of digits for 79 %, at 1 %, Fashion-MNIST).

    >>> parts = [EmbeddingPart(name="layer 1", size=2), EmbeddingPart(name="penultimate", size=3)]
    >>> list(embedding_choices(parts, np.ones((4, 5), np.float32)))
    ['penultimate', 'all layers', 'earlier layers']
    """
    ends = np.cumsum([part.size for part in parts])
    columns = [np.arange(end - part.size, end) for part, end in zip(parts, ends, strict=True)]
    if len(parts) == 1 or parts[-1].name != PENULTIMATE:
        return {PENULTIMATE: EmbeddingChoice()}
    return {
        PENULTIMATE: _as_they_are(columns[-1]),
        ALL_LAYERS: _joined(columns, embedding),
        EARLIER_LAYERS: _joined(columns[:-1], embedding),
    }


def _as_they_are(columns: NDArray[np.int64]) -> EmbeddingChoice:
    return EmbeddingChoice(columns, np.ones(len(columns), np.float32))


def _joined(columns: Sequence[NDArray[np.int64]], embedding: FloatArray) -> EmbeddingChoice:
    lengths = [float(np.linalg.norm(embedding[:, part], axis=1).mean()) for part in columns]
    scales = [
        np.full(len(part), 1 / max(length, 1e-6), np.float32)
        for part, length in zip(columns, lengths, strict=True)
    ]
    return EmbeddingChoice(np.concatenate(columns), np.concatenate(scales))


def auroc_of_kinds(
    model: OutlierModel, validation: Outputs, foreign: Mapping[str, Outputs]
) -> dict[str, Metric]:
    """How well the score tells foreign images of each kind from validation images."""
    domestic = model.score(validation.embedding, validation.logits)[0]
    return {
        kind: measured_auroc(model.score(outputs.embedding, outputs.logits)[0], domestic)
        for kind, outputs in foreign.items()
    }


@dataclass(frozen=True)
class LeftOut:
    """One class left out of what a score is fitted on; judged on validation rows."""

    index: int  # of the class
    is_foreign: NDArray[np.bool_]  # rows of that class, N
    fit: Labelled  # what is fitted on
    outputs: Outputs  # of validation
    seed: int

    def fitted(self, choice: EmbeddingChoice) -> OutlierModel:
        """The score, fitted without that class."""
        usual = ~self.is_foreign
        return OutlierModel.fit(
            self.fit.outputs.embedding,
            self.fit.outputs.logits,
            choice=choice,
            scaled_on=(self.outputs.embedding[usual], self.outputs.logits[usual]),
            seed=self.seed,
        )


def leave_classes_out(
    fit: Labelled,
    validation: Labelled,
    *,
    head: HeadRecipe | None = None,
    keep_logit: bool = True,
    seed: int,
) -> Iterator[LeftOut]:
    """To fit the score anew without each of a few classes; none where there are too few images.

    With a `head` that is fitted anew, too. Without one the logit of the class is there or not.
    """
    for index in _classes_to_leave_out(fit, validation):
        kept = np.flatnonzero(~_has(fit.targets, index))
        kept = np.sort(np.random.default_rng(seed).permutation(kept)[:_LEFT_OUT_FIT])
        rows, seen = _rows(fit.outputs, kept), validation.outputs
        if head is not None and fit.targets.ndim == 1:
            targets = fit.targets[kept]
            others = targets - (targets > index)  # numbered without a gap
            refitted = head.without_a_class().fit(rows.embedding, others)
            rows, seen = (
                Outputs(refitted.logits(its.embedding), its.embedding) for its in (rows, seen)
            )
        elif not keep_logit:
            rows, seen = (
                Outputs(np.delete(its.logits, index, axis=1), its.embedding) for its in (rows, seen)
            )
        yield LeftOut(
            index,
            _has(validation.targets, index),
            Labelled(rows, fit.targets[kept]),
            seen,
            seed,
        )


def _auroc_without_classes(
    without: Iterable[LeftOut], choice: EmbeddingChoice, detectors: Sequence[str]
) -> dict[str, Metric]:
    """Mean over classes left out, by detector; empty where no class can be."""
    found: dict[str, list[Metric]] = {}
    for left_out in without:
        fitted = left_out.fitted(choice)
        for detector in detectors:
            scores = fitted.with_detector(detector).score(
                left_out.outputs.embedding, left_out.outputs.logits
            )[0]
            foreign, domestic = scores[left_out.is_foreign], scores[~left_out.is_foreign]
            found.setdefault(detector, []).append(measured_auroc(foreign, domestic))
    return {detector: _mean(values) for detector, values in found.items()}


def _baselines(
    read: EmbeddingChoice,
    fit: Labelled,
    validation: Labelled,
    foreign: Mapping[str, Outputs],
    without: Iterable[LeftOut],
    never_learned: Mapping[str, Mapping[str, Metric]] | None,
) -> tuple[Candidate, ...]:
    """The same evidence for scores that are measured alone."""

    def apart(score: Score, strange: Outputs, usual: Outputs) -> Metric:
        scores = (score(read.of(its.embedding), its.logits) for its in (strange, usual))
        return measured_auroc(*scores)

    left_out: dict[str, list[Metric]] = {}
    for its in without:
        fitted_on = its.fit.outputs
        scores = fit_baselines(read.of(fitted_on.embedding), fitted_on.logits, its.fit.targets)
        split = [_rows(its.outputs, rows) for rows in (its.is_foreign, ~its.is_foreign)]
        for name, score in scores.items():
            left_out.setdefault(name, []).append(apart(score, *split))
    outputs = fit.outputs
    scores = fit_baselines(read.of(outputs.embedding), outputs.logits, fit.targets)
    found = []
    for name, score in scores.items():
        kinds = {kind: apart(score, its, validation.outputs) for kind, its in foreign.items()}
        if name in left_out:
            kinds[CLASSES_LEFT_OUT] = _mean(left_out[name])
        if never_learned is not None:
            kinds[CLASSES_NEVER_LEARNED] = never_learned[PENULTIMATE][name]
        found.append(Candidate(PENULTIMATE, name, kinds))
    return tuple(found)


def _rows(outputs: Outputs, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Outputs:
    return Outputs(outputs.logits[rows], outputs.embedding[rows])


def _classes_to_leave_out(fit: Labelled, validation: Labelled) -> Iterator[int]:
    """The most frequent ones, as long as enough images remain on each side."""
    classes = fit.outputs.logits.shape[1]
    if classes < 3:  # without one of two nothing is left to tell apart
        return
    counts = [int(_has(fit.targets, index).sum()) for index in range(classes)]
    for index in np.argsort(counts)[::-1][:MOST_LEFT_OUT]:
        seen = int(_has(validation.targets, int(index)).sum())
        rest = len(fit.targets) - counts[index]
        if min(seen, len(validation.targets) - seen) >= _LEAST_ROWS and rest >= 2 * NEIGHBOURS:
            yield int(index)


def _has(targets: NDArray[np.int64], index: int) -> NDArray[np.bool_]:
    """Which rows are of a class, N."""
    column = targets[:, index] if targets.ndim == 2 else targets
    return np.asarray(column == (1 if targets.ndim == 2 else index))


def auroc(foreign: FloatArray, domestic: FloatArray) -> float:
    """Chance that a foreign image scores above one of the domain (area under the ROC curve)."""
    truth = np.concatenate([np.ones(len(foreign)), np.zeros(len(domestic))])
    return float(roc_auc_score(truth, np.concatenate([foreign, domestic])))


def measured_auroc(foreign: FloatArray, domestic: FloatArray) -> Metric:
    """The same with its interval; `count` is the number of foreign images."""
    value = auroc(foreign, domestic)
    low, high = auroc_interval(value, len(foreign), len(domestic))
    return Metric(value=value, low=low, high=high, count=len(foreign))


def _mean(classes: Sequence[Metric]) -> Metric:
    """Over classes left out, taken as independent: each is judged by its own images."""
    value = float(np.mean([its.value for its in classes]))
    # The lower halves: an upper end may have been cut off at 1.
    spreads = [(its.value or 0) - (its.low or 0) for its in classes]
    spread = math.hypot(*spreads) / len(classes)
    count = sum(its.count or 0 for its in classes)
    return Metric(
        value=value, low=max(0.0, value - spread), high=min(1.0, value + spread), count=count
    )
