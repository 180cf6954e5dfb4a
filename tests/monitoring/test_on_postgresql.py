"""What the monitor and a retraining keep in the state database, they keep on PostgreSQL as well.

The same claims as in test_monitor.py and test_retrain.py, in sessions far from UTC.
"""

from __future__ import annotations

import gc

import pytest

from model.store import ModelStore
from monitoring.settings import MonitoringSettings
from tests.monitoring import test_monitor as of_monitor
from tests.monitoring import test_retrain as of_retraining

# Commands end with their process, and so do their connections: here they outlive them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

put, after_now = of_monitor.put, of_monitor.after_now
test_an_alarm = of_monitor.test_clean_images_raise_no_alarm_and_dark_ones_do_once
test_a_reset = of_monitor.test_drift_stays_until_someone_resets_it_and_says_why
test_a_reset_of_a_former_champion = (
    of_monitor.test_a_reset_reaches_a_version_that_is_not_the_champion_now
)
test_the_place_of_a_reset = (
    of_monitor.test_a_reset_falls_between_the_same_records_whenever_the_monitor_looks
)
test_an_alarm_after_a_crash = (
    of_monitor.test_an_alarm_that_is_read_again_after_a_crash_is_written_once
)
test_an_alarm_that_was_not_written = (
    of_monitor.test_an_alarm_that_was_saved_and_not_written_is_written_at_the_next_look
)
test_other_versions = of_monitor.test_records_of_other_versions_are_counted_apart

commands, production = of_retraining.commands, of_retraining.production
predicted = of_retraining.predicted
TestForgetting = of_retraining.TestForgetting
test_a_retraining = of_retraining.test_it_trains_on_labels_and_compares_on_the_newest
test_a_second_retraining = of_retraining.test_a_second_retraining_is_refused_while_the_first_lives
test_a_late_label = (
    of_retraining.test_a_label_that_comes_while_a_retraining_begins_is_new_the_next_time
)
test_labels_since_an_alarm = of_retraining.test_after_an_alarm_only_what_came_since_counts_as_enough
test_labels_left_out = of_retraining.test_labels_that_cannot_be_used_are_left_out_by_reason
test_the_last_retraining = of_retraining.test_the_last_retraining_is_of_the_model_that_is_asked
test_stopping = of_retraining.test_what_an_alarm_started_here_can_be_stopped_and_nothing_else


@pytest.fixture
def settings(tmp_path, postgresql):
    return MonitoringSettings(
        home=tmp_path / "home",
        state_url=postgresql.new_database(timezone="Asia/Kolkata"),
        retrain_least_labels=of_retraining.LEAST,
        retrain_trusted_clients=of_retraining.TRUSTED,
        record_merge_seconds=0.0,
    )


@pytest.fixture
def store(settings):
    store = ModelStore(settings)
    yield store
    store.state.dispose()
    gc.collect()
