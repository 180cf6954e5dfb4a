"""A change of the class mix alone is told from one within classes, and what to do is proposed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.decision import Thresholds
from monitoring.prior_shift import LEAST_IMAGES, PriorShift, weighted_kolmogorov_smirnov

CLASSES = ("circle", "square", "star")
SHARES = (0.6, 0.3, 0.1)
MOST_PROBABLE = Thresholds(objective="most probable class")


@pytest.fixture
def shift(world):
    return PriorShift(world(3_000, 0).sample, CLASSES, MOST_PROBABLE, task="single", exclusive=True)


def test_another_class_mix_is_recognised_with_its_shares(shift, world):
    found = shift.explain(world(800, 1, SHARES).sample)
    assert (found["recognised"], found["agree"], found["within_classes"]) == (True, True, [])
    assert "The class mix alone explains what is seen" in found["sentence"]
    by_name = {its["name"]: its for its in found["classes"]}
    for name, share in zip(CLASSES, SHARES, strict=True):
        assert by_name[name]["low"] <= share <= by_name[name]["high"]
        assert by_name[name]["black_box_low"] <= share <= by_name[name]["black_box_high"]
    assert by_name["circle"]["changed"]


def test_the_proposal_is_expected_to_gain_what_it_gains(shift, world):
    found = shift.explain(world(800, 1, SHARES).sample)["proposal"]
    assert found["what"] == "prior-corrected probabilities"
    assert found["worthwhile"]
    assert "labelled reference images" in found["expected"]["by"]
    fresh = world(20_000, 2, SHARES)
    factors = np.array([found["factors"][name] for name in CLASSES])
    after = (fresh.sample.chances * factors).argmax(axis=1)
    gained = (after == fresh.targets).mean() - fresh.sample.given[
        np.arange(20_000), fresh.targets
    ].mean()
    assert found["expected"]["gain_low"] <= gained <= found["expected"]["gain_high"]


def test_unchanged_images_are_told_to_be_so_most_of_the_time(shift, world):
    found = [shift.explain(world(500, seed).sample) for seed in range(1, 41)]
    assert sum(its["recognised"] for its in found) <= 2
    assert found[0]["proposal"] is None
    assert found[0]["sentence"].startswith("The class mix is that of calibration")


def test_a_change_within_classes_is_no_pure_prior_shift(shift, world):
    found = shift.explain(world(800, 1, SHARES, brighter=0.05).sample)
    assert not found["recognised"]
    assert [its["name"] for its in found["within_classes"]] == ["brightness"]
    assert "More than the class mix changed: within classes, brightness did" in found["sentence"]
    assert found["proposal"] is None


def test_more_flagged_images_are_a_change_within_classes(shift, world):
    images = world(800, 1, SHARES).sample
    flagged = images.flagged | (np.arange(800) % 10 == 0)
    found = shift.explain(replace(images, flagged=flagged))
    assert [its["name"] for its in found["within_classes"]] == ["flagged"]


def test_estimates_that_do_not_agree_are_no_pure_prior_shift(world):
    """Labels given that do not follow from the probabilities, as where calibration is wrong."""
    reference = world(3_000, 0).sample
    shift = PriorShift(reference, CLASSES, MOST_PROBABLE, task="single", exclusive=True)
    images = world(800, 1, SHARES).sample
    given = np.eye(3, dtype=bool)[np.random.default_rng(0).integers(0, 3, 800)]
    found = shift.explain(replace(images, given=given))
    assert (found["agree"], found["recognised"]) == (False, False)
    assert "do not agree" in found["sentence"]


def test_without_true_labels_there_is_one_estimate_and_it_is_said(world):
    reference = replace(world(3_000, 0).sample, targets=None)
    shift = PriorShift(reference, CLASSES, MOST_PROBABLE, task="single", exclusive=True)
    found = shift.explain(world(800, 1, SHARES).sample)
    assert (found["recognised"], found["agree"]) == (True, None)
    assert found["classes"][0]["black_box"] is None
    assert "no true labels to check" in found["sentence"]
    assert "favour the proposal" in found["proposal"]["expected"]["by"]


def test_few_images_tell_nothing(shift, world):
    found = shift.explain(world(LEAST_IMAGES - 1, 1, SHARES).sample)
    assert not found["recognised"]
    assert "too few" in found["sentence"]


def test_for_several_labels_thresholds_are_proposed(world):
    rng = np.random.default_rng(0)
    names = ("red", "round")

    def draw(count, shares):
        true = rng.random((count, 2)) < shares
        images = rng.normal(0, 0.5, true.shape) + true - 0.5
        chances = 1 / (1 + np.exp(-4 * images))
        some = world(count, 5).sample
        numbers = {**some.numbers, "confidence": np.maximum(chances, 1 - chances).min(axis=1)}
        return replace(
            some,
            chances=chances,
            given=chances >= 0.5,
            numbers=numbers,
            components=images,
            targets=true.astype(np.uint8),
        )

    thresholds = Thresholds(objective="macro_f1", value=0.5)
    reference = draw(4_000, [0.5, 0.5])
    shift = PriorShift(reference, names, thresholds, task="multi", exclusive=False)
    found = shift.explain(draw(900, [0.15, 0.5]))
    assert found["recognised"]
    (name, its), *rest = found["proposal"]["thresholds"].items()
    assert (name, its["now"], rest) == ("red", 0.5, [])
    assert its["adjusted"] == pytest.approx(0.85, abs=0.06)  # odds times (1 - 0.15) / 0.15
    assert found["proposal"]["expected"]["gain"] > 0


def test_a_weighted_distribution_is_that_of_what_it_stands_for():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=20_000)
    weights = np.where(reference > 0, 3.0, 1.0)
    same = rng.choice(reference, 2_000, p=weights / weights.sum())
    assert weighted_kolmogorov_smirnov(reference, weights, same) > 0.01
    assert weighted_kolmogorov_smirnov(reference, np.ones(20_000), same) < 1e-6
