"""A flagged image is told with what is unusual about it and what it is nearest to."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.reasons import Calibration, Reasons

COUNT = 1_000


@pytest.fixture(scope="module")
def reasons() -> Reasons:
    """Boots around -5 and shirts around 5 of the first component."""
    rng = np.random.default_rng(0)
    boots = np.arange(COUNT) % 2 == 0
    components = rng.normal(0, 1, (COUNT, 4))
    components[:, 0] += np.where(boots, -5, 5)
    calibration = Calibration(
        measured={name: rng.uniform(0.3, 0.7, COUNT) for name in ("brightness", "contrast")}
        | {"sharpness": rng.uniform(0.1, 0.2, COUNT)},
        components=components,
        labels=[["boot"] if boot else ["shirt"] for boot in boots],
    )
    return Reasons(calibration, input_pixels=28, seed=0)


def record(**more) -> dict:
    usual = {"brightness": 0.5, "contrast": 0.5, "sharpness": 0.15, "width": 280, "height": 280}
    return {**usual, "components": np.array([-5.0, 0, 0, 0]), **more}


def test_an_ordinary_image_has_its_neighbourhood_alone(reasons):
    (told,) = reasons.of(record())
    assert told.startswith("nearest to boot (10 of the 10 nearest calibration images), ")
    assert float(told.split(", ")[1].split(" times")[0]) < 2


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("brightness", 0.1, "darker than 99.5% of calibration images (brightness 0.100, theirs 0."),
        ("brightness", 0.9, "brighter than"),
        ("contrast", 0.1, "flatter than"),
        ("contrast", 0.9, "richer in contrast than"),
        ("sharpness", 0.01, "blurrier than"),
        ("sharpness", 0.5, "sharper than"),
    ],
)
def test_what_is_unusual_is_named_with_its_value(reasons, name, value, words):
    told = reasons.of(record(**{name: value}))
    assert told[0].startswith(words)
    assert len(told) == 2


def test_an_image_smaller_than_the_input_is_told(reasons):
    assert "smaller than the network's input: 20 px for 28" in reasons.of(record(height=20))


def test_a_distant_image_is_told_how_far_it_is(reasons):
    far = reasons.of(record(components=np.array([5.0, 30, 0, 0])))[-1]
    assert far.startswith("nearest to shirt")
    assert float(far.split("), ")[1].split(" times")[0]) > 10


def test_a_calibration_split_of_few_images_is_enough():
    calibration = Calibration(
        measured=dict.fromkeys(("brightness", "contrast", "sharpness"), np.full(3, 0.5)),
        components=np.zeros((3, 4)),
        labels=[[], [], ["boot"]],
    )
    told = Reasons(calibration, input_pixels=28, seed=0).of(record())
    assert any("nearest to (none) (2 of the 3 nearest" in one for one in told)
