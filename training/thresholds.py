"""Thresholds tuned with evidence: from calibrated probabilities to labels, or to none of them.

The best point of a threshold curve is partly luck. So the curve is smoothed, the middle of its
plateau is taken instead of its peak, a bootstrap says how far the choice would move on other
rows, and one sentence says whether it can be trusted and why. Measured on five re-splits of
multi-label emoji, test macro F1: 0.619 at 0.5, 0.680 at the plateau's centre, 0.647 at the best
point of each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from model.decision import Thresholds
from model.errors import DataError
from training.calibration import checked_table
from training.metrics import Weights, bootstrap, f1_from_counts, mean_of_present

Array = NDArray[Any]
Floats = NDArray[np.float64]

GRID = np.arange(1, 100) / 100  # thresholds tried
SMOOTHING = 7  # grid points under the moving average
PLATEAU_DEPTH = 0.01  # F1 that the plateau may lie below the top of the smoothed curve
BOOTSTRAP = 200
LEAST_POSITIVES = 10  # in all classes together; fewer and there is nothing to tune on
ALL_POSITIVE_RATE = 0.9  # mean false-positive rate from which a threshold says yes to anything
FALLBACK = 0.5

# What a choice must keep to be trusted.
MOST_SPREAD = 0.08  # standard deviation of the threshold over the bootstrap
LEAST_PLATEAU = 0.05  # width
MOST_WIGGLE = 0.10  # total variation beyond one rise and one fall
MOST_DISAGREEMENT = 0.15  # distance to half the best F1
LEAST_LOST = 10  # rows below a "none" threshold, for its quantile to mean something


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, the evidence for it, and whether the evidence is good.

    `grid`, `curve` and `smoothed` are the drawn curve: F1 by threshold, or for "none" the share
    of rightly answered images that keep their label. `spread` is the standard deviation of the
    chosen threshold over the bootstrap, `interval` its 2.5 % and 97.5 % points. `wiggle` is the
    part of `total_variation` that one rise and one fall do not explain.
    """

    objective: str
    value: float
    trusted: bool
    sentence: str
    grid: tuple[float, ...]
    curve: tuple[float, ...]
    smoothed: tuple[float, ...]
    score: float  # of the curve at `value`
    score_at_half: float
    spread: float
    interval: tuple[float, float]
    total_variation: float
    wiggle: float
    plateau: tuple[float, float] | None = None
    half_best_f1: float | None = None
    refused_all_positive: bool = False

    @property
    def plateau_width(self) -> float | None:
        """Width of the plateau in units of probability, None where there is none."""
        return None if self.plateau is None else round(self.plateau[1] - self.plateau[0], 4)

    def to_thresholds(self) -> Thresholds:
        """The part that decides, for the bundle."""
        return Thresholds(objective=self.objective, value=self.value)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready, for the manifest; figures to four digits but `value` exact."""
        plain: dict[str, Any] = {name: _rounded(value) for name, value in asdict(self).items()}
        return {**plain, "value": self.value, "plateau_width": self.plateau_width}


def tune_global_threshold(
    probabilities: Array,
    targets: Array,
    *,
    objective: str = "macro_f1",
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> ThresholdChoice:
    """One threshold for all classes: the middle of the plateau of the F1 curve on validation.

    `probabilities` calibrated, N x C; `targets` 0/1 N x C; `objective` "macro_f1" or "micro_f1";
    `bootstrap` re-draws of the rows. Classes without positives are left out of macro F1.

    An F1 curve of a model that knows nothing peaks where everything is called positive; that
    optimum is refused, as are data with fewer than 10 positives, and 0.5 is kept instead.
    Half the best F1 is where the threshold of a calibrated model belongs (Lipton et al. 2014);
    a choice far from it is not trusted.

    Raises DataError for ill shapes, ValueError for an unknown objective.
    """
    if objective not in ("macro_f1", "micro_f1"):
        raise ValueError(f"objective must be 'macro_f1' or 'micro_f1', got {objective!r}")
    table, wanted = checked_table(probabilities, targets)
    if wanted.ndim != 2:
        raise DataError(f"expected targets of shape {table.shape}, got {wanted.shape}")
    counts = _Counts(table, wanted)
    score = partial(_f1_curve, micro=objective == "micro_f1")
    whole = counts.at(np.ones(len(table)))
    raw = score(whole)
    choice = _middle_of_plateau(raw, _says_yes_to_anything(whole))
    drawn = _redraw(lambda row: _choose(counts.at(row), score), len(table), bootstrap, seed)
    return _explain(objective, raw, choice, drawn, positives=int(wanted.sum()))


def tune_none_threshold(
    probabilities: Array,
    targets: Array,
    *,
    in_class_loss: float = 0.01,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> ThresholdChoice:
    """The threshold under which a single-label model says "none of the classes".

    `probabilities` calibrated, N x C; `targets` class indices N, all of them in-class. It is the
    largest threshold at which at most `in_class_loss` of the rightly answered images lose their
    label. It says nothing of foreign images: measure those on foreign images, and read the
    outlier flag beside it.

    Raises DataError for ill shapes, a loss outside 0 to 1, or a model that is never right.
    """
    table, wanted = checked_table(probabilities, targets)
    if wanted.ndim != 1:
        raise DataError(f"expected class indices of shape N, got {wanted.shape}")
    if not 0 <= in_class_loss < 1:
        raise DataError(f"in_class_loss must lie in 0 to 1, got {in_class_loss}")
    right = np.sort(table.max(axis=1)[table.argmax(axis=1) == wanted])
    if not right.size:
        raise DataError("no validation image is answered rightly: no threshold can be tuned")
    lost_at_most = int(in_class_loss * right.size)
    # Labels are empty strictly below the threshold, so this one loses just what stands before it.
    value = float(right[lost_at_most])
    kept = 1 - np.searchsorted(right, GRID.astype(np.float32), side="left") / right.size

    def redrawn(row: Floats) -> float:
        mass = row.cumsum()
        return float(right[np.searchsorted(mass, in_class_loss * mass[-1], side="right")])

    drawn = _redraw(redrawn, right.size, bootstrap, seed)
    lost = int((right < value).sum())
    trusted = lost >= LEAST_LOST and drawn.std() <= MOST_SPREAD
    sentence = (
        f"{_verdict(trusted)} below {value:.2f} the answer is none, which costs {lost} of "
        f"{right.size:,} rightly answered validation images ({100 * lost / right.size:.1f} %, "
        f"at most {100 * in_class_loss:.1f} % allowed); other rows would have moved it by "
        f"{drawn.std():.3f}"
        + ("." if lost >= LEAST_LOST else f"; {lost} images are too few to place it well.")
    )
    return ThresholdChoice(
        objective=f"none_at_in_class_loss_{in_class_loss:g}",
        value=value,
        trusted=bool(trusted),
        sentence=sentence,
        grid=_plain(GRID),
        curve=_plain(kept),
        smoothed=_plain(kept),
        score=1 - lost / right.size,
        score_at_half=float(kept[_nearest(0.5)]),
        spread=float(drawn.std()),
        interval=_interval(drawn),
        total_variation=float(np.abs(np.diff(kept)).sum()),
        wiggle=0.0,
    )


class _Counts:
    """Counts of true positives, positives answered and actual positives at every threshold."""

    def __init__(self, table: Floats, wanted: Array) -> None:
        self.classes = table.shape[1]
        # How many thresholds of the grid each cell reaches; float32 as in `decide`.
        reached = np.searchsorted(GRID.astype(np.float32), table.astype(np.float32), side="right")
        self.bins = len(GRID) + 1
        self.cell = (reached + np.arange(self.classes) * self.bins).ravel()
        self.wanted = wanted.ravel().astype(np.float64)

    def at(self, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """True positives and positives answered, C x grid; positives and negatives, C x 1."""
        each = np.repeat(weights, self.classes)
        answered = self._tail(each)
        true = self._tail(each * self.wanted)
        positives = true[:, :1]
        return true[:, 1:], answered[:, 1:], positives, answered[:, :1] - positives

    def _tail(self, cells: Floats) -> Floats:
        counts = np.bincount(self.cell, cells, minlength=self.classes * self.bins)
        return counts.reshape(self.classes, self.bins)[:, ::-1].cumsum(axis=1)[:, ::-1]


def _f1_curve(counts: tuple[Floats, Floats, Floats, Floats], *, micro: bool) -> Floats:
    true, answered, positives, _ = counts
    if micro:
        return f1_from_counts(true.sum(axis=0), answered.sum(axis=0), positives.sum(axis=0))
    by_class = f1_from_counts(true, answered, positives + np.zeros_like(true))
    return mean_of_present(by_class.T)


def _says_yes_to_anything(counts: tuple[Floats, Floats, Floats, Floats]) -> NDArray[np.bool_]:
    """Thresholds at which the classes are called positive on nearly all of their negatives."""
    true, answered, _, negatives = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(negatives > 0, (answered - true) / negatives, np.nan)
    return np.nan_to_num(mean_of_present(rate.T)) >= ALL_POSITIVE_RATE


@dataclass(frozen=True)
class _Plateau:
    smoothed: Floats
    low: int
    high: int
    refused: bool

    @property
    def value(self) -> float:
        return FALLBACK if self.refused else float(GRID[(self.low + self.high) // 2])


def _middle_of_plateau(raw: Floats, forbidden: NDArray[np.bool_]) -> _Plateau:
    smoothed = uniform_filter1d(np.nan_to_num(raw), SMOOTHING, mode="nearest")
    top = int(smoothed.argmax())
    level = (smoothed >= smoothed[top] - PLATEAU_DEPTH) & ~forbidden
    low = high = top
    while low > 0 and level[low - 1]:
        low -= 1
    while high < len(level) - 1 and level[high + 1]:
        high += 1
    return _Plateau(smoothed, low, high, refused=bool(forbidden[top]))


def _choose(
    counts: tuple[Floats, Floats, Floats, Floats],
    score: Callable[[tuple[Floats, Floats, Floats, Floats]], Floats],
) -> float:
    return _middle_of_plateau(score(counts), _says_yes_to_anything(counts)).value


def _redraw(choose: Callable[[Floats], float], rows: int, resamples: int, seed: int) -> Floats:
    """The threshold that each re-draw of the rows would have chosen."""
    if resamples < 2:
        raise ValueError(f"bootstrap must be at least 2, got {resamples}")

    def values(weights: Weights) -> Floats:
        return np.array([choose(row.astype(np.float64)) for row in weights])

    return bootstrap(values, rows, resamples=resamples, seed=seed)


def _explain(
    objective: str, raw: Floats, choice: _Plateau, drawn: Floats, *, positives: int
) -> ThresholdChoice:
    curve = np.nan_to_num(raw)
    too_few = positives < LEAST_POSITIVES
    value = FALLBACK if too_few else choice.value
    variation = float(np.abs(np.diff(curve)).sum())
    wiggle = variation - float(2 * curve.max() - curve[0] - curve[-1])
    half_best = float(choice.smoothed.max()) / 2
    plateau = (float(GRID[choice.low]), float(GRID[choice.high]))
    name = objective.replace("_", " ").replace("f1", "F1")
    if too_few:
        doubts = [f"{positives} positives are too few to tune on, so {FALLBACK} is kept"]
    elif choice.refused:
        doubts = [
            f"{name} is best where nearly everything is called positive, which is what a model "
            f"that knows nothing would choose, so {FALLBACK} is kept"
        ]
    else:
        doubts = _doubts(plateau, float(drawn.std()), wiggle, abs(half_best - value))
    return ThresholdChoice(
        objective=objective,
        value=value,
        trusted=not doubts,
        sentence=_sentence(value, name, doubts, plateau, float(drawn.std()), half_best),
        grid=_plain(GRID),
        curve=_plain(curve),
        smoothed=_plain(choice.smoothed),
        score=float(curve[_nearest(value)]),
        score_at_half=float(curve[_nearest(0.5)]),
        spread=float(drawn.std()),
        interval=_interval(drawn),
        total_variation=variation,
        wiggle=wiggle,
        plateau=None if too_few or choice.refused else plateau,
        half_best_f1=half_best,
        refused_all_positive=choice.refused,
    )


def _doubts(
    plateau: tuple[float, float], spread: float, wiggle: float, disagreement: float
) -> list[str]:
    width = plateau[1] - plateau[0]
    checks = [
        (wiggle > MOST_WIGGLE, f"the curve wiggles by {wiggle:.2f} beyond one rise and one fall"),
        (width < LEAST_PLATEAU - 1e-9, f"its plateau is only {width:.2f} wide"),
        (spread > MOST_SPREAD, f"other rows would have moved it by {spread:.2f}"),
        (
            disagreement > MOST_DISAGREEMENT,
            f"it lies {disagreement:.2f} from half the best F1, so the probabilities may not be "
            "calibrated",
        ),
    ]
    return [text for failed, text in checks if failed]


def _sentence(
    value: float,
    name: str,
    doubts: list[str],
    plateau: tuple[float, float],
    spread: float,
    half_best: float,
) -> str:
    if doubts:
        return f"{_verdict(False)} {value:.2f} for {name}: {'; '.join(doubts)}."
    return (
        f"{_verdict(True)} {value:.2f} is the middle of a smooth {name} plateau from "
        f"{plateau[0]:.2f} to {plateau[1]:.2f}, other rows would have moved it by {spread:.2f}, "
        f"and half the best F1 ({half_best:.2f}) agrees."
    )


def _verdict(trusted: bool) -> str:
    return "Can be trusted:" if trusted else "To be taken with care:"


def _nearest(threshold: float) -> int:
    return int(np.abs(GRID - threshold).argmin())


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _plain(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(each) for each in value] if isinstance(value, tuple) else value
