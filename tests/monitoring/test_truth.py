"""The truth of the calibration split, and what counts as a mistake on it."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.truth import mistakes

GIVEN = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)


@pytest.mark.parametrize(("none_allowed", "unlabelled"), [(False, -1), (True, 1)])
def test_a_row_without_a_label_says_something_only_of_a_model_that_may_say_none(
    none_allowed: bool, unlabelled: int
) -> None:
    found = mistakes(GIVEN, np.array([0, 2, -1, 1]), none_allowed=none_allowed)
    assert found.tolist() == [0, 1, unlabelled, 1]


def test_of_several_labels_one_too_many_or_too_few_is_a_mistake() -> None:
    targets = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert mistakes(GIVEN, targets, none_allowed=True).tolist() == [0, 1, 1, 0]
