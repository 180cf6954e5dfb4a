"""A version made of the champion without training: other calibration images, the same network.

Everything that is fitted to the calibration split is written anew from the records that are given:
what evidence begins from and windows are compared with, the scores of the outlier flag, prediction
sets, and the true labels.
Bin edges stay those of the fit split, or the evidence would not be valid. What only a training
measures (how the threshold was chosen, the outlier self-check, the gates of the engines) stays in
the manifest, and says of which version it was measured. Promotion stays a command.
"""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from model.bundle import (
    BENTOML_DESCRIPTION,
    CONFORMAL_SETS,
    DISCREPANCY,
    OUTLIER,
    REFERENCE,
    REPORT,
    TRUTH,
    Bundle,
    Manifest,
    Metric,
    OutlierSummary,
    SetsSummary,
    save_arrays,
)
from model.conformal_sets import ConformalSets
from model.decision import Calibration, probabilities
from model.state import record, write_transaction
from model.store import ModelStore
from monitoring.accuracy import NORMAL_95
from monitoring.class_priors import FloatArray
from monitoring.discrepancy import write_discrepancy
from monitoring.sampling import usual_sampler
from monitoring.streams import logits_of, streams_of
from monitoring.truth import truth_arrays

_MEASURED_OF = "The self-check and the gates of the engines were measured of"
_REWRITTEN = (
    *(BENTOML_DESCRIPTION, OUTLIER, REFERENCE, DISCREPANCY),
    *(TRUTH, CONFORMAL_SETS, REPORT),
)


@dataclass(frozen=True)
class Derived:
    """What is different in the new version.

    `records` (N, of `records.SCHEMA`, as the new version would have written them) and `targets`
    (true labels, as `truth_arrays` takes them) are of its calibration images; `scores` are what the
    outlier flag is held to, None to keep the champion's.
    """

    way: str  # "adjusted", "recalibrated": its name in the manifest's `training`
    how: Mapping[str, Any]  # stands there, beside the champion's tag and the reason
    told: str  # what it is, as words after "NEW is CHAMPION"
    records: pa.Table
    targets: NDArray[Any]
    scores: NDArray[np.float32] | None
    calibration: Calibration
    metric: Metric  # accuracy, or micro F1, on these images
    of_outlier: str  # how its scores came about, as words after "Since"
    of_sets: str  # what its labelled images are, as words after their number


def make_derived_version(
    store: ModelStore, champion: Bundle, its: Derived, why: str
) -> tuple[str, str]:
    """Register it, and say so in the audit; gives its tag and a sentence.

    It is complete or absent: what goes wrong, a full disk included, leaves nothing of it.
    """
    with store.registering(champion.manifest.name) as (version, directory, seal):
        manifest = _manifest(champion.manifest, version, its, why)
        for name in champion.manifest.files:
            if name not in _REWRITTEN:
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(champion.path(name), path)
        seal(_write(directory, champion, manifest, its))
    sentence = _sentence(champion.manifest, manifest, its)
    with write_transaction(store.state) as connection:
        record(connection, "challenger", manifest.tag, f"{sentence} ({why})")
    return manifest.tag, sentence


def measured(given: NDArray[np.bool_], true: FloatArray, weights: FloatArray, task: str) -> Metric:
    """Accuracy or micro F1 of weighted images, with its 95 % interval (delta method)."""
    if task == "single":
        hits, of = (given == true).all(axis=1).astype(np.float64), np.ones(len(given))
    else:
        hits, of = 2 * (given * true).sum(axis=1), given.sum(axis=1) + true.sum(axis=1)
    total = float(weights @ of)
    value = float(weights @ hits) / max(total, 1e-12)
    half = NORMAL_95 * float(np.linalg.norm(weights * (hits - value * of))) / max(total, 1e-12)
    return Metric(
        value=value, low=max(0.0, value - half), high=min(1.0, value + half), count=len(given)
    )


def in_words(its: Metric) -> str:
    """A figure with its interval."""
    return f"{its.value:.3f} (95 %: {its.low:.3f} to {its.high:.3f})"


def metric_name(manifest: Manifest) -> str:
    """Of the figure that is told of a version of this task."""
    return "accuracy" if manifest.task == "single" else "micro F1"


