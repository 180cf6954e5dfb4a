"""A version of the champion whose calibration split is a random, confirmed sample of production.

Production may differ a little from the training data from the first day. Then the drift alarm is
right and comes at once, and the share flagged is not alpha: what both are held to is another
domain. Nothing has to be trained for that. What is needed are calibration images of the domain as
it is: drawn at random, whatever was said of them, and confirmed by people. Images that were chosen
by their flag would teach the flag that what it finds is ordinary, or that nothing is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Engine

from model.bundle import Bundle, Manifest, Metric
from model.errors import MonitorError
from model.store import ModelStore
from monitoring.accuracy import wilson_interval
from monitoring.derived_version import (
    Derived,
    in_words,
    make_derived_version,
    measured,
    metric_key,
    metric_name,
)
from monitoring.labels import Answers, fault, said_of
from monitoring.outlier import conformal_p_values
from monitoring.random_sample import Period, RandomSample, random_sample
from monitoring.settings import MonitoringSettings
from monitoring.streams import accepted_labels
from monitoring.truth import are_right, as_matrix

LEAST_CONFIRMED = 99  # images, under which nothing is ever flagged at 1 %
MOST_UNANSWERED = 0.1  # share of the sample
_BY_CHANCE = 0.01  # that so many of the unanswered are flagged; less, and they were left out for it
# As in the reference of a trained version. A name of a client has no business in a bundle, and the
# rule of the clients' shares none in a random sample.
_CLIENT, _STAGE = "calibration", "registered"


@dataclass(frozen=True)
class Confirmed:
    """What people say of a sample, all of it counted.

    `rows` (N) are those of the images of the domain, and `targets` their true labels: class indices
    N, or N x C of 0 and 1.
    """

    rows: NDArray[np.int64]
    targets: NDArray[Any]
    sampled: int
    foreign: int  # show none of the classes
    silent: int  # nobody has said anything
    unusable: int  # contradicted, or labels that the model or the task does not know
    flagged: int  # of the sample
    unanswered_flagged: int  # of those nobody has given a usable answer for

    @property
    def unanswered(self) -> int:
        """Nobody knows whether they are of the domain."""
        return self.silent + self.unusable


@dataclass(frozen=True)
class Recalibrated:
    """A registered version, and what it was made from."""

    version: str
    sentence: str
    images: Confirmed


def recalibrate(
    settings: MonitoringSettings, store: ModelStore, images: int, period: Period, why: str
) -> Recalibrated:
    """Register the champion, calibrated on the sample of so many images of that period.

    Raises `MonitorError` where too few are confirmed, or too many have no usable answer.
    """
    champion = store.load(store.champion(settings.model))
    sample = random_sample(settings, champion, images, period)
    confirmed = confirmed_of(store.state, champion.manifest, sample)
    alpha = settings.alpha or champion.manifest.outlier.alpha
    _check(champion.manifest, confirmed, period, alpha)
    derived = _derived(champion, sample, confirmed, period, alpha)
    return Recalibrated(*make_derived_version(store, champion, derived, why), confirmed)


def confirmed_of(state: Engine, manifest: Manifest, sample: RandomSample) -> Confirmed:
    """The feedback on a sample, joined.

    With one label per image one without any shows none of the classes: it is not of the domain, as
    in training, where such images calibrate nothing. Where several may apply, none is an answer.
    """
    ids = sample.records["id"].to_pylist()
    said = said_of(state, ids)
    flagged = sample.records["flagged"].to_pylist()
    rows, labels, foreign, unusable, unanswered_flagged = [], [], 0, 0, 0
    for row, prediction_id in enumerate(ids):
        if prediction_id not in said:
            unanswered_flagged += flagged[row]
            continue
        answers = said[prediction_id].answers
        if _is_foreign(answers, manifest):
            foreign += 1
        elif fault(answers, manifest) is not None:
            unusable += 1
            unanswered_flagged += flagged[row]
        else:
            rows.append(row)
            labels.append(next(iter(answers)))
    return Confirmed(
        np.array(rows, np.int64),
        _targets(labels, manifest),
        sampled=len(ids),
        foreign=foreign,
        silent=len(ids) - len(said),
        unusable=unusable,
        flagged=sum(flagged),
        unanswered_flagged=unanswered_flagged,
    )


def least_confirmed(alpha: float) -> int:
    """Images of the domain that a calibration is made from at the fewest.

    With fewer than 1 / alpha - 1 nothing would ever be flagged.

    >>> [least_confirmed(alpha) for alpha in (0.05, 0.01, 0.001)]
    [99, 99, 999]
    """
    return max(LEAST_CONFIRMED, math.ceil(1 / alpha - 1e-9) - 1)


def _is_foreign(answers: Answers, manifest: Manifest) -> bool:
    return manifest.task == "single" and set(answers) == {()}


def _targets(labels: list[tuple[str, ...]], manifest: Manifest) -> NDArray[Any]:
    if manifest.task == "single":
        return np.array([manifest.classes.index(name) for (name,) in labels], np.int64)
    rows = [[name in its for name in manifest.classes] for its in labels]
    return np.array(rows, np.uint8).reshape(len(labels), len(manifest.classes))


def _check(manifest: Manifest, its: Confirmed, period: Period, alpha: float) -> None:
    given = (
        f"of {its.sampled} sampled predictions of {manifest.tag} {period},"
        f" {len(its.rows)} are confirmed to be of the domain, {its.foreign} show none of the"
        f" classes, {its.silent} have no answer, and {its.unusable} one that is contradicted or"
        " that the task does not know"
    )
    again = "(plumbline monitor sample, with the same --images, --since and --until, lists them)"
    if its.unanswered > MOST_UNANSWERED * its.sampled:
        raise MonitorError(
            f"{given}. At most {MOST_UNANSWERED:.0%} may be without a usable answer: they may be"
            " the strange ones, and what is left is no random sample then. Label the others, too"
            f" {again}"
        )
    # Where several labels may apply, what is foreign cannot be said to be so, and is left out.
    if manifest.task == "single" and _chance_of_flags(its) < _BY_CHANCE:
        raise MonitorError(
            f"{given}. Of the {its.unanswered} without a usable answer {its.unanswered_flagged} are"
            f" flagged, and of all {its.flagged}: that is more than chance, and images chosen by"
            f" their flag are no random sample. Label those, too; [] where none applies {again}"
        )
    if len(its.rows) < (least := least_confirmed(alpha)):
        raise MonitorError(
            f"{given}. At least {least} confirmed ones are needed: with fewer nothing is ever"
            f" flagged at {1 / (least + 1):g}. Sample more,"
            f" and label all of them {again}"
        )


def _chance_of_flags(its: Confirmed) -> float:
    """That as many of the unanswered are flagged, or more, if they are any of the sample.

    Hypergeometric: Fisher's exact test, one-sided.
    """
    most = min(its.flagged, its.unanswered)
    return math.fsum(
        math.exp(
            _log_choices(its.flagged, count)
            + _log_choices(its.sampled - its.flagged, its.unanswered - count)
            - _log_choices(its.sampled, its.unanswered)
        )
        for count in range(its.unanswered_flagged, most + 1)
        if its.unanswered - count <= its.sampled - its.flagged
    )


def _log_choices(images: int, chosen: int) -> float:
    return math.lgamma(images + 1) - math.lgamma(chosen + 1) - math.lgamma(images - chosen + 1)


def _derived(
    champion: Bundle, sample: RandomSample, its: Confirmed, period: Period, alpha: float
) -> Derived:
    manifest = champion.manifest
    records = sample.records.take(pa.array(its.rows))
    # Oldest first, as the near-duplicate rule reads them, and as nothing else would tell.
    order = np.lexsort((records["id"].to_pylist(), records["time"].cast(pa.int64()).to_numpy()))
    records, targets = records.take(pa.array(order)), its.targets[order]
    scores = np.asarray(records["outlier_score"].to_numpy(), np.float32)
    metric = _metric(accepted_labels(records, manifest.classes), targets, manifest)
    return Derived(
        way="recalibrated",
        how={
            "images": len(records),
            "since": None if period.since is None else period.since.isoformat(),
            "until": period.until.isoformat(),
            "sampled": its.sampled,
            "none_of_the_classes": its.foreign,
            "unanswered": its.unanswered,
        },
        told=_told(manifest, its, period, metric, alpha),
        records=_as_reference(records, scores, manifest.outlier.alpha),
        targets=targets,
        scores=scores,
        calibration=manifest.calibration,
        metric=metric,
        of_outlier=f"recalibrated on {len(records)} images of production, drawn at random and"
        f" confirmed{_at_worst(its, alpha)}",
        of_sets="images of production with a label, drawn at random and confirmed",
    )


def _as_reference(records: pa.Table, scores: NDArray[np.float32], alpha: float) -> pa.Table:
    """The records as the new version would have written them, for itself."""
    p_values = conformal_p_values(np.sort(scores), scores)
    columns = {
        "client": [_CLIENT] * len(records),
        "stage": [_STAGE] * len(records),
        "p_value": p_values,
        "flagged": p_values <= alpha,
    }
    for name, values in columns.items():
        place, field = records.schema.get_field_index(name), records.schema.field(name)
        records = records.set_column(place, field, pa.array(values, field.type))
    return records


def _metric(given: NDArray[np.bool_], targets: NDArray[Any], manifest: Manifest) -> Metric:
    """Accuracy with Wilson's interval, or micro F1."""
    if manifest.task == "multi":
        true = as_matrix(targets, len(manifest.classes)).astype(np.float64)
        return measured(given, true, np.ones(len(given)), manifest.task)
    right = int(are_right(given, targets).sum())
    low, high = wilson_interval(right, len(given))
    return Metric(value=right / len(given), low=low, high=high, count=len(given))


