"""From the outputs of an engine to everything that decides on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.bundle import Metric
from model.decision import Calibration, Thresholds, decide, probabilities
from model.embedding import penultimate_columns
from model.engines import Outputs
from training.calibration import fit_platt, fit_temperature
from training.cross_fitting import can_cross_fit, cross_fitted_scores
from training.evaluate import Decider
from training.findings import SplitOutputs, Trained
from training.none_choice import DEFAULT_LOSS, Judged, NoneChoice, choose_none
from training.outlier_choice import (
    CLASSES_LEFT_OUT,
    LEARNED_LEFT_OUT,
    Labelled,
    LeftOut,
    OutlierChoice,
    auroc_of_kinds,
    choose_outlier_model,
    leave_classes_out,
)
from training.refitted_head import HeadRecipe
from training.request import DEFAULT_ALPHA
from training.thresholds import ThresholdChoice, check_labels_differ, tune_thresholds

_MOST_PROBABLE = Thresholds(objective="most probable class")


@dataclass(frozen=True)
class Decided:
    """What decides on outputs, and what it was chosen from."""

    decider: Decider
    threshold: ThresholdChoice | None  # None: the most probable class, always
    none: NoneChoice | None  # of single-label models that may say none
    outlier: OutlierChoice
    foreign: Mapping[str, Metric]  # AUROC of that score by kind, of images that did not choose


def decide_by(trained: Trained, outputs: SplitOutputs) -> Decided:
    """Calibrate, choose and calibrate the outlier score, tune the thresholds, in that order."""
    calibration = _calibrate(trained, outputs.validation)
    outlier = _choose_outlier_model(trained, outputs)
    in_class = _in_class(trained, outputs).outputs
    foreign = auroc_of_kinds(outlier.model, in_class, outputs.foreign_reported)
    scored = outlier.model.calibrated(_conformal_scores(trained, outputs, outlier))
    undecided = Decider(
        trained.task,
        trained.classes,
        calibration,
        _MOST_PROBABLE,
        scored,
        trained.alpha or DEFAULT_ALPHA,
    )
    if trained.task == "multi":
        tuned = _tune(trained, undecided.probabilities(outputs.validation))
        decider = undecided.with_thresholds(tuned.to_thresholds())
        return Decided(decider, tuned, None, outlier, foreign)
    if not trained.none_allowed:
        return Decided(undecided, None, None, outlier, foreign)
    none = _choose_none(trained, outputs, undecided, outlier)
    decider = undecided.with_thresholds(none.threshold.to_thresholds(), none.alpha)
    return Decided(decider, none.threshold, none, outlier, foreign)


def labels_before_flags(
    trained: Trained, outputs: Outputs, others: Outputs
) -> tuple[list[list[str]], list[list[str]]]:
    """The labels that two engines' outputs for validation get, decided by those of the first."""
    calibration = _calibrate(trained, outputs)
    thresholds = _MOST_PROBABLE
    if trained.task == "multi":
        thresholds = _tune(
            trained, probabilities(outputs.logits, calibration, "multi")
        ).to_thresholds()
    first, second = (
        decide(
            probabilities(its.logits, calibration, trained.task),
            thresholds,
            trained.classes,
            trained.task,
        )
        for its in (outputs, others)
    )
    return first, second


def is_cross_fitted(trained: Trained) -> bool:
    """Whether conformal scores come from more images than those for calibration."""
    return trained.is_body_frozen and can_cross_fit(len(trained.calibration), len(trained.fit))


def _calibrate(trained: Trained, validation: Outputs) -> Calibration:
    targets = trained.validation.targets
    if trained.task == "multi":
        check_labels_differ(targets)
        return fit_platt(validation.logits, targets)
    if trained.head == "sigmoid":  # rows of no class are negatives of every one
        one_hot = np.asarray(targets[:, None] == np.arange(len(trained.classes)), np.float32)
        return fit_platt(validation.logits, one_hot)
    labelled = targets >= 0
    return fit_temperature(validation.logits[labelled], targets[labelled])


def _tune(trained: Trained, chances: NDArray[np.float32]) -> ThresholdChoice:
    return tune_thresholds(
        chances,
        trained.validation.targets,
        trained.classes,
        objective=trained.objective,
        own_thresholds=trained.per_class_thresholds,
        seed=trained.seed,
    )


