"""Would more data help? The same training on growing shares of the data, and what that tells.

Errors fall as a power of the number of images over wide ranges (Hestness et al. 2017, "Deep
Learning Scaling is Predictable, Empirically"), so the points say what twice as many would bring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.store import ModelStore
from training.charts import Chart, Series, stand_alone
from training.fine_tuning import fine_tune, train_from_scratch
from training.loop import Arrays, Samples
from training.loss import Targets, metric_name, trainable_rows
from training.mapped import ChosenRows
from training.preparation import Prepared
from training.progress import ProgressBar
from training.splits import Split

SHARES = (0.125, 0.25, 0.5, 1.0)
_WORTH_MENTIONING = 0.005  # of the metric, that twice the images are expected to bring


@dataclass(frozen=True)
class Point:
    """What a share of the data reached on validation."""

    share: float
    images: int
    metric: float


@dataclass(frozen=True)
class LearningCurve:
    """Points by rising share, and what they say."""

    metric_name: str
    validation_images: int
    points: tuple[Point, ...]
    expected_at_twice: float | None  # None: no error falls along the points
    more_helps: bool | None  # None: too close to call
    sentence: str


def learning_curve(
    prepared: Prepared,
    store: ModelStore,
    shares: Sequence[float] = SHARES,
    *,
    show_progress: bool = True,
    say: Callable[[str], None] = lambda message: None,
) -> LearningCurve:
    """Train on each share, nested and stratified, with as many steps as on all of the data.

    Validation is the same for all; test is not touched. `shares` are two or more that rise, over 0
    and at most 1.
    """
    points = []
    for share in shares:
        bar = ProgressBar(f"on {share:.1%}", enabled=show_progress)
        point = _train_on(prepared, store, share, bar)
        say(f"{share:.1%} of the images, {point.images}: {point.metric:.4f}")
        points.append(point)
    validation = prepared.splits[Split.VALIDATION]
    count = len(trainable_rows(validation.targets))
    return judge(metric_name(prepared.source.task), count, points)


def share_rows(targets: Targets, share: float, seed: int) -> NDArray[np.int64]:
    """Ascending rows of a share, at least one of each class; larger shares hold the smaller ones.

    Strata are classes; of rows with several labels, the rarest.
    """
    rows = trainable_rows(targets)
    strata = _strata(np.asarray(targets[rows]))
    places = np.empty(len(rows))  # of a row among those of its stratum, 0 to 1
    random = np.random.default_rng(seed)
    for stratum in np.unique(strata):
        members = np.nonzero(strata == stratum)[0]
        places[members] = random.permutation(len(members)) / len(members)
    chosen: NDArray[np.int64] = rows[places < share]
    return chosen


def judge(name: str, validation_images: int, points: Sequence[Point]) -> LearningCurve:
    """What the points say of more data; the last two and the power law through all have a say."""
    last, before = points[-1], points[-2]
    gain = last.metric - before.metric
    share = min(max(last.metric, 1 / validation_images), 1 - 1 / validation_images)
    chance = math.sqrt(share * (1 - share) / validation_images)  # one standard error
    expected = _at_twice(points)
    start = (
        f"From {before.images} to {last.images} images {name} on validation went from"
        f" {before.metric:.3f} to {last.metric:.3f} (chance moves it by {chance:.3f})"
    )
    helps: bool | None
    if expected is None or gain <= 0 or expected - last.metric < _WORTH_MENTIONING:
        helps = False
        end = (
            "more images of the same kind would hardly help; look at mistakes and labels, at a"
            " larger network, or at images of another kind."
        )
    elif gain > 2 * chance:
        helps = True
        end = f"more would help: twice as many are expected to reach {expected:.3f}."
    else:
        helps = None
        end = (
            f"whether more would help is too close to call: twice as many may reach"
            f" {expected:.3f}, and more validation images would tell."
        )
    return LearningCurve(name, validation_images, tuple(points), expected, helps, f"{start}; {end}")


def picture(curve: LearningCurve) -> str:
    """The points, and what twice the images are expected to reach, as an SVG drawing."""
    x = np.array([math.log2(point.images) for point in curve.points])
    y = np.array([point.metric for point in curve.points])
    series = [Series("measured", x, y, "dots")]
    if curve.expected_at_twice is not None:
        ahead = np.array([y[-1], curve.expected_at_twice])
        series.append(Series("expected", np.array([x[-1], x[-1] + 1]), ahead, colour=2))
    return stand_alone(
        Chart(
            title=f"{curve.metric_name} on validation by number of images",
            x_label="images to train on, power of two",
            y_label=curve.metric_name,
            series=series,
        )
    )


def _train_on(prepared: Prepared, store: ModelStore, share: float, bar: ProgressBar) -> Point:
    fit, validation = (prepared.splits[its] for its in (Split.FIT, Split.VALIDATION))
    rows = share_rows(fit.targets, share, prepared.seed)
    settings = replace(prepared.settings, epochs=math.ceil(prepared.settings.epochs / share))
    network, task = prepared.network(store), prepared.source.task
    chosen, warped = _chosen(fit, rows), _chosen(prepared.fit, rows)
    if prepared.weights is None:
        history = train_from_scratch(network, warped, validation, settings, task, [bar])
    else:
        tuned = fine_tune(
            *(network, chosen, validation, settings, task, [bar]),
            body_fit=warped,
            folder=store.home / "cache",
        )
        history = tuned.history
    return Point(share, len(rows), history.metric)


def _chosen(samples: Samples, rows: NDArray[np.int64]) -> Arrays:
    images: Any = ChosenRows(samples.images, rows)
    return Arrays(images, np.asarray(samples.targets[rows]))


def _strata(targets: Targets) -> NDArray[np.int64]:
    if targets.ndim == 1:
        return np.asarray(targets, np.int64)
    frequency = targets.sum(axis=0)
    rarity = np.where(targets > 0, frequency, np.inf)
    return np.where(targets.any(axis=1), rarity.argmin(axis=1), -1)


def _at_twice(points: Sequence[Point]) -> float | None:
    """The metric at twice the images of the last point, by a power law through the errors."""
    images = np.log([point.images for point in points])
    errors = np.log([max(1 - point.metric, 1e-4) for point in points])
    slope, _ = np.polyfit(images, errors, 1)
    if slope >= 0:
        return None
    # From the last point on, which is the best measured and must not be missed.
    return float(1 - math.exp(errors[-1] + slope * math.log(2)))
