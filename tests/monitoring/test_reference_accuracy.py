"""ATC's threshold comes from what is known of the reference's accuracy, with its interval."""

from __future__ import annotations

import numpy as np
import pytest

from model.bundle import REFERENCE
from monitoring.records import read_records
from monitoring.reference_accuracy import atc_reference
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