def _choose_outlier_model(trained: Trained, outputs: SplitOutputs) -> OutlierChoice:
    return choose_outlier_model(
        outputs.parts,
        Labelled(outputs.fit, outputs.fit_rows.targets),
        _in_class(trained, outputs),
        outputs.foreign,
        never_learned=None if trained.never_learned is None else trained.never_learned.auroc,
        head=_head_of(trained, outputs) if trained.is_body_frozen else None,
        seed=trained.seed,
    )


def _head_of(trained: Trained, outputs: SplitOutputs) -> HeadRecipe:
    return HeadRecipe(
        penultimate=penultimate_columns(outputs.parts),
        class_count=len(trained.classes),
        task=trained.task,
        weight_decay=trained.head_weight_decay,
        head=trained.head,
        learn_none=trained.learn_none,
        seed=trained.seed,
    )


def _in_class(trained: Trained, outputs: SplitOutputs) -> Labelled:
    """Validation rows that are images of the domain: of single-label data those with a label."""
    targets = trained.validation.targets
    if trained.task == "multi":
        return Labelled(outputs.validation, targets)
    rows = np.flatnonzero(targets >= 0)
    logits, embedding = outputs.validation
    return Labelled(Outputs(logits[rows], embedding[rows]), targets[rows])


def _conformal_scores(
    trained: Trained, outputs: SplitOutputs, outlier: OutlierChoice
) -> NDArray[np.float32]:
    """Of the calibration split; of small data of every image to fit on or calibrate with."""
    if not is_cross_fitted(trained):
        return outlier.model.score(outputs.calibration.embedding, outputs.calibration.logits)[0]
    parts = (outputs.fit, outputs.fit_rows), (outputs.calibration, trained.calibration)
    return cross_fitted_scores(
        np.concatenate([given.embedding for given, _ in parts]),
        np.concatenate([rows.targets for _, rows in parts]),
        scaled_on=_in_class(trained, outputs).outputs.embedding,
        like=outlier.model,
        detector=outlier.chosen.detector,
        head=_head_of(trained, outputs),
    )


def _choose_none(
    trained: Trained, outputs: SplitOutputs, decider: Decider, outlier: OutlierChoice
) -> NoneChoice:
    in_class = _in_class(trained, outputs)
    groups: list[Mapping[str, Judged]] = [
        {kind: _judged(decider, its) for kind, its in outputs.foreign.items()}
    ]
    fit = Labelled(outputs.fit, outputs.fit_rows.targets)
    head = _head_of(trained, outputs) if trained.is_body_frozen else None
    without = [
        _judged_without(left_out, decider.calibration, outlier)
        for left_out in leave_classes_out(
            fit, in_class, head=head, keep_logit=False, seed=trained.seed
        )
    ]
    if without:
        best, p_value = (
            np.concatenate([getattr(one, name) for one in without]) for name in ("best", "p_value")
        )
        kind = CLASSES_LEFT_OUT if trained.is_body_frozen else LEARNED_LEFT_OUT
        groups.append({kind: Judged(best, p_value)})
    return choose_none(
        _judged(decider, in_class.outputs),
        groups,
        reported={kind: _judged(decider, its) for kind, its in outputs.foreign_reported.items()},
        loss=trained.none_loss or DEFAULT_LOSS,
        alpha=trained.alpha,
        smallest_alpha=decider.outlier.smallest_alpha,
        seed=trained.seed,
    )


def _judged(decider: Decider, outputs: Outputs) -> Judged:
    best = decider.probabilities(outputs).max(axis=1)
    return Judged(best, decider.outlier.p_value(decider.scores(outputs)))


def _judged_without(left_out: LeftOut, calibration: Calibration, outlier: OutlierChoice) -> Judged:
    """Images of the class that was left out, as a model of the other classes would see them."""
    others = calibration
    if calibration.slopes:
        slopes, intercepts = (
            tuple(np.delete(its, left_out.index).tolist())
            for its in (calibration.slopes, calibration.intercepts)
        )
        others = calibration.model_copy(update={"slopes": slopes, "intercepts": intercepts})
    chances = probabilities(left_out.outputs.logits, others, "single")
    model = left_out.fitted(outlier.model.choice).with_detector(outlier.chosen.detector)
    scores = model.score(left_out.outputs.embedding, left_out.outputs.logits)[0]
    calibrated = model.calibrated(scores[~left_out.is_foreign])
    foreign = left_out.is_foreign
    return Judged(chances[foreign].max(axis=1), calibrated.p_value(scores[foreign]))
