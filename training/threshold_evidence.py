"""Whether a tuned threshold can be trusted, and the one sentence that says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.objectives import Counts, FScore, Objective, Target
from training.threshold_choice import (
    TargetEvidence,
    ThresholdChoice,
    interval,
    interval_of_known,
    mean_of_known,
    plain,
    verdict,
)
from training.threshold_search import GRID, CountTable, Plateau, nearest, says_yes_to_anything

Floats = NDArray[np.float64]

LEAST_POSITIVES = 10  # in all classes together, and negatives; fewer and nothing can be tuned
LEAST_BETWEEN = 10  # probabilities between the ends of the grid, for thresholds to differ at all

_F1 = (FScore(average="macro"), FScore(average="micro"))

# What a choice must keep to be trusted.
MOST_SPREAD = 0.08  # standard deviation of the threshold over the bootstrap
LEAST_PLATEAU = 0.05  # width
MOST_WIGGLE = 0.10  # total variation beyond one rise and one fall, in F1 (Objective.scale)
MOST_DISAGREEMENT = 0.15  # distance to where the threshold of a calibrated model belongs


def explain(
    objective: Objective, counts: CountTable, found: Plateau, drawn: Floats
) -> ThresholdChoice:
    """The choice with its evidence, by re-draws.

    `drawn` B x 4: threshold, score and target on rows left out, score of the drawn rows at the
    threshold in force.
    """
    whole = counts.whole()
    index, kept_for = index_in_force(found, whole), _too_few(whole)
    tuned = found.found and not kept_for
    value, spread = float(GRID[index]), float(drawn[:, 0].std())
    variation, wiggle = _variation(found.curve[found.allowed])
    rule = objective.belongs_at(float(found.smoothed.max()))
    target = _target_evidence(objective, whole, index, found, drawn[:, 2])
    plateau = (float(GRID[found.low]), float(GRID[found.high]))
    sign = -1.0 if objective.lower_is_better else 1.0
    choice = ThresholdChoice(
        objective=objective.name,
        value=value,
        trusted=False,
        sentence="",
        grid=plain(GRID),
        curve=plain(sign * found.curve),
        smoothed=plain(sign * found.smoothed),
        score=float(sign * found.curve[index]),
        score_at_half=float(sign * found.curve[nearest(0.5)]),
        spread=spread,
        interval=interval(drawn[:, 0]),
        total_variation=variation,
        wiggle=wiggle,
        plateau=plateau if tuned else None,
        half_best_f1=rule[0] if rule and objective in _F1 else None,
        refused_all_positive=found.refused,
        curve_name=objective.curve_name,
        lower_is_better=objective.lower_is_better,
        score_left_out=mean_of_known(sign * drawn[:, 1]),
        score_interval=interval_of_known(sign * drawn[:, 3]),
        score_left_out_interval=interval_of_known(sign * drawn[:, 1]),
        belongs_at=rule[0] if rule else None,
        belongs_by=rule[1] if rule else None,
        target=target,
    )
    doubts = [kept_for] if kept_for else _kept_for(objective, found, choice, whole)
    if not doubts:
        doubts = _doubts(choice, objective.scale(whole), counts.between)
    return replace(choice, trusted=not doubts, sentence=_sentence(choice, doubts))


def index_in_force(found: Plateau, whole: Counts) -> int:
    """Index into the grid of the threshold that is kept."""
    return found.fallback if _too_few(whole) else found.index


def targeted(objective: Objective, counts: Counts) -> Floats:
    """The targeted measure by threshold; NaN where there is no target."""
    if isinstance(objective, Target):
        return objective.measured(counts)
    return np.full(counts.true.shape[1], np.nan)


def _too_few(whole: Counts) -> str | None:
    """Why nothing can be tuned, where there is too little to see."""
    for what, count in (("positives", whole.positives), ("negatives", whole.negatives)):
        if count.sum() < LEAST_POSITIVES:
            return f"{int(count.sum())} {what} are too few to tune on, so this is kept"
    return None


def _kept_for(
    objective: Objective, found: Plateau, choice: ThresholdChoice, whole: Counts
) -> list[str]:
    """Why the fallback is kept, where the search found nothing to take."""
    target = choice.target
    if found.refused:
        return [
            f"{_name(choice)} is best where nearly"
            " everything is called positive, which is what a model that knows nothing would"
            " choose, so this is kept"
        ]
    if target is None or not found.unreachable:
        return []
    at = nearest(target.best_at)
    free = objective.score(whole)
    return [
        f"{objective.name} cannot be assured at any threshold. The best is {target.best_at:.2f},"
        f" where {_share(targeted(objective, whole)[at])} is measured and"
        f" {target.best_assured:.3f} assured, with {choice.curve_name} {_share(free[at])}. This"
        f" is kept, with {target.of} {_share(target.measured)} and {choice.curve_name}"
        f" {choice.score:.3f}"
    ]


def _name(choice: ThresholdChoice) -> str:
    is_score = choice.target is None and not choice.lower_is_better
    return choice.curve_name if is_score else choice.objective


def _share(value: float | None) -> str:
    return "nothing" if value is None or np.isnan(value) else f"{value:.3f}"


def _target_evidence(
    objective: Objective, whole: Counts, index: int, found: Plateau, left_out: Floats
) -> TargetEvidence | None:
    if not isinstance(objective, Target):
        return None
    assured, measured = objective.assured(whole), objective.measured(whole)[index]
    sensible = np.where(says_yes_to_anything(whole), -1, assured)
    best = int(sensible.argmax())
    return TargetEvidence(
        of=objective.of,
        least=objective.least,
        reached=bool(assured[index] >= objective.least),
        measured=None if np.isnan(measured) else float(measured),
        assured=float(assured[index]),
        left_out=mean_of_known(left_out),
        best_assured=float(assured[best]),
        best_at=float(GRID[best]),
    )


def _variation(curve: Floats) -> tuple[float, float]:
    """Total variation, and how much of it one rise and one fall do not explain."""
    if not curve.size:
        return 0.0, 0.0
    variation = float(np.abs(np.diff(curve)).sum())
    return variation, variation - float(2 * curve.max() - curve[0] - curve[-1])


def _doubts(choice: ThresholdChoice, scale: float, between: int) -> list[str]:
    """What speaks against a threshold that was found."""
    assert choice.plateau is not None
    width = choice.plateau[1] - choice.plateau[0]
    off = 0.0 if choice.belongs_at is None else abs(choice.belongs_at - choice.value)
    target = choice.target
    left_out = None if target is None else target.left_out
    checks = [
        (
            between < LEAST_BETWEEN,
            f"{between} probabilities lie between {GRID[0]} and {GRID[-1]}, so that nearly every"
            " threshold decides the same",
        ),
        (
            choice.wiggle > MOST_WIGGLE * (scale or 1),
            f"the curve wiggles by {choice.wiggle:.2g} beyond one rise and one fall",
        ),
        # With a target the curve ends where it is missed, and its top lies there.
        (
            target is None and width < LEAST_PLATEAU - 1e-9,
            f"its plateau is only {width:.2f} wide",
        ),
        (
            choice.spread > MOST_SPREAD,
            f"other rows would have moved it by {choice.spread:.2f}",
        ),
        (
            off > MOST_DISAGREEMENT,
            f"it lies {off:.2f} from {choice.belongs_by}, so the probabilities may not be"
            " calibrated",
        ),
        (
            target is not None and (left_out or 0) < target.least,
            f"on rows left out it was missed on average ({_share(left_out)})",
        ),
    ]
    return [text for failed, text in checks if failed]


def _sentence(choice: ThresholdChoice, doubts: list[str]) -> str:
    value, target = choice.value, choice.target
    if doubts:
        return f"{verdict(False)} {value:.2f} for {_name(choice)}: {'; '.join(doubts)}."
    moved = f"other rows would have moved it by {choice.spread:.2f}"
    if target is not None:
        return (
            f"{verdict(True)} {value:.2f} gives {choice.curve_name} {choice.score:.3f} at"
            f" {target.of} {_share(target.measured)}, of which {target.assured:.3f} is assured"
            f" ({target.least:g} wanted); {moved}, and on rows left out {target.of} was"
            f" {_share(target.left_out)}."
        )
    assert choice.plateau is not None
    rule = ""
    if choice.belongs_at is not None:
        rule = f", and {choice.belongs_by} ({choice.belongs_at:.2f}) agrees"
    return (
        f"{verdict(True)} {value:.2f} is the middle of a smooth {choice.curve_name} plateau from "
        f"{choice.plateau[0]:.2f} to {choice.plateau[1]:.2f}, {moved}{rule}."
    )
