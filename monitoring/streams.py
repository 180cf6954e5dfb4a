"""The seven streams that are watched, read off prediction records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from model.bundle import OUTLIER, REFERENCE, Bundle, Manifest
from model.decision import predicted_class, probabilities
from monitoring.evidence import STREAMS
from monitoring.records import read_records
from monitoring.sampling import Arrival, Sampler
from monitoring.truth import mistakes, true_targets

FloatArray = NDArray[np.float64]

COLUMNS = (
    "id",
    "time",
    "client",
    "image_sha256",
    "perceptual_hash",
    "width",
    "height",
    "brightness",
    "contrast",
    "sharpness",
    "logits",
    "labels",
    "confidence",
    "outlier_score",
    "flagged",
    "components",
)


def fitting_rows(records: pa.Table, manifest: Manifest) -> NDArray[np.bool_]:
    """Which records can be of this version, N: by logits, labels, and finite values.

    Finite are their probabilities, too.
    """
    lengths = pyarrow.compute.list_value_length(records["logits"]).to_numpy()
    fitting = np.asarray(lengths == len(manifest.classes))
    for name in ("brightness", "contrast", "sharpness", "confidence", "outlier_score"):
        fitting &= np.isfinite(_column(records, name))
    fitting &= np.isfinite(_matrix(records, "components", np.float16)[:, :2]).all(axis=1)
    if fitting.any():
        logits = logits_of(records.filter(pa.array(fitting)))
        with np.errstate(over="ignore", invalid="ignore"):  # finite logits may be too large for it
            chances = probabilities(logits, manifest.calibration, manifest.task)
        fitting[fitting] = (np.isfinite(logits) & np.isfinite(chances)).all(axis=1)
    return fitting & _labels_fit(records["labels"].combine_chunks(), manifest.classes)


def _labels_fit(labels: pa.ListArray, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Whether all labels of a record are classes, and no more than there are of them."""
    counts = pyarrow.compute.list_value_length(labels).to_numpy()
    known = pyarrow.compute.is_in(labels.flatten(), value_set=pa.array(classes, pa.string()))
    foreign = labels.flatten().filter(pyarrow.compute.invert(known))
    fitting = np.asarray(counts <= len(classes))
    if len(foreign):
        rows = pyarrow.compute.list_parent_indices(labels).filter(pyarrow.compute.invert(known))
        fitting[rows.to_numpy()] = False
    return fitting


def streams_of(records: pa.Table, manifest: Manifest) -> dict[str, FloatArray]:
    """The streams of records of one model version, N each.

    `predicted_class` is an index, C standing for none. The rows have to be `fitting_rows`.
    """
    if not len(records):
        return {name: np.zeros(0) for name in STREAMS}
    components = _matrix(records, "components", np.float16)
    chances = probabilities(logits_of(records), manifest.calibration, manifest.task)
    return {
        "outlier_score": _column(records, "outlier_score"),
        "confidence": _column(records, "confidence"),
        "component_0": components[:, 0].astype(np.float64),
        "component_1": components[:, 1].astype(np.float64),
        "brightness": _column(records, "brightness"),
        "sharpness": _column(records, "sharpness"),
        "predicted_class": predicted_class(
            chances, manifest.thresholds, manifest.classes, manifest.task
        ).astype(np.float64),
    }


def logits_of(records: pa.Table) -> NDArray[np.float32]:
    """Logits, N x C, of rows of equal length."""
    return _matrix(records, "logits", np.float32)


def components_of(records: pa.Table) -> FloatArray:
    """Principal components of the embedding, N x P, of rows of equal length; all finite.

    Those too large for float16 come as its largest number.
    """
    components = _matrix(records, "components", np.float16).astype(np.float64)
    most = float(np.finfo(np.float16).max)
    return np.nan_to_num(components, nan=0.0, posinf=most, neginf=-most)


def accepted_labels(records: pa.Table, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which labels were given, N x C."""
    labels = records["labels"].combine_chunks()
    rows = pyarrow.compute.list_parent_indices(labels)
    places = pyarrow.compute.index_in(labels.flatten(), value_set=pa.array(classes, pa.string()))
    known = places.is_valid()
    found = np.zeros((len(records), len(classes)), bool)
    found[rows.filter(known).to_numpy(), places.filter(known).to_numpy()] = True
    return found


def arrivals_of(records: pa.Table) -> list[Arrival]:
    """What the sampler may see of each record, in order."""
    times = records["time"].cast(pa.int64()).to_numpy() / 1e6
    columns = (records[name].to_pylist() for name in ("image_sha256", "perceptual_hash", "client"))
    return [Arrival(*its) for its in zip(times.tolist(), *columns, strict=True)]


def reference_of(bundle: Bundle, sampler: Sampler) -> dict[str, FloatArray]:
    """The streams of the calibration split, under the rule that production is sampled by."""
    return streams_of(reference_records(bundle, sampler), bundle.manifest)


def reference_records(bundle: Bundle, sampler: Sampler) -> pa.Table:
    """The records of the calibration split, under the rule that production is sampled by."""
    return sampled_records(bundle.path(REFERENCE), sampler)


def sampled_records(path: Path, sampler: Sampler) -> pa.Table:
    """Those records of a file that a new sampler takes."""
    records = read_records(str(path))
    taken = sampler.takes_which(arrivals_of(records))
    return records.filter(pa.array(taken, pa.bool_()))


def mistakes_of(bundle: Bundle, sampler: Sampler) -> NDArray[np.int64] | None:
    """Whether the model is wrong on each labelled image of the calibration split (1, else 0).

    Under the rule that production is sampled by. None where the bundle does not say.
    """
    targets, manifest = true_targets(bundle), bundle.manifest
    if targets is None:
        return None
    records = read_records(str(bundle.path(REFERENCE)))
    given = accepted_labels(records, manifest.classes)
    mistaken = mistakes(given, targets, none_allowed=manifest.none_allowed)
    taken = np.array(sampler.takes_which(arrivals_of(records)), bool)
    return np.asarray(mistaken[taken & (mistaken >= 0)], np.int64)


def edges_of(bundle: Bundle) -> Mapping[str, FloatArray]:
    """Bin edges per stream, from the fit split; the classes are their own bins."""
    arrays = bundle.arrays(OUTLIER)
    arrays["edges.predicted_class"] = np.arange(len(bundle.manifest.classes)) + 0.5
    return {name: np.asarray(arrays[f"edges.{name}"], np.float64) for name in STREAMS}


def _column(records: pa.Table, name: str) -> FloatArray:
    return np.asarray(records[name].to_numpy(), np.float64)


def _matrix(records: pa.Table, name: str, dtype: type) -> NDArray[Any]:
    """A column of lists of equal length, N x length."""
    column = records[name].combine_chunks()
    values: NDArray[Any] = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype)
    return values.reshape(len(records), -1)
