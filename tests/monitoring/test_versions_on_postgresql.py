"""Recalibrated and adjusted versions are made on PostgreSQL as well: the same claims."""

from __future__ import annotations

import pytest

from tests.monitoring import test_adjusted_version as of_adjusting
from tests.monitoring import test_recalibration as of_recalibration

# Commands end with their process, and so do their connections: here they outlive them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

settings, put, say = of_recalibration.settings, of_recalibration.put, of_recalibration.say
shifted, asked = of_recalibration.shifted, of_recalibration.asked
recalibrated, adjusted = of_recalibration.recalibrated, of_adjusting.adjusted
test_confirmed_images = of_recalibration.test_its_calibration_images_are_the_confirmed_ones
test_a_recalibrated_challenger = (
    of_recalibration.test_it_is_registered_as_a_challenger_and_the_champion_stays
)
test_flagged_images_alone = of_recalibration.test_labels_of_flagged_images_alone_are_refused
test_useless_answers = of_recalibration.test_contradicted_and_unknown_answers_confirm_nothing
test_an_adjusted_challenger = (
    of_adjusting.test_it_is_registered_as_a_challenger_and_the_champion_stays
)


@pytest.fixture
def store(store_on_postgresql):
    return store_on_postgresql
