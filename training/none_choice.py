"""When a single-label model says "none of the classes": its threshold and its flag, together.

Two things can tell an image that is none of the classes: a low probability of the best class, and
the outlier flag. Both cost images of the classes. For a stated loss of those together, the share
that the flag may take is chosen by what the two find: made foreign images, which the flag finds
best, and the images of classes left out, which look like the others and rather show by their
probability. Of made and given foreign images one half chooses, and what is found is told of the
other half. Classes left out are validation images: theirs is told of those that chose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import Metric
from model.errors import DataError
from training.metrics import Weights, bootstrap, share_of, wilson_interval
from training.threshold_evidence import MOST_SPREAD
from training.threshold_search import GRID
from training.thresholds import BOOTSTRAP, LEAST_LOST, ThresholdChoice

Floats = NDArray[np.float64]

DEFAULT_LOSS = 0.02  # share of the images of the classes
FLAG_SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)  # of the loss, that the flag may take


@dataclass(frozen=True)
class Judged:
    """Some images as the model sees them: best probability and conformal p-value, N each."""

    best: Floats
    p_value: Floats

    def none_or_flagged(self, threshold: float, alpha: float) -> NDArray[np.bool_]:
        """Which get no label or a flag, N."""
        return np.asarray((self.best < threshold) | (self.p_value <= alpha))


@dataclass(frozen=True)
class NoneChoice:
    """Threshold and alpha, and the share of each kind of foreign images that they find.

    `found` is of images that did not choose, but of classes left out.
    """

    threshold: ThresholdChoice
    alpha: float
    lost: Metric  # share of the images of the classes that get no label or a flag
    found: Mapping[str, Metric]

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        found = {kind: its.model_dump() for kind, its in self.found.items()}
        flag = {"alpha": self.alpha, "lost": self.lost.model_dump(), "found": found}
        return {**self.threshold.to_dict(), "with_flag": flag}


def choose_none(
    in_class: Judged,
    foreign: Sequence[Mapping[str, Judged]],
    *,
    reported: Mapping[str, Judged] | None = None,
    loss: float = DEFAULT_LOSS,
    alpha: float | None = None,
    smallest_alpha: float = 0.0,
    seed: int = 0,
) -> NoneChoice:
    """The threshold and alpha that find most, and lose at most `loss` of the images in class.

    `in_class` are validation images of the classes; `foreign` are groups of kinds, each group of
    equal weight, such as made images and classes left out. `reported` are other images of those
    kinds, on which what is found is told; of a kind without any it is of those that chose. An
    `alpha` that is given stays, and the threshold takes what it leaves of the loss; under
    `smallest_alpha` nothing is ever flagged.
    Raises DataError for a loss outside 0 to 1, or no image in class.
    """
    if not 0 < loss < 1:
        raise DataError(f"the loss in class must lie between 0 and 1, got {loss}")
    if not len(in_class.best):
        raise DataError("no labelled validation image to tune the threshold on; label some")
    alphas = [share * loss for share in FLAG_SHARES] if alpha is None else [alpha]
    # Chance may flag more images in class than a rate says, and more than may be lost.
    flagged = {one: float((in_class.p_value <= one).mean()) for one in alphas}
    usable = [one for one in alphas if one >= smallest_alpha and flagged[one] <= loss]
    usable = usable or alphas[:1]

    def gain(one: float) -> float:
        threshold = _largest_threshold(in_class, loss, one)
        groups = [
            [its.none_or_flagged(threshold, one).mean() for its in group.values()]
            for group in foreign
            if group
        ]
        return float(np.mean([np.mean(shares) for shares in groups])) if groups else 0.0

    best = max(usable, key=gain)  # the first, so the smallest, of equals
    threshold = _largest_threshold(in_class, loss, best)
    told = {kind: its for group in foreign for kind, its in group.items()} | dict(reported or {})
    found = {kind: _share(its, threshold, best) for kind, its in told.items()}
    return NoneChoice(
        threshold=_explain(in_class, threshold, loss, best, smallest_alpha, found, seed),
        alpha=best,
        lost=_share(in_class, threshold, best),
        found=found,
    )


def _share(judged: Judged, threshold: float, alpha: float) -> Metric:
    gone = judged.none_or_flagged(threshold, alpha)
    return share_of(int(gone.sum()), len(gone))


def _largest_threshold(in_class: Judged, loss: float, alpha: float) -> float:
    """Under which so few unflagged images lie that loss holds.

    Where the flag takes it all, or an image more would be too many: that under which none lies, so
    that an image of which the network is less sure than of all of these still gets none.
    """
    return _threshold(np.sort(in_class.best[in_class.p_value > alpha]), len(in_class.best), loss)


def _threshold(unflagged: Floats, count: int, loss: float) -> float:
    """`unflagged` best probabilities, ascending, of `count` images in all."""
    may_go = int(np.floor(loss * count + 1e-9)) - (count - len(unflagged))
    if not len(unflagged):
        return 0.0
    # Labels are empty strictly below the threshold.
    return float(unflagged[min(max(may_go, 0), len(unflagged) - 1)])


def _explain(
    in_class: Judged,
    value: float,
    loss: float,
    alpha: float,
    smallest_alpha: float,
    found: Mapping[str, Metric],
    seed: int,
) -> ThresholdChoice:
    """The threshold with what it costs, and how far other rows would have moved it."""
    flagged = in_class.p_value <= alpha
    count = len(in_class.best)

    def redrawn(weights: Weights) -> Floats:
        chosen = [np.repeat(np.arange(count), row.astype(int)) for row in weights]
        return np.array(
            [_threshold(np.sort(in_class.best[its][~flagged[its]]), count, loss) for its in chosen]
        )

    drawn = bootstrap(redrawn, count, resamples=BOOTSTRAP, seed=seed)
    kept = np.array([float((~in_class.none_or_flagged(one, alpha)).mean()) for one in GRID])
    lost = in_class.none_or_flagged(value, alpha)
    unlabelled = int((lost & ~flagged).sum())
    trusted = unlabelled >= LEAST_LOST and float(drawn.std()) <= MOST_SPREAD
    verdict = "Can be trusted:" if trusted else "To be taken with care:"
    seen = ", ".join(f"{100 * (its.value or 0):.0f} % of {kind}" for kind, its in found.items())
    below = f"below {value:.2f} the answer is none, and" if value else "no probability is too low,"
    sentence = (
        f"{verdict} {below} {_told_of_flag(alpha, smallest_alpha)};"
        f" together they cost {int(lost.sum())} of {count:,} validation images of the classes"
        f" ({100 * lost.mean():.1f} %, at most {100 * loss:.1f} % allowed)"
        + (f" and find {seen}" if seen else "")
        + f". Other rows would have moved the threshold by {drawn.std():.3f}"
        + ("." if unlabelled >= LEAST_LOST else f"; {unlabelled} images are too few to place it.")
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    most_lost = wilson_interval(int(lost.sum()), count)
    plain = tuple(float(one) for one in kept)
    return ThresholdChoice(
        objective=f"none_or_flag_at_in_class_loss_{loss:g}",
        value=value,
        trusted=bool(trusted),
        sentence=sentence,
        grid=tuple(float(one) for one in GRID),
        curve=plain,
        smoothed=plain,
        score=1 - float(lost.mean()),
        score_at_half=float(kept[int(np.abs(GRID - 0.5).argmin())]),
        spread=float(drawn.std()),
        interval=(float(low), float(high)),
        total_variation=float(np.abs(np.diff(kept)).sum()),
        wiggle=0.0,
        score_interval=(1 - most_lost[1], 1 - most_lost[0]),
    )


def _told_of_flag(alpha: float, smallest_alpha: float) -> str:
    if alpha >= smallest_alpha:
        return f"the flag is raised at {alpha:.3g}"
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    return (
        f"nothing is ever flagged at {alpha:.3g} by so few calibration images"
        f" ({needed:,} are needed)"
    )
