"""A version made without training says of which version its figures were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monitoring.adjusted_version import make_adjusted_version
from monitoring.discrepancy import load_discrepancy
from monitoring.sampling import usual_sampler
from monitoring.streams import components_of, reference_records

CLASSES = ("circle", "square", "star")
SHARES = (0.6, 0.3, 0.1)


@pytest.mark.parametrize("evidence", [{"value": 0.4, "trusted": True}, {}])
def test_what_only_a_training_measures_names_the_version_it_was_measured_of(
    store, champion, evidence
):
    trained = champion()
    manifest = trained.manifest.model_copy(update={"threshold_evidence": evidence})
    before = replace(trained, manifest=manifest)
    for _ in range(2):  # the second is made of the first
        tag, _ = make_adjusted_version(
            store, before, dict(zip(CLASSES, SHARES, strict=True)), CLASSES, "a test"
        )
        before = store.load(store.find(tag))
        told = before.manifest
        of_it = {**evidence, "measured_of": manifest.tag} if evidence else {}
        assert told.threshold_evidence == of_it
        said = f"the gates of the engines were measured of {manifest.tag}."
        assert told.outlier.statement.count("were measured of") == 1
        assert said in told.outlier.statement
        assert told.outlier.statement.startswith(manifest.outlier.statement)
        assert told.engines == manifest.engines


def test_windows_are_compared_with_its_own_reference_and_by_no_null_of_the_one_before(
    store, champion
):
    before, shares = champion(), dict(zip(CLASSES, SHARES, strict=True))
    for _ in range(2):  # the champion keeps none; the version made of it does, for the second
        tag, _ = make_adjusted_version(store, before, shares, CLASSES, "a test")
        after = store.load(store.find(tag))
        of_it, of_before = (
            components_of(reference_records(its, usual_sampler())) for its in (after, before)
        )
        kept = load_discrepancy(after, of_it)
        assert kept is not None
        assert kept.images[0] == len(of_it) < len(of_before)
        assert load_discrepancy(after, of_before) is None
        before, shares = after, dict.fromkeys(CLASSES, 1 / 3)
