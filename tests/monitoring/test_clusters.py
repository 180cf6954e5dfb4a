"""Drifted images come in groups, with what they are nearest to; clean windows have none."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from monitoring.clusters import EXAMPLES, LEAST_IMAGES, Groups, _silhouette

CENTRES = np.array([[6.0, 0, 0, 0], [0, 6.0, 0, 0]])
NAMES = ("boot", "shirt")


def images(count: int, seed: int) -> tuple[np.ndarray, list[list[str]]]:
    """Two classes in four components."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, count)
    return CENTRES[kinds] + rng.normal(size=(count, 4)), [[NAMES[kind]] for kind in kinds]


def named(count: int, what: str = "clean") -> list[str]:
    return [f"{what} {number}" for number in range(count)]


@pytest.fixture(scope="module")
def groups() -> Groups:
    return Groups(*images(2_000, 0), seed=0)


def away(direction: int, beside: int, count: int, seed: int = 9) -> np.ndarray:
    """Images of one class that have moved off in a direction."""
    rng = np.random.default_rng(seed)
    return CENTRES[beside] + 7 * np.eye(4)[direction] + 0.5 * rng.normal(size=(count, 4))


def test_clean_windows_have_no_groups(groups):
    found = [groups.of(images(400, seed)[0], named(400)) for seed in range(1, 31)]
    assert not any(its["groups"] for its in found)
    assert np.mean([its["far_images"] for its in found]) == pytest.approx(20, abs=6)


def test_two_kinds_of_drift_are_two_groups_with_what_they_are_nearest_to(groups):
    boots, shirts = away(2, 0, 40), away(3, 1, 25)
    window = np.concatenate([images(300, 1)[0], boots, shirts])
    ids = named(300) + named(40, "bright boot") + named(25, "odd shirt")
    found = groups.of(window, ids)
    first, second = found["groups"][:2]
    assert first["images"] == pytest.approx(40, abs=3)
    assert second["images"] == pytest.approx(25, abs=3)
    assert first["nearest"][0]["label"] == "boot"
    assert second["nearest"][0]["label"] == "shirt"
    assert first["nearest"][0]["share"] > 0.9
    assert len(first["examples"]) == EXAMPLES
    assert all(its.startswith("bright boot") for its in first["examples"])
    assert all(its.startswith("odd shirt") for its in second["examples"])
    assert first["times_as_far"] > 3
    assert first["share"] == pytest.approx(40 / 365, abs=0.02)
    json.dumps(found)


def test_one_kind_of_drift_is_one_group(groups):
    found = groups.of(np.concatenate([images(200, 1)[0], away(2, 0, 60)]), named(260))
    assert found["groups"][0]["images"] >= 55
    assert len(found["groups"]) == 1


def test_images_that_are_all_the_same_are_one_group(groups):
    same = np.repeat(away(2, 0, 1), 30, axis=0)
    found = groups.of(np.concatenate([images(100, 1)[0], same]), named(130))
    assert found["groups"][0]["images"] >= 30
    only = groups.of(same, named(30))["groups"]
    assert [its["images"] for its in only] == [30]


@pytest.mark.parametrize("count", [0, 1, LEAST_IMAGES - 1])
def test_too_few_images_are_no_group(groups, count):
    assert groups.of(away(2, 0, count), named(count))["groups"] == []


def test_the_silhouette_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    points, numbers = rng.normal(size=(60, 3)), rng.integers(0, 4, 60)
    numbers[0] = 7  # alone
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert _silhouette(distances, numbers) == pytest.approx(silhouette_score(points, numbers))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_neighbours_are_those_of_the_plain_computation(groups, count):
    window = images(count, 3)[0]
    rows, distances = groups._nearest(window, 10)
    plain = np.linalg.norm(window[:, None] - images(2_000, 0)[0], axis=2)
    assert (rows == np.argsort(plain, axis=1)[:, :10]).all()
    np.testing.assert_allclose(distances, np.sort(plain, axis=1)[:, :10], rtol=1e-9)


def test_memory_hardly_grows_with_the_calibration_split():
    """A window of 1,000 has 30 million distances to 30,000 calibration images: 240 MB."""
    rng = np.random.default_rng(0)
    components = rng.normal(size=(30_000, 32))
    tracemalloc.start()
    try:
        Groups(components, [["cat"]] * 30_000, seed=0).of(components[:1_000], named(1_000))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60e6