def metric_key(manifest: Manifest) -> str:
    """The same in the manifest's `metrics`."""
    return "accuracy" if manifest.task == "single" else "micro_f1"


def _manifest(champion: Manifest, version: str, its: Derived, why: str) -> Manifest:
    return champion.model_copy(
        update={
            "version": version,
            "created": datetime.now(UTC),
            "calibration": its.calibration,
            "threshold_evidence": _threshold_evidence(champion),
            "outlier": _known_outlier(champion),
            "metrics": {metric_key(champion): its.metric},
            "metrics_split": "calibration",
            "training": {
                **champion.training,
                its.way: {"from": champion.tag, **its.how, "why": why},
            },
            "files": {},
        }
    )


def _threshold_evidence(champion: Manifest) -> dict[str, Any]:
    """The champion's, with the tag of the version whose outputs it was measured on."""
    evidence = champion.threshold_evidence
    return {"measured_of": champion.tag, **evidence} if evidence else {}


def _known_outlier(champion: Manifest) -> OutlierSummary:
    """The champion's; its statement says of which version the self-check is."""
    known = champion.outlier
    if _MEASURED_OF in known.statement:  # itself made of another
        return known
    statement = f"{known.statement} {_MEASURED_OF} {champion.tag}."
    return known.model_copy(update={"statement": statement})


def _write(directory: Path, champion: Bundle, manifest: Manifest, its: Derived) -> Manifest:
    """The files that differ; gives the manifest with what they can promise."""
    pyarrow.parquet.write_table(its.records, directory / REFERENCE, compression="zstd")
    write_discrepancy(directory, usual_sampler())
    save_arrays(directory / TRUTH, truth_arrays(its.targets))
    arrays = champion.arrays(OUTLIER)
    for name, values in streams_of(its.records, manifest).items():
        arrays[f"reference.{name}"] = np.sort(values).astype(np.float32)
    changes: dict[str, Any] = {}
    if its.scores is not None:
        arrays["calibration"] = np.sort(its.scores).astype(np.float32)
        changes["outlier"] = _outlier(manifest.outlier, len(its.scores), its.of_outlier)
    save_arrays(directory / OUTLIER, arrays)
    if manifest.prediction_sets is not None:
        chances = probabilities(logits_of(its.records), its.calibration, manifest.task)
        sets = ConformalSets.fit(chances, its.targets, manifest.task)
        save_arrays(directory / CONFORMAL_SETS, sets.to_arrays())
        changes["prediction_sets"] = _sets(manifest.prediction_sets, sets, its.of_sets)
    manifest = manifest.model_copy(update=changes)
    _write_report(directory / REPORT, champion, manifest, its)
    return manifest


def _outlier(known: OutlierSummary, images: int, how: str) -> OutlierSummary:
    least = 1 / (images + 1)
    return known.model_copy(
        update={
            "calibration_images": images,
            "smallest_alpha": least,
            "statement": f"{known.statement} Since {how}: the smallest rate is {least:.2g}.",
        }
    )


def _sets(known: SetsSummary, sets: ConformalSets, what: str) -> SetsSummary:
    return known.model_copy(
        update={
            "calibration_images": sets.image_count,
            "highest_coverage": sets.highest_coverage,
            "statement": f"{sets.image_count} {what}: up to {sets.highest_coverage:g} can be asked"
            " for. Not measured on others.",
            "measured": (),
        }
    )


def _write_report(path: Path, champion: Bundle, manifest: Manifest, its: Derived) -> None:
    """The champion's model card, under what is different."""
    card = champion.path(REPORT).read_text(encoding="utf-8", errors="replace")
    note = html.escape(_sentence(champion.manifest, manifest, its))
    told = (
        f'<p role="note"><b>{its.way.capitalize()}.</b> {note} What follows is of'
        f" {champion.manifest.tag}.</p>"
    )
    at, mark = card.find("<main>"), "<main>"
    place = at + len(mark) if at >= 0 else 0
    path.write_text(f"{card[:place]}\n{told}\n{card[place:]}", encoding="utf-8")


def _sentence(champion: Manifest, manifest: Manifest, its: Derived) -> str:
    return (
        f"{manifest.tag} is {champion.tag} {its.told}. To promote it:"
        f" plumbline promote {manifest.tag}"
    )
