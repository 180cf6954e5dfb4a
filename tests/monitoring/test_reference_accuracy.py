"""ATC's threshold comes from what is known of the reference's accuracy, with its interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.bundle import REFERENCE
from monitoring.last_images import LastImages
from monitoring.records import read_records, to_table
from monitoring.reference_accuracy import atc_reference, none_answers
from monitoring.rows import rows_of
from monitoring.truth import true_targets

CLASSES = ("circle", "square", "star")


def test_atc_takes_its_accuracy_from_the_true_labels_or_else_from_the_manifest(champion):
    labelled, bare = champion(), champion(truth=False)
    assert true_targets(bare) is None
    right = np.mean(
        [
            its["labels"][0] == CLASSES[target]
            for its, target in zip(
                read_records(str(labelled.path(REFERENCE)), ["labels"]).to_pylist(),
                true_targets(labelled).tolist(),
                strict=True,
            )
        ]
    )
    sure = read_records(str(bare.path(REFERENCE)), ["confidence"])["confidence"].to_numpy()
    assert (sure > atc_reference(labelled).at_value).mean() == pytest.approx(right, abs=0.001)
    assert (sure > atc_reference(bare).at_value).mean() == pytest.approx(0.9, abs=0.001)
    assert (sure > atc_reference(bare).at_low).mean() == pytest.approx(0.88, abs=0.001)


# Answers of none: probabilities that sum to one over the classes cannot tell their chance

UNSURE = 0.6


@pytest.fixture
def estimated(champion):
    """`estimated(records)`: what is estimated of these images without labels."""
    bundle = champion(threshold=UNSURE)

    def estimate(records) -> dict:
        table = to_table(records)
        last = LastImages(bundle, 0.01, 3_000)
        last.add(table, rows_of(table, bundle.manifest))
        return last.accuracy_estimate(None)

    return estimate


def of_no_class(records):
    """The same, but the model is as good as undecided, and answers none."""
    return [
        replace(its, logits=np.zeros(3, np.float32), labels=[], confidence=1 / 3) for its in records
    ]


def test_images_of_the_classes_that_are_answered_none_are_mistakes(estimated, of_world):
    made, targets = of_world("a", 1_000, 1, threshold=UNSURE)
    none = np.mean([not its.labels for its in made])
    assert 0.1 < none < 0.4, "there are many"
    right = np.mean([its.labels == [CLASSES[of]] for its, of in zip(made, targets, strict=True)])
    found = estimated(made)
    assert found["valid"]
    low, high = found["cbpe_interval"]
    assert low < right < high


def test_where_more_is_answered_none_than_on_calibration_no_accuracy_is_told(estimated, of_world):
    """Answered none, images of no class are right, and the estimate cannot know it."""
    made, targets = of_world("a", 1_000, 1, threshold=UNSURE)
    right = [its.labels == [CLASSES[of]] for its, of in zip(made[:700], targets[:700], strict=True)]
    found = estimated([*made[:700], *of_no_class(made[700:])])
    assert found["cbpe"] < (sum(right) + 300) / 1_000 - 0.2
    assert not found["valid"]
    assert "images are answered as none of the classes" in found["why_invalid"]


def test_answers_of_none_are_counted_on_calibration_images_of_a_class(champion):
    bundle = champion(threshold=UNSURE)
    records = read_records(str(bundle.path(REFERENCE)), ["labels"]).to_pylist()
    found = none_answers(bundle)
    assert found.images == len(records) == 3_000
    assert found.none == sum(not its["labels"] for its in records) > 0
    assert none_answers(champion()).none == 0
