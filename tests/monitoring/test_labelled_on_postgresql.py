"""Labels are read from PostgreSQL as from SQLite: the same claims as in test_labelled.py."""

from __future__ import annotations

import pytest

from tests.monitoring import test_labelled as of_labels

# Commands end with their process, and so do their connections: here they outlive them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

put, say, watch = of_labels.put, of_labels.say, of_labels.watch
test_a_concept_drift = of_labels.test_a_concept_drift_raises_the_alarm_though_no_image_changes
test_a_flood = of_labels.test_a_flood_of_one_client_counts_for_no_more_than_its_share
test_an_image_counts_once = of_labels.test_an_image_counts_once_and_what_is_no_evidence_is_left_out
test_a_crash = of_labels.test_a_label_is_neither_lost_nor_counted_twice_by_a_crash


@pytest.fixture
def store(store_on_postgresql):
    return store_on_postgresql
