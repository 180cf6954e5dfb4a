"""A version for another class mix: the champion with prior-corrected probabilities.

Nothing is trained. The new version has the champion's network and thresholds, and a calibration
that multiplies probabilities (their odds, where classes do not exclude each other) by what the
class shares changed. Everything that was fitted to the calibration split is fitted anew to the part
of it that is left when its images are kept at random so that the classes come in the new shares:
the records that evidence begins from, the scores of the outlier flag, prediction sets. So the new
version's evidence does not start by finding the class mix changed. Promotion stays a command.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.bundle import OUTLIER, REFERENCE, Bundle, Manifest, Metric
from model.decision import Calibration, confidence, decide, probabilities
from model.errors import MonitorError
from model.store import ModelStore
from monitoring.class_mix import is_exclusive, reference_sample
from monitoring.class_priors import FloatArray, image_weights, odds_ratio
from monitoring.derived_version import (
    Derived,
    in_words,
    make_derived_version,
    measured,
    metric_name,
)
from monitoring.records import SCHEMA, read_records
from monitoring.streams import accepted_labels, logits_of
from monitoring.truth import as_matrix, true_targets

LEAST_KEPT = 100  # calibration images, under which all of them stay as they are


@dataclass(frozen=True)
class _Adjusted:
    """What is found for the new class mix."""

    calibration: Calibration
    records: pa.Table  # of the calibration images that are kept
    targets: NDArray[Any]
    is_thinned: bool
    before: Metric  # accuracy, or micro F1, of the champion under the new class mix
    after: Metric


def make_adjusted_version(
    store: ModelStore,
    champion: Bundle,
    shares: Mapping[str, float],
    changed: Collection[str],
    why: str,
) -> tuple[str, str]:
    """Register the champion adjusted to such class shares; gives its tag and a sentence.

    `shares` are of all classes, those that `changed` beyond chance among them. Raises
    `MonitorError` for a bundle without true labels and for shares that are none.
    """
    _check(champion.manifest, shares)
    return make_derived_version(store, champion, _derived(champion, shares, changed), why)


def _derived(champion: Bundle, shares: Mapping[str, float], changed: Collection[str]) -> Derived:
    its, manifest = _adjust(champion, shares, changed), champion.manifest
    scores = its.records["outlier_score"].to_numpy()
    reference_images = len(read_records(str(champion.path(REFERENCE)), ["id"]))
    # A cross-fitted score has calibration scores that are not those of the reference.
    is_cross_fitted = len(champion.arrays(OUTLIER)["calibration"]) != reference_images
    return Derived(
        way="adjusted",
        how={"class_shares": {name: round(share, 6) for name, share in shares.items()}},
        told=_told(manifest, its),
        records=its.records,
        targets=its.targets,
        scores=None if is_cross_fitted else scores,
        calibration=its.calibration,
        metric=its.after,
        of_outlier=f"adjusted to another class mix, by {len(scores)} of the calibration images",
        of_sets="calibration images with a label, in another class mix",
    )


def _check(champion: Manifest, shares: Mapping[str, float]) -> None:
    if set(shares) != set(champion.classes):
        raise MonitorError(
            f"the class shares are not of {champion.tag}: they name {len(shares)} classes, and it"
            f" has {len(champion.classes)}; look again with plumbline monitor priors"
        )
    if not all(math.isfinite(its) and 0 <= its <= 1 for its in shares.values()):
        raise MonitorError("a class share is not between 0 and 1")


def _adjust(champion: Bundle, shares: Mapping[str, float], changed: Collection[str]) -> _Adjusted:
    manifest, targets = champion.manifest, true_targets(champion)
    reference = reference_sample(champion, manifest.outlier.alpha)
    if targets is None or not len(reference):
        raise MonitorError(
            f"{manifest.tag} was made before bundles kept the true labels of their calibration"
            " split, so an adjusted version cannot be fitted or measured; train it again, or"
            " apply the factors that plumbline monitor priors prints to its probabilities yourself"
        )
    exclusive = is_exclusive(manifest)
    true = as_matrix(targets, len(manifest.classes)).astype(np.float64)
    before = np.clip(reference.chances.mean(axis=0), 1e-6, 1 - 1e-6)
    # Never quite 0 or 1: a class that was not seen is not impossible.
    after = np.clip([shares[name] for name in manifest.classes], 1e-4, 1 - 1e-4)
    moved = np.array([name in changed for name in manifest.classes])
    after = after / after.sum() if exclusive else np.where(moved, after, before)
    factors = after / before if exclusive else odds_ratio(before, after)
    calibration = _calibration(manifest.calibration, factors, exclusive=exclusive)
    weights = image_weights(true, true.mean(axis=0), after, moved, exclusive=exclusive)
    records = read_records(str(champion.path(REFERENCE)))
    relabelled = _relabelled(records, manifest, calibration)
    metrics = [
        measured(accepted_labels(its, manifest.classes), true, weights, manifest.task)
        for its in (records, relabelled)
    ]
    random = np.random.default_rng(int(champion.manifest_sha256[:8], 16))
    kept = random.random(len(weights)) < weights / max(weights.max(), 1e-12)
    is_thinned = int(kept.sum()) >= LEAST_KEPT
    if not is_thinned:
        kept = np.ones(len(weights), bool)
    return _Adjusted(
        calibration, relabelled.filter(pa.array(kept)), targets[kept], is_thinned, *metrics
    )


def _calibration(known: Calibration, factors: FloatArray, *, exclusive: bool) -> Calibration:
    intercepts = np.array(known.intercepts or np.zeros(len(factors))) + np.log(factors)
    changes: dict[str, Any] = {"intercepts": tuple(map(float, intercepts))}
    if exclusive:
        changes["method"] = "temperature and priors"
    return known.model_copy(update=changes)


def _relabelled(records: pa.Table, manifest: Manifest, calibration: Calibration) -> pa.Table:
    """The records as a model of that calibration would have answered."""
    chances = probabilities(logits_of(records), calibration, manifest.task)
    labels = decide(chances, manifest.thresholds, manifest.classes, manifest.task)
    columns = {"labels": labels, "confidence": confidence(chances, manifest.task)}
    for name, values in columns.items():
        place, field = records.schema.get_field_index(name), SCHEMA.field(name)
        records = records.set_column(place, field, pa.array(values, field.type))
    return records


def _told(champion: Manifest, its: _Adjusted) -> str:
    thinned = (
        f"evidence begins from {len(its.targets)} calibration images in the new class mix"
        if its.is_thinned
        else "too few calibration images fit the new class mix, so evidence begins from the old"
        " one and will show the change again"
    )
    return (
        f"adjusted to another class mix: {metric_name(champion)} of {in_words(its.after)} under it,"
        f" against {in_words(its.before)}, on calibration images weighted by class; {thinned}"
    )
