"""What a version answers on its reference: ATC's threshold, and how often none of the classes."""

from __future__ import annotations

from model.bundle import REFERENCE, Bundle
from monitoring.accuracy import AtcReference, NoneAnswers, wilson_interval
from monitoring.records import read_records
from monitoring.streams import accepted_labels
from monitoring.truth import are_right, true_targets


def atc_reference(bundle: Bundle) -> AtcReference | None:
    """Of single-label models; None where neither true labels nor the manifest tell the accuracy.

    With the reference's true labels its accuracy is counted there; else it is the manifest's, with
    the manifest's interval.
    """
    manifest = bundle.manifest
    if manifest.task != "single":
        return None
    records = read_records(str(bundle.path(REFERENCE)), ["confidence", "labels"])
    confidences = records["confidence"].to_numpy()
    targets = true_targets(bundle)
    if targets is not None and len(targets) == len(records) > 0:
        right = int(are_right(accepted_labels(records, manifest.classes), targets).sum())
        low, high = wilson_interval(right, len(records))
        return AtcReference.of(confidences, right / len(records), low, high)
    accuracy = manifest.metrics.get("accuracy")
    if accuracy is None or accuracy.value is None or not len(records):
        return None
    low = accuracy.value if accuracy.low is None else accuracy.low
    high = accuracy.value if accuracy.high is None else accuracy.high
    return AtcReference.of(confidences, accuracy.value, low, high)


def none_answers(bundle: Bundle) -> NoneAnswers | None:
    """Of the reference's images of a class; None for several labels, where none is an answer."""
    if bundle.manifest.task != "single":
        return None
    records = read_records(str(bundle.path(REFERENCE)), ["labels"])
    given = accepted_labels(records, bundle.manifest.classes)
    targets = true_targets(bundle)
    if targets is not None and len(targets) == len(records):
        given = given[targets >= 0]
    return NoneAnswers(int((~given.any(axis=1)).sum()), len(given))
