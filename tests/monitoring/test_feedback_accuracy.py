"""Accuracy by feedback: with its interval, of images that count once, and honest about bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitoring.feedback_accuracy import Joined, accuracy_by_feedback

CLASSES = ("circle", "square", "star")
ANNA = frozenset({"anna"})


def joined(count: int, chosen, *, clients=None, seed: int = 0, task: str = "single") -> Joined:
    """Images right as often as they are sure, of which `chosen(confidence, right)` are labelled."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1.0, count)
    given = np.eye(3, dtype=bool)[rng.integers(0, 3, count)]
    right = rng.random(count) < confidence
    true = np.where(right[:, None], given, np.roll(given, 1, axis=1))
    flagged = rng.random(count) < 0.02
    rows = np.flatnonzero(chosen(rng, confidence, right, flagged))
    said = np.full(count, -1)
    said[rows] = np.arange(len(rows))
    who = clients or [ANNA] * len(rows)
    return Joined(given, confidence, flagged, said, true[rows], tuple(who[: len(rows)]))


def by(its: Joined, task: str = "single"):
    return accuracy_by_feedback(its, task, CLASSES)


def at_random(share: float):
    return lambda rng, confidence, right, flagged: rng.random(len(confidence)) < share


def test_a_random_sample_holds_the_accuracy_of_all_and_is_not_called_biased():
    found = [by(joined(4_000, at_random(0.1), seed=seed)) for seed in range(20)]
    held = [its["interval"][0] <= 0.75 <= its["interval"][1] for its in found]
    assert sum(held) >= 17
    assert sum(its["biased"] for its in found) <= 1
    assert "look like the others" in found[0]["sentence"]
    assert "Where people report mistakes rather than any image" in found[0]["sentence"]


def test_unsure_images_labelled_first_are_told_and_weighted_back():
    def unsure(rng, confidence, right, flagged):
        return rng.random(len(confidence)) < np.where(confidence < 0.7, 0.3, 0.03)

    found = by(joined(6_000, unsure))
    assert found["biased"]
    assert "no random sample" in found["sentence"]
    assert "confidence is another (median 0.6" in found["sentence"]
    assert found["interval"][1] < 0.72, "as it came it is too low"
    low, high = found["weighted_interval"]
    assert low < 0.75 < high


def test_flagged_images_labelled_first_are_told():
    def mostly_flagged(rng, confidence, right, flagged):
        return rng.random(len(confidence)) < np.where(flagged, 0.9, 0.03)

    found = by(joined(4_000, mostly_flagged))
    assert "they are more often flagged" in found["sentence"]


def test_a_class_labelled_first_is_told_by_name():
    its = joined(3_000, at_random(0.2))
    rows = np.flatnonzero(its.said >= 0)
    kept = rows[its.given[rows, 2] | (np.arange(len(rows)) % 4 == 0)]
    said = np.full(3_000, -1)
    said[kept] = np.arange(len(kept))
    some = replace(its, said=said, true=its.true[its.said[kept]], clients=(ANNA,) * len(kept))
    assert "other classes are predicted (star" in by(some)["sentence"]


def test_few_labels_have_a_wide_interval_and_no_second_figure():
    found = by(joined(300, at_random(0.03)))
    assert 0 < found["labelled"] < 20
    assert found["interval"][1] - found["interval"][0] > 0.25
    assert (found["weighted"], found["biased"]) == (None, None)
    assert "Too few to say" in found["sentence"]


def test_a_flood_from_one_client_counts_no_more_than_all_others_together():
    def counted(flood: int, others: int) -> dict:
        who = [frozenset({"mallory"})] * flood + [ANNA] * others
        its = joined(1_000, lambda rng, confidence, *_: np.arange(1_000) < flood + others)
        true = its.true.copy()
        true[:flood] = np.roll(its.given[:flood], 1, axis=1)  # every image of it called wrong
        return by(replace(its, true=true, clients=tuple(who)))

    found = counted(400, 60)
    assert found["labelled"] == 120
    assert "340 more of the one that labelled most do not count" in found["sentence"]
    alone = counted(400, 0)
    assert (alone["labelled"], alone["value"]) == (400, 0.0)
    assert "All 400 labels come from one client" in alone["sentence"]
    assert "93% by one of them alone" in counted(400, 29)["sentence"]


def test_micro_f1_of_several_labels_has_an_interval_that_holds_it():
    rng = np.random.default_rng(0)
    chances = rng.random((20_000, 3))
    given, true = chances > 0.5, rng.random((20_000, 3)) < chances
    all_of_them = 2 * (given & true).sum() / (given.sum() + true.sum())
    held = []
    for start in range(0, 10_000, 500):
        rows = slice(start, start + 500)
        its = Joined(
            given[rows],
            np.full(500, 0.9),
            np.zeros(500, bool),
            np.arange(500),
            true[rows],
            (ANNA,) * 500,
        )
        low, high = by(its, "multi")["interval"]
        held.append(low <= all_of_them <= high)
    assert sum(held) >= 17
