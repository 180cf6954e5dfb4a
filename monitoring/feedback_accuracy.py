"""Accuracy by what people said of production images, and how far their choice can be trusted.

An image counts once, however often and by however many it was labelled. Where several clients
label, the one that says most counts as much as all others together, so a flood from one cannot
outweigh the rest.

People label what strikes them. Whether the labelled images look like all of them is tested (on
predicted class, confidence and flags), and the accuracy is given a second time with the labelled
images weighted so that confidence and flags come as in all images. That mends a choice by what the
model said; not one by whether it was right, which no record shows: where people report mistakes
alone, both figures are too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decision import Task
from monitoring.accuracy import wilson_interval

FloatArray = NDArray[np.float64]

DAYS = 7
LEAST_LABELLED = 20  # fewer say nothing of how they were chosen
LEAST_IN_STRATUM = 10
OTHERS_LEAST = 30  # images that other clients labelled, from which on no client outweighs them
SIGNIFICANCE = 0.01
_STRATA = 4  # of confidence, among the unflagged
_RESAMPLES = 400


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


def accuracy_by_feedback(joined: Joined, task: Task, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy (single label) or micro F1 of labelled images, as JSON values.

    `value` with its 95 % `interval` takes the labels as they came, `weighted` and its interval
    brings confidence and flags to what they are in all images (null where too few were labelled).
    """
    rows = np.flatnonzero(joined.said >= 0)
    rows = rows[_counted(joined.clients)[joined.said[rows]]]
    if not len(rows):
        return nothing_said({})
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


def nothing_said(left_out: dict[str, int]) -> dict[str, Any]:
    """Where nothing is labelled, or what was is `left_out`, by reason."""
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
