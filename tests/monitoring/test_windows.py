"""Windows of clean images look like calibration; of changed ones they say what, and since when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitoring.windows import (
    LEAST_IMAGES,
    WINDOW_IMAGES,
    Comparison,
    Images,
    Window,
)

CLASSES = ("bag", "boot", "shirt")
STREAMS = ("confidence", "brightness")
NAMES = ("brightness", "sharpness", "confidence")


def images(count: int, seed: int) -> Images:
    """Clean ones: independent numbers, three classes, eight components."""
    rng = np.random.default_rng(seed)
    return Images(
        numbers={name: rng.normal(place, 1, count) for place, name in enumerate(NAMES)},
        predicted=rng.choice(3, count, p=(0.5, 0.3, 0.2)).astype(np.int64),
        components=rng.normal(0, (3, 2, 1, 1, 1, 1, 1, 1), (count, 8)),
        flagged=rng.random(count) < 0.01,
        seconds=np.arange(count, dtype=np.float64),
        log_bets=rng.choice([-0.1, 0.05], (count, len(STREAMS))),
        ids=[f"{seed}-{number}" for number in range(count)],
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison(images(5_000, 0), CLASSES, STREAMS, alpha=0.01, seed=0)


def joined(first: Images, then: Images) -> Images:
    return Images(
        numbers={name: np.concatenate([first.numbers[name], then.numbers[name]]) for name in NAMES},
        predicted=np.concatenate([first.predicted, then.predicted]),
        components=np.concatenate([first.components, then.components]),
        flagged=np.concatenate([first.flagged, then.flagged]),
        seconds=np.arange(len(first) + len(then), dtype=np.float64),
        log_bets=np.concatenate([first.log_bets, then.log_bets]),
        ids=[*first.ids, *then.ids],
    )


def darker(its: Images) -> Images:
    """And bets on brightness win."""
    numbers = {**its.numbers, "brightness": its.numbers["brightness"] - 0.8}
    return replace(its, numbers=numbers, log_bets=its.log_bets + np.array([0, 0.5]))


def changed(explanation) -> set[str]:
    return {its["name"] for its in explanation["columns"] if its["changed"]}


def test_clean_windows_rarely_look_different(comparison):
    """After Bonferroni one in a hundred would; of a hundred windows a few at most."""
    found = [changed(comparison.explain(images(300, seed))) for seed in range(1, 101)]
    assert sum(map(bool, found)) <= 5
    moved = [comparison.explain(images(300, seed))["first"] for seed in range(1, 101)]
    assert sum(its is not None for its in moved) <= 5


def test_what_changed_comes_first_with_its_values(comparison):
    explanation = comparison.explain(darker(images(300, 1)))
    assert changed(explanation) == {"brightness"}
    first = explanation["columns"][0]
    assert (first["name"], first["test"]) == ("brightness", "Kolmogorov-Smirnov")
    assert first["reference"] == pytest.approx(0, abs=0.1)
    assert first["window"] == pytest.approx(-0.8, abs=0.2)
    assert explanation["first"]["images_ago"] == pytest.approx(300, abs=10)
    assert explanation["sentence"].startswith(
        "Different from calibration: brightness. First brightness, "
    )


@pytest.mark.parametrize("clean", [200, 500, 800, 980])
def test_a_change_within_the_window_is_found_and_dated(comparison, clean):
    window = joined(images(clean, 1), darker(images(WINDOW_IMAGES - clean, 2)))
    explanation = comparison.explain(window)
    first = explanation["first"]
    if clean == 980:  # 20 images that win 0.5 each are not enough to be sure
        assert first is None
        return
    assert first["stream"] == "brightness"
    assert first["images_ago"] == pytest.approx(WINDOW_IMAGES - clean, abs=10)
    assert explanation["images"] == first["images_ago"], "the clean ones before are left out"
    assert first["since"].startswith("1970-01-01T00:")
    assert changed(explanation) == {"brightness"}


def test_an_alarm_over_very_few_images_says_that_they_do_not_tell_more(comparison):
    few = replace(images(5, 2), log_bets=images(5, 2).log_bets * 0 + np.array([0, 4.0]))
    explanation = comparison.explain(joined(images(300, 1), few), alarm="brightness")
    assert changed(explanation) == set()
    assert explanation["sentence"].startswith("Brightness changed 5 sampled images ago (1970-")
    assert explanation["sentence"].endswith("so few do not tell what else did.")


def test_a_change_that_came_by_degrees_is_told_without_a_time(comparison):
    window = replace(darker(images(300, 1)), log_bets=images(300, 1).log_bets)
    explanation = comparison.explain(window)
    assert explanation["first"] is None
    assert "It began before these images, or came by degrees." in explanation["sentence"]


def test_a_class_that_is_asked_for_more_often_is_named(comparison):
    rng = np.random.default_rng(1)
    mixed = replace(images(300, 1), predicted=rng.choice(3, 300, p=(0.25, 0.15, 0.6)))
    explanation = comparison.explain(mixed)
    assert changed(explanation) == {"predicted_class"}
    assert explanation["classes"][0]["name"] == "shirt"
    assert explanation["classes"][0]["window"] > 2 * explanation["classes"][0]["reference"]


def test_a_class_never_seen_in_calibration_is_no_division_by_nothing(comparison):
    none = replace(images(300, 1), predicted=np.full(300, 3))
    explanation = comparison.explain(none)
    assert "predicted_class" in changed(explanation)
    assert explanation["classes"][0] == {"name": "(none)", "reference": 0.0, "window": 1.0}


def test_components_that_change_together_alone_are_found(comparison):
    """Each has the distribution that it had; it is their dependence that is new."""
    window = images(700, 1)
    first = window.components[:, 2]
    together = window.components.copy()
    for place in range(3, 8):
        together[:, place] = first
    assert changed(comparison.explain(replace(window, components=together))) == {"components"}


def test_a_group_of_images_far_from_all_of_calibration_is_told_with_what_it_is_nearest_to():
    reference = images(2_000, 0)
    labels = [[CLASSES[kind]] for kind in (reference.components[:, 0] > 0).astype(int)]
    with_labels = Comparison(reference, CLASSES, STREAMS, alpha=0.01, seed=0, labels=labels)
    assert with_labels.explain(images(300, 1))["groups"]["groups"] == []
    window = images(300, 1)
    window.components[40:70] = (4, 0, 9, 0, 0, 0, 0, 0)
    (group,) = with_labels.explain(window)["groups"]["groups"]
    assert group["images"] == pytest.approx(30, abs=3)
    assert group["nearest"][0]["label"] == "boot"
    assert set(group["examples"]) <= {f"1-{number}" for number in range(40, 70)}


def test_without_labels_of_the_reference_no_groups_are_told(comparison):
    assert comparison.explain(images(300, 1))["groups"] is None


def test_more_flags_than_alpha_are_told(comparison):
    flagged = images(300, 1).flagged.copy()
    flagged[:30] = True
    explanation = comparison.explain(replace(images(300, 1), flagged=flagged))
    found = next(its for its in explanation["columns"] if its["name"] == "flagged")
    assert found["changed"]
    assert (found["reference"], found["window"]) == (0.01, pytest.approx(0.1, abs=0.03))


def test_few_images_and_a_small_reference_explain_nothing_or_little(comparison):
    assert comparison.explain(images(LEAST_IMAGES - 1, 1)) == {"images": LEAST_IMAGES - 1}
    small = Comparison(images(60, 0), CLASSES, STREAMS, alpha=0.01, seed=0)
    assert changed(small.explain(images(300, 1))) <= {"flagged"}


def test_the_same_window_is_explained_the_same_way():
    window = darker(images(300, 1))
    both = [
        Comparison(images(2_000, 0), CLASSES, STREAMS, alpha=0.01, seed=3).explain(window)
        for _ in range(2)
    ]
    assert both[0] == both[1]


def test_columns_that_never_vary_are_no_trouble():
    reference = replace(
        images(500, 0),
        numbers=dict.fromkeys(NAMES, np.ones(500)),
        components=np.zeros((500, 8)),
        predicted=np.zeros(500, np.int64),
    )
    comparison = Comparison(reference, CLASSES, STREAMS, alpha=0.01, seed=0)
    same = replace(
        images(100, 1),
        numbers=dict.fromkeys(NAMES, np.ones(100)),
        components=np.zeros((100, 8)),
        predicted=np.zeros(100, np.int64),
        flagged=np.zeros(100, bool),
    )
    assert changed(comparison.explain(same)) == set()


def test_a_window_keeps_the_last_images_in_order():
    window = Window(("brightness",))
    for number in range(WINDOW_IMAGES + 5):
        window.add(
            np.array([float(number)]),
            predicted=number % 3,
            components=np.full(2, number),
            flagged=number % 2 == 0,
            seconds=number,
            prediction_id=f"image {number}",
            log_bets=np.zeros(2),
        )
    held = window.images()
    assert len(held) == len(window) == WINDOW_IMAGES
    assert held.numbers["brightness"][[0, -1]].tolist() == [5, WINDOW_IMAGES + 4]
    assert held.components.shape == (WINDOW_IMAGES, 2)
    assert held.ids[0] == "image 5"
    assert held.since(2).ids[0] == "image 7"
    window.clear()
    assert len(window) == 0