def _told(manifest: Manifest, its: Confirmed, period: Period, metric: Metric, alpha: float) -> str:
    images = len(its.rows)
    foreign = f", {its.foreign} show none of the classes and are left out" if its.foreign else ""
    return (
        f"recalibrated on {images} images of production {period}: of {its.sampled} drawn at"
        f" random {images} are confirmed to be of the domain{foreign}"
        f"{_at_worst(its, alpha)}; {metric_name(manifest)} of"
        f" {in_words(metric)} on them{_if_worse(manifest, metric)}; the smallest rate of the"
        f" outlier flag is {1 / (images + 1):.2g}"
    )


def _if_worse(champion: Manifest, metric: Metric) -> str:
    """That the model is worse on production, beyond chance: no alarm will say so any more."""
    known = champion.metrics.get(metric_key(champion))
    if known is None or known.value is None or metric.high is None:
        return ""
    low = known.value if known.low is None else known.low
    if metric.high >= low:
        return ""
    return (
        f", worse than {known.value:.3f} on its {champion.metrics_split} images: a recalibration"
        " does not mend that, a retraining may, and evidence that begins from these images is"
        " silent on it"
    )


def _at_worst(its: Confirmed, alpha: float) -> str:
    """What images without an answer could hide, in words."""
    if not its.unanswered:
        return ""
    images, unanswered = len(its.rows), its.unanswered
    flagged = math.floor(alpha * (images + 1) + 1e-9)
    worst = (flagged + unanswered) / (images + unanswered + 1)
    return (
        f", {unanswered} have no usable answer (were they all of the domain and stranger than the"
        f" rest, {worst:.1%} of such images would be flagged and not {alpha:g})"
    )
