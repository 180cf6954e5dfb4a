"""The last images of a version: share flagged, classes, accuracy estimated without labels."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from model.bundle import REFERENCE, Bundle
from model.decision import probabilities
from monitoring.accuracy import (
    AtcReference,
    NoneAnswers,
    atc,
    atc_interval,
    cbpe,
    cbpe_interval,
    expected_labels,
    why_invalid,
    why_undefined,
)
from monitoring.class_mix import sample_of
from monitoring.evidence import STREAMS
from monitoring.reasons import MEASURED, Calibration, Reasons
from monitoring.records import read_records
from monitoring.reference_accuracy import atc_reference, none_answers
from monitoring.rows import Rows
from monitoring.samples import Sample
from monitoring.streams import accepted_labels, components_of, logits_of

WINDOW_IMAGES = 1_000  # that shares and accuracy estimates are taken over
FLAGGED_KEPT = 12


class LastImages:
    """What is shown of all served images, sampled or not; none of it is evidence."""

    def __init__(self, bundle: Bundle, alpha: float, calibration_images: int) -> None:
        self._bundle = bundle
        self._alpha = alpha
        self._calibration_images = calibration_images
        self._atc_reference: AtcReference | None = atc_reference(bundle)
        self._none_reference: NoneAnswers | None = none_answers(bundle)
        self._reasons: Reasons | None = None  # made when first needed
        self.flags: deque[bool] = deque(maxlen=WINDOW_IMAGES)
        # Per image: what `expected_labels` gives.
        self._expected: deque[tuple[float, ...]] = deque(maxlen=WINDOW_IMAGES)
        self._confidences: deque[float] = deque(maxlen=WINDOW_IMAGES)
        self._labels: deque[list[str]] = deque(maxlen=WINDOW_IMAGES)
        self.flagged: deque[dict[str, Any]] = deque(maxlen=FLAGGED_KEPT)

    def add(self, records: pa.Table, rows: Rows) -> Sample:
        """Keep what is shown of these records, the newest last; gives their last WINDOW_IMAGES."""
        self.flags.extend(rows.flagged)
        last = slice(max(0, len(records) - WINDOW_IMAGES), None)
        manifest, recent = self._bundle.manifest, records.slice(last.start)
        streams = dict(zip(STREAMS, rows.values[last].T, strict=True))
        chances = probabilities(logits_of(recent), manifest.calibration, manifest.task)
        given = accepted_labels(recent, manifest.classes)
        self._expected.extend(map(tuple, expected_labels(chances, given).tolist()))
        self._confidences.extend(streams["confidence"].tolist())
        self._labels.extend(rows.labels[last])
        for row in np.flatnonzero(rows.flagged)[-FLAGGED_KEPT:].tolist():
            self._keep_flagged(records.slice(row, 1).to_pylist()[0])
        flagged = np.array(rows.flagged[last], bool)
        return sample_of(streams, rows.components[last], chances, given, flagged)

    def flagged_share(self) -> float | None:
        """None before there are any images."""
        return sum(self.flags) / len(self.flags) if self.flags else None

    def class_mix(self) -> dict[str, float]:
        """Share of the images by label given; several labels count each."""
        counts = Counter(label for labels in self._labels for label in labels or ["(none)"])
        return {name: count / len(self._labels) for name, count in counts.most_common()}

    def accuracy_estimate(self, drift: str | None) -> dict[str, Any]:
        """`cbpe` and `atc` with 95 % intervals, and whether to believe them, or why not.

        `drift` is the stream of an alarm that nobody has reset. Null where there is no estimate:
        without images, and ATC for several labels.
        """
        expected = np.array(self._expected).reshape(-1, 5)
        confidences = np.array(self._confidences)
        # Restored states of before there were intervals hold fewer of what is expected.
        right, confidences = expected[:, 0], confidences[len(confidences) - len(expected) :]
        task, reference = self._bundle.manifest.task, self._atc_reference
        reasons = why_invalid(sum(self.flags), len(self.flags), self._alpha, drift), self._undefined
        why = "; ".join(filter(None, reasons)) or None
        return {
            "cbpe": cbpe(expected, task),
            "atc": None if reference is None else atc(confidences, reference.at_value),
            "valid": why is None,
            "cbpe_interval": cbpe_interval(expected, task, self._calibration_images),
            "atc_interval": reference and atc_interval(confidences, reference, right),
            "why_invalid": why,
        }

    @property
    def _undefined(self) -> str | None:
        """Why more answers of none than on the reference leave the accuracy open, or None."""
        if self._none_reference is None:
            return None
        none = sum(not labels for labels in self._labels)
        return why_undefined(NoneAnswers(none, len(self._labels)), self._none_reference)

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "flags": list(map(int, self.flags)),
            "expected": list(self._expected),
            "confidences": list(self._confidences),
            "labels": list(self._labels),
            "last_flagged": list(self.flagged),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self.flags.extend(map(bool, state["flags"]))
        # States of before there were intervals hold three figures of each image.
        self._expected.extend(tuple(its) for its in state["expected"] if len(its) == 5)
        self._confidences.extend(state["confidences"])
        self._labels.extend(state["labels"])
        self.flagged.extend(state["last_flagged"])

    def _keep_flagged(self, record: Mapping[str, Any]) -> None:
        if self._reasons is None:
            self._reasons = _reasons(self._bundle)
        self.flagged.append(
            {
                "id": record["id"],
                "time": record["time"].isoformat(),
                "labels": record["labels"],
                "outlier_score": record["outlier_score"],
                "reasons": self._reasons.of(record),
            }
        )


def _reasons(bundle: Bundle) -> Reasons:
    records = read_records(str(bundle.path(REFERENCE)))
    calibration = Calibration(
        measured={name: np.asarray(records[name].to_numpy(), np.float64) for name in MEASURED},
        components=components_of(records),
        labels=records["labels"].to_pylist(),
    )
    return Reasons(calibration, input_pixels=bundle.manifest.input.size, seed=0)
