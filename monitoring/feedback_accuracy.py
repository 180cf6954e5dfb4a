"""Accuracy by what people said of production images, and how far their choice can be trusted.

Feedback is joined to the records of one version as they are read, never to the whole history: of
the newest images some 30 bytes each are kept (labels as bits where there may be several), and what
is older than that, or than `DAYS`, is not joined. Labels on which clients contradict each other, of
classes that the model has not, and of ids without such a record are left out and counted. An image
counts once, however often and by however many it was labelled; where several clients label, the one
that says most counts as much as all others together, so a flood from one cannot outweigh the rest.

People label what strikes them. Whether the labelled images look like all of them is tested (on
predicted class, confidence and flags), and the accuracy is given a second time with the labelled
images weighted so that confidence and flags come as in all images. That mends a choice by what the
model said; not one by whether it was right, which no record shows: where people report mistakes
alone, both figures are too low.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from sqlalchemy import Engine

from model.bundle import Manifest
from model.decision import Task
from monitoring.accuracy import wilson_interval
from monitoring.labels import Said, fault, said_of_ids
from monitoring.record_reader import RecordReader
from monitoring.settings import MonitoringSettings
from monitoring.streams import accepted_labels

FloatArray = NDArray[np.float64]

DAYS = 7
IMAGES_KEPT = 100_000
LABELLED_IMAGES = 1_000  # the newest of them are looked at
LEAST_LABELLED = 20  # fewer say nothing of how they were chosen
LEAST_IN_STRATUM = 10
OTHERS_LEAST = 30  # images that other clients labelled, from which on no client outweighs them
SIGNIFICANCE = 0.01
_STRATA = 4  # of confidence, among the unflagged
_ROWS_AT_ONCE = 20_000
_RESAMPLES = 400
_LOOK_SECONDS = 10.0
_COLUMNS = ("id", "time", "model", "labels", "confidence", "flagged")


@dataclass(frozen=True)
class Joined:
    """Images of one version, all arrays of length N, the oldest first.

    `given` are the labels given, as bits of N x C. `said` holds the place of each image in `true`
    (M x C) that was labelled, -1 elsewhere; `clients` are those of each of the M.
    """

    given: NDArray[np.bool_]
    confidence: FloatArray
    flagged: NDArray[np.bool_]
    said: NDArray[np.int64]
    true: NDArray[np.bool_]
    clients: tuple[frozenset[str], ...]


class FeedbackAccuracy:
    """Follows the records of one version; every look reads at most some 20,000 new ones."""

    def __init__(self, settings: MonitoringSettings, state: Engine, manifest: Manifest) -> None:
        self._state = state
        self._manifest = manifest
        first_day = (datetime.now(UTC) - timedelta(days=DAYS)).date()
        self._reader = RecordReader(settings.records, _COLUMNS, first_day)
        self._kept = _Kept(len(manifest.classes))

    @property
    def tag(self) -> str:
        """The version."""
        return self._manifest.tag

    @property
    def has_more(self) -> bool:
        """Whether the last look left records for the next."""
        return self._reader.has_more

    def look(self) -> dict[str, Any]:
        """As JSON values; `labelled` images of 0 where there are none."""
        since = datetime.now(UTC) - timedelta(days=DAYS)
        said = said_of_ids(self._state, received_after=since)
        if not said:
            return _nothing({})
        self._read_on()
        joined, left_out = self._join(said)
        found = accuracy_by_feedback(joined, self._manifest.task, self._manifest.classes)
        return {**found, "left_out": left_out, "days": DAYS}

    def _read_on(self) -> None:
        records = self._reader.read_new(_ROWS_AT_ONCE)
        own = records.filter(pyarrow.compute.equal(records["model"], self._manifest.tag))
        if len(own):
            self._kept.add(own, self._manifest.classes)

    def _join(self, said: Mapping[str, Said]) -> tuple[Joined, dict[str, int]]:
        places = self._kept.places(list(said))
        left_out: dict[str, int] = {}
        found: list[tuple[int, Said]] = []
        for its, place in zip(said.values(), places.tolist(), strict=True):
            reason = "without record" if place < 0 else fault(its.answers, self._manifest)
            if reason is None:
                found.append((place, its))
            else:
                left_out[reason] = left_out.get(reason, 0) + 1
        found = sorted(found, key=lambda one: one[0])[-LABELLED_IMAGES:]
        index = {name: place for place, name in enumerate(self._manifest.classes)}
        true = np.zeros((len(found), len(index)), bool)
        for row, (_, its) in enumerate(found):
            true[row, [index[name] for name in next(iter(its.answers))]] = True
        clients = tuple(frozenset(its.clients) for _, its in found)
        return self._kept.joined([place for place, _ in found], true, clients), left_out


class FeedbackLooks:
    """Looks now and then, at the version that is watched."""

    def __init__(self, settings: MonitoringSettings, state: Engine) -> None:
        self._settings = settings
        self._state = state
        self._followed: FeedbackAccuracy | None = None
        self._found: dict[str, Any] | None = None
        self._looked = -_LOOK_SECONDS

    def consider(self, manifest: Manifest) -> None:
        """Look where it is due: sooner as long as there are records to be read."""
        if self._followed is None or self._followed.tag != manifest.tag:
            self._followed = FeedbackAccuracy(self._settings, self._state, manifest)
            self._found, self._looked = None, -_LOOK_SECONDS
        if self._followed.has_more or time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._found = self._followed.look()

    def of(self, manifest: Manifest) -> dict[str, Any] | None:
        """What was found last of that version; None before there was a look."""
        is_of_it = self._followed is not None and self._followed.tag == manifest.tag
        return self._found if is_of_it else None


class _Kept:
    """The newest images, in memory."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._ids = np.empty(0, np.int64)
        self._given = np.empty((0, -(-classes // 8)), np.uint8)
        self._confidence = np.empty(0, np.float32)
        self._flagged = np.empty(0, bool)

    def add(self, records: pa.Table, classes: Sequence[str]) -> None:
        """More of them; the oldest go."""

        def kept(known: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([known, new])[-IMAGES_KEPT:]

        self._ids = kept(self._ids, _short(records["id"].to_pylist()))
        given = np.packbits(accepted_labels(records, classes), axis=1)
        self._given = kept(self._given, given)
        self._confidence = kept(self._confidence, records["confidence"].to_numpy())
        self._flagged = kept(self._flagged, np.array(records["flagged"].to_pylist(), bool))

    def places(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where each is, -1 for those that are not there."""
        if not len(self._ids):
            return np.full(len(ids), -1, np.int64)
        wanted = _short(ids)
        order = np.argsort(self._ids, kind="stable")
        at = np.searchsorted(self._ids, wanted, sorter=order).clip(max=len(order) - 1)
        return np.where(self._ids[order[at]] == wanted, order[at], -1)

    def joined(
        self,
        places: Sequence[int],
        true: NDArray[np.bool_],
        clients: tuple[frozenset[str], ...],
    ) -> Joined:
        """With what was said of some of them."""
        said = np.full(len(self._ids), -1, np.int64)
        said[np.array(places, np.int64)] = np.arange(len(places))
        return Joined(
            np.unpackbits(self._given, axis=1, count=self._classes).astype(bool),
            self._confidence.astype(np.float64),
            self._flagged,
            said,
            true,
            clients,
        )


def accuracy_by_feedback(joined: Joined, task: Task, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy (single label) or micro F1 of labelled images, as JSON values.

    `value` with its 95 % `interval` takes the labels as they came, `weighted` and its interval
    brings confidence and flags to what they are in all images (null where too few were labelled).
    """
    rows = np.flatnonzero(joined.said >= 0)
    rows = rows[_counted(joined.clients)[joined.said[rows]]]
    if not len(rows):
        return _nothing({})
    counts = _counts(joined.given[rows], joined.true[joined.said[rows]], task)
    value, interval = _with_interval(counts, np.ones(len(rows)), task)
    weights = _weights(joined, rows)
    weighted = weighted_interval = None
    if weights is not None:
        weighted, weighted_interval = _with_interval(counts, weights, task)
    biases = _biases(joined, rows, classes)
    return {
        "labelled": len(rows),
        "of_images": len(joined.said),
        "value": value,
        "interval": interval,
        "weighted": weighted,
        "weighted_interval": weighted_interval,
        "biased": None if biases is None else bool(biases),
        "clients": len(frozenset().union(*joined.clients)),
        "sentence": _sentence(joined, rows, biases),
    }


def _counted(clients: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
    """Which labelled images count, M.

    Of a client that alone labelled more images than all others together, where those are enough to
    go by, the newest that are as many.
    """
    counted = np.ones(len(clients), bool)
    for client in frozenset().union(*clients) if clients else ():
        own = np.array([its == {client} for its in clients])
        others = int((~own).sum())
        if OTHERS_LEAST <= others < int(own.sum()):
            counted[np.flatnonzero(own)[:-others]] = False
    return counted


def _counts(given: NDArray[np.bool_], true: NDArray[np.bool_], task: Task) -> FloatArray:
    """Of each image what its share in the figure is made of, M x 2: hits, and of how many."""
    if task == "single":
        return np.column_stack([(given == true).all(axis=1), np.ones(len(given))])
    hits = 2.0 * (given & true).sum(axis=1)
    return np.column_stack([hits, given.sum(axis=1) + true.sum(axis=1)])


def _with_interval(
    counts: FloatArray, weights: FloatArray, task: Task
) -> tuple[float | None, tuple[float, float] | None]:
    """A weighted figure; Wilson's interval of so many effective images, or a bootstrap's."""
    hits, of = weights @ counts
    if not of:
        return None, None
    value = float(hits / of)
    if task == "single":
        effective = float(weights.sum() ** 2 / (weights**2).sum())
        return value, wilson_interval(value * effective, effective)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _RESAMPLES)
    sums = (drawn * weights) @ counts
    values = sums[:, 0] / np.maximum(sums[:, 1], 1e-12)
    low, high = np.quantile(values, [0.025, 0.975])
    return value, (float(low), float(high))


def _weights(joined: Joined, rows: NDArray[np.intp]) -> FloatArray | None:
    """By which labelled images come as all images do, by confidence and flag; None for too few."""
    strata = _strata(joined)
    labelled = strata[rows]
    in_all = np.bincount(strata, minlength=_STRATA + 1)
    in_labelled = np.bincount(labelled, minlength=_STRATA + 1)
    if (in_labelled[in_all > 0] < LEAST_IN_STRATUM).any():
        return None
    factors = in_all / np.maximum(1, in_labelled)
    return np.asarray(factors[labelled] / factors[labelled].mean())


def _strata(joined: Joined) -> NDArray[np.int64]:
    """Of each image: a quarter of confidence, or flagged where those are enough to be one, N."""
    edges = np.quantile(joined.confidence, np.arange(1, _STRATA) / _STRATA)
    quarters = np.searchsorted(edges, joined.confidence, side="right").astype(np.int64)
    enough = int((joined.flagged & (joined.said >= 0)).sum()) >= LEAST_IN_STRATUM
    return np.where(joined.flagged, _STRATA, quarters) if enough else quarters


def _biases(joined: Joined, rows: NDArray[np.intp], classes: Sequence[str]) -> list[str] | None:
    """How labelled images differ from the others, in words; None where too few can be compared."""
    others = np.flatnonzero(joined.said < 0)
    if min(len(rows), len(others)) < LEAST_LABELLED:
        return None
    tested = (
        _other_confidence(joined.confidence[rows], joined.confidence[others]),
        _other_flags(joined.flagged[rows], joined.flagged[others]),
        _other_predictions(joined.given[rows], joined.given[others], classes),
    )
    return [told for p_value, told in tested if p_value < SIGNIFICANCE / len(tested)]


def _other_confidence(labelled: FloatArray, others: FloatArray) -> tuple[float, str]:
    """P-value, and what is different in words."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(labelled, others, method="asymp").pvalue), (
        f"their confidence is another (median {np.median(labelled):.2f}, of the others"
        f" {np.median(others):.2f})"
    )


def _other_flags(labelled: NDArray[np.bool_], others: NDArray[np.bool_]) -> tuple[float, str]:
    from scipy.stats import fisher_exact

    table = [[int(its.sum()), int((~its).sum())] for its in (labelled, others)]
    often = "more" if labelled.mean() > others.mean() else "less"
    return float(fisher_exact(table).pvalue), (
        f"they are {often} often flagged ({labelled.mean():.1%}, the others {others.mean():.1%})"
    )


def _other_predictions(
    labelled: NDArray[np.bool_], others: NDArray[np.bool_], classes: Sequence[str]
) -> tuple[float, str]:
    """Of classes that are not too rare to compare."""
    from scipy.stats import chi2_contingency

    counts = np.stack(
        [np.append(its.sum(axis=0), (~its.any(axis=1)).sum()) for its in (labelled, others)]
    ).astype(np.int64)
    common = np.flatnonzero(counts.sum(axis=0) >= LEAST_IN_STRATUM)
    if len(common) < 2:
        return 1.0, ""
    shares = counts / np.array([[len(labelled)], [len(others)]])
    most = int(common[np.argmax(np.abs(shares[0] - shares[1])[common])])
    name = (*classes, "none")[most]
    return float(chi2_contingency(counts[:, common], correction=False).pvalue), (
        f"other classes are predicted ({name} {shares[0, most]:.0%}, of the others"
        f" {shares[1, most]:.0%})"
    )


def _sentence(joined: Joined, rows: NDArray[np.intp], biases: list[str] | None) -> str:
    told = [_who(joined, rows)]
    if biases is None:
        told.append(
            f"Too few to say whether they are like the others ({LEAST_LABELLED} are enough)."
        )
    elif biases:
        told.append(f"They are no random sample of the images: {'; '.join(biases)}.")
    else:
        told.append("They look like the others, by confidence, flags and predictions.")
    told.append("Where people report mistakes rather than any image, the figure is too low.")
    return " ".join(told)


def _who(joined: Joined, rows: NDArray[np.intp]) -> str:
    clients = frozenset().union(*joined.clients)
    left = len(joined.clients) - len(rows)
    if len(clients) == 1:
        return f"All {len(rows)} labels come from one client."
    told = f"{len(rows)} labelled images, by {len(clients)} clients"
    if left:
        return f"{told}; {left} more of the one that labelled most do not count, lest it outweigh."
    most = max(
        sum(its == {client} for its in joined.clients) / len(joined.clients) for client in clients
    )
    return f"{told}, {most:.0%} by one of them alone." if most > 0.5 else f"{told}."


def _nothing(left_out: dict[str, int]) -> dict[str, Any]:
    return {
        "labelled": 0,
        "of_images": 0,
        "value": None,
        "interval": None,
        "weighted": None,
        "weighted_interval": None,
        "biased": None,
        "clients": 0,
        "sentence": f"Nobody has labelled an image of this version within {DAYS} days.",
        "left_out": left_out,
        "days": DAYS,
    }


def _short(ids: Sequence[str]) -> NDArray[np.int64]:
    """Eight bytes of each id; see `monitoring.labels`."""
    return np.array([hash(its) for its in ids], np.int64)
