"""Threshold and flag share the loss in class as what they find speaks for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from training.none_choice import FLAG_SHARES, Judged, choose_none

RANDOM = np.random.default_rng(0)


def in_class(count: int = 2_000, seed: int = 0) -> Judged:
    random = np.random.default_rng(seed)
    return Judged(random.beta(8, 1, count), random.uniform(0, 1, count))


UNSURE = Judged(RANDOM.beta(2, 2, 500), RANDOM.uniform(0, 1, 500))  # shows by its probability
FAR = Judged(RANDOM.beta(8, 1, 500), RANDOM.uniform(0, 0.02, 500))  # shows by its score


def test_where_images_look_unsure_the_threshold_takes_the_loss() -> None:
    choice = choose_none(in_class(), [{"unsure": UNSURE}], loss=0.05)
    assert choice.alpha == pytest.approx(0.05 * FLAG_SHARES[0])
    assert choice.found["unsure"].value > 0.3
    assert choice.threshold.value > 0.5


def test_where_images_look_foreign_the_flag_takes_the_loss() -> None:
    choice = choose_none(in_class(), [{"far": FAR}], loss=0.02)
    assert choice.alpha == pytest.approx(0.02 * FLAG_SHARES[-1])
    assert choice.found["far"].value > 0.8


def test_both_groups_weigh_the_same_however_many_kinds_they_hold() -> None:
    few = choose_none(in_class(), [{"far": FAR}, {"unsure": UNSURE}], loss=0.05)
    many = choose_none(
        in_class(), [{f"far {number}": FAR for number in range(9)}, {"unsure": UNSURE}], loss=0.05
    )
    assert (few.alpha, few.threshold.value) == (many.alpha, many.threshold.value)


@given(
    loss=st.floats(0.005, 0.3),
    seed=st.integers(0, 99),
    count=st.integers(1, 400),
    tie=st.booleans(),
)
def test_the_loss_in_class_is_kept_and_used(loss, seed, count, tie) -> None:
    seen = in_class(count, seed)
    if tie:
        seen = Judged(np.round(seen.best, 1), seen.p_value)
    choice = choose_none(seen, [{"unsure": UNSURE}, {"far": FAR}], loss=loss)
    lost = seen.none_or_flagged(choice.threshold.value, choice.alpha).mean()
    flagged = (seen.p_value <= choice.alpha).mean()
    assert choice.lost.value == lost
    assert choice.lost.low <= lost <= choice.lost.high
    assert choice.lost.count == count
    few = FLAG_SHARES[0] * loss  # the least that the flag takes; chance may flag more than it says
    assert lost <= loss + 1e-9 or (choice.alpha == few and lost == flagged)
    above = np.nextafter(choice.threshold.value, 2)
    if (seen.p_value > choice.alpha).any():
        assert choice.threshold.value > 0  # something can be none
    if flagged <= loss < 0.9:  # the next higher threshold would lose too many
        assert seen.none_or_flagged(above, choice.alpha).mean() > loss - 1 / count


def test_an_alpha_that_is_given_stays_and_leaves_the_threshold_the_rest() -> None:
    seen = in_class()
    choice = choose_none(seen, [{"unsure": UNSURE}], loss=0.05, alpha=0.03)
    assert choice.alpha == 0.03
    assert choice.lost.value == pytest.approx(0.05, abs=1e-3)


def test_rates_that_calibration_cannot_tell_are_not_chosen() -> None:
    choice = choose_none(in_class(), [{"unsure": UNSURE}], loss=0.05, smallest_alpha=0.02)
    assert choice.alpha >= 0.02


@pytest.mark.parametrize("count", [1, 10, 19])
def test_fewer_images_than_one_over_the_loss_lose_none_and_none_can_still_be_said(
    count: int,
) -> None:
    seen = Judged(np.linspace(0.6, 0.9, count), np.ones(count))
    choice = choose_none(seen, [{"unsure": UNSURE}], loss=0.05)
    assert choice.threshold.value == 0.6
    assert choice.lost.value == 0
    assert choice.found["unsure"].value == (UNSURE.none_or_flagged(0.6, choice.alpha)).mean() > 0.5
    assert "below 0.60 the answer is none" in choice.threshold.sentence


@given(count=st.integers(1, 300), loss=st.floats(0.005, 0.3))
def test_the_sentence_promises_no_flag_that_calibration_cannot_raise(count, loss) -> None:
    smallest = 1 / (count + 1)
    p_values = np.ceil(in_class().p_value / smallest) * smallest  # as `count` images give them
    seen = Judged(in_class().best, p_values)
    choice = choose_none(seen, [{"far": FAR}], loss=loss, smallest_alpha=smallest)
    if "nothing is ever flagged" in choice.threshold.sentence:
        assert not (p_values <= choice.alpha).any()
        assert f"({int(np.ceil(1 / choice.alpha - 1)):,} are needed)" in choice.threshold.sentence
    else:
        assert choice.alpha >= smallest


def test_the_sentence_says_what_it_costs_and_finds() -> None:
    choice = choose_none(in_class(), [{"far": FAR}], loss=0.02)
    assert choice.threshold.sentence.startswith("Can be trusted: below")
    assert "at most 2.0 % allowed" in choice.threshold.sentence
    assert "% of far" in choice.threshold.sentence
    few = choose_none(in_class(40), [], loss=0.05)
    assert few.threshold.sentence.startswith("To be taken with care")

    told = choice.to_dict()["with_flag"]
    assert told["alpha"] == choice.alpha
    far = told["found"]["far"]
    assert far["low"] <= far["value"] <= far["high"]
    assert far["count"] == len(FAR.best)


def test_what_is_found_is_told_of_images_that_did_not_choose() -> None:
    others = Judged(UNSURE.best[:100], UNSURE.p_value[:100])
    alone = choose_none(in_class(), [{"far": FAR}], loss=0.02)
    choice = choose_none(
        in_class(), [{"far": FAR}], reported={"far": others, "few": UNSURE}, loss=0.02
    )
    assert (choice.alpha, choice.threshold.value) == (alone.alpha, alone.threshold.value)
    found = others.none_or_flagged(choice.threshold.value, choice.alpha)
    assert (choice.found["far"].value, choice.found["far"].count) == (found.mean(), 100)
    assert choice.found["few"].count == 500


@pytest.mark.parametrize("loss", [0.0, 1.0, -0.1])
def test_a_loss_that_means_nothing_is_refused(loss: float) -> None:
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        choose_none(in_class(), [], loss=loss)


def test_without_a_labelled_image_there_is_nothing_to_tune_on() -> None:
    with pytest.raises(DataError, match="no labelled validation image"):
        choose_none(Judged(np.zeros(0), np.zeros(0)), [])


def test_the_loss_holds_on_fresh_images() -> None:
    choice = choose_none(in_class(4_000), [{"unsure": UNSURE}], loss=0.05)
    fresh = in_class(20_000, seed=1)
    lost = fresh.none_or_flagged(choice.threshold.value, choice.alpha).mean()
    assert lost == pytest.approx(0.05, abs=0.01)
    low, high = choice.threshold.interval
    assert low <= choice.threshold.value <= high
    kept = choice.threshold.score_interval
    assert kept is not None
    assert kept[0] < 1 - lost < kept[1]
    assert kept == pytest.approx((1 - choice.lost.high, 1 - choice.lost.low))


def test_saturated_probabilities_lose_nobody_but_by_the_flag() -> None:
    seen = Judged(np.ones(50), np.linspace(0.02, 1, 50))
    choice = choose_none(seen, [{"far": FAR}], loss=0.05)
    assert choice.threshold.value == 1.0
    assert choice.lost.value == (seen.p_value <= choice.alpha).mean()
    assert not choice.threshold.trusted
    assert "too few to place it" in choice.threshold.sentence


def test_a_choice_goes_through_json_and_into_the_bundle() -> None:
    choice = choose_none(in_class(500), [{"far": FAR}], loss=0.05)
    plain = choice.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["value"] == choice.threshold.to_thresholds().value
    assert len(plain["curve"]) == len(plain["grid"])
