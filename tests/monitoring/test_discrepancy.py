"""Clean images look like the reference as often as the p-values say; changed ones do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from model.bundle import DISCREPANCY, save_arrays
from model.errors import BundleError
from monitoring.discrepancy import (
    DRAWS,
    FEATURES,
    Discrepancy,
    _tail,
    load_discrepancy,
    null_sizes,
)
from monitoring.sampling import Sampler, new_sampler, usual_sampler
from monitoring.settings import MonitoringSettings
from monitoring.streams import components_of, reference_records

IMAGES = 1_500


def components(count: int, seed: int) -> np.ndarray:
    """Of images of ten classes."""
    rng = np.random.default_rng(seed)
    classes = np.random.default_rng(5).normal(0, 2, (10, 8))
    return classes[rng.integers(0, 10, count)] + rng.normal(size=(count, 8))


@pytest.fixture(scope="module")
def several() -> list[Discrepancy]:
    """Of four references: each lies a little off the world that it is drawn from."""
    return [Discrepancy.fit(components(IMAGES, seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def fitted(several: list[Discrepancy]) -> Discrepancy:
    return several[0]


@pytest.mark.parametrize("count", [10, 25, 100, 300])
def test_p_values_of_clean_windows_are_near_uniform_and_hold_their_level(
    several: list[Discrepancy], count: int
) -> None:
    found = np.array(
        [
            its.compare(components(count, 1_000 * (place + 1) + number))[0]
            for place, its in enumerate(several)
            for number in range(100)
        ]
    )
    # Of 400 p-values, three standard errors around what uniform ones would be.
    assert found.mean() == pytest.approx(0.5, abs=0.045)
    assert (found < 0.01).mean() <= 0.025
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.033)
    assert (found < 0.5).mean() == pytest.approx(0.5, abs=0.075)


def test_where_a_third_of_the_reference_is_compared_p_values_err_on_the_safe_side() -> None:
    its = [Discrepancy.fit(components(300, seed)) for seed in range(10)]
    found = np.array(
        [
            one.compare(components(100, 1_000 * (place + 1) + number))[0]
            for place, one in enumerate(its)
            for number in range(40)
        ]
    )
    assert 0.5 < found.mean() < 0.65
    assert (found < 0.05).mean() <= 0.05


def test_the_curve_keeps_to_the_draws_far_out(several: list[Discrepancy]) -> None:
    """With mean and variance alone it does not: 1.2 % of them would be under 1 %."""
    under = []
    for null in (row.astype(np.float64) for its in several for row in its.null):
        farthest = np.sort(null)[: -DRAWS // 20 : -1]
        under.append(np.count_nonzero([_tail(null, float(its)) < 0.01 for its in farthest]))
    assert np.mean(under) / DRAWS == pytest.approx(0.0095, abs=0.0015)


def test_changed_images_are_told_by_p_values_less_than_draws_can_be_counted_to(
    fitted: Discrepancy,
) -> None:
    clean_p_value, clean = fitted.compare(components(400, 9))
    p_value, distance = fitted.compare(components(400, 9) + np.array([1.0, *[0.0] * 7]))
    assert p_value < 1e-6 < 0.01 < clean_p_value
    assert distance > 2 * clean


def test_of_a_window_as_many_are_compared_as_there_is_a_null_for(fitted: Discrepancy) -> None:
    window = components(399, 9)
    assert fitted.sizes.tolist() == [10, 20, 50, 100, 200, 400]
    only_200 = replace(fitted, sizes=fitted.sizes[4:5], null=fitted.null[4:5])
    assert fitted.compare(window) == only_200.compare(window)
    with pytest.raises(ValueError, match="9 images; at least 10 can be compared"):
        fitted.compare(window[:9])


def test_what_is_kept_gives_the_very_same_p_value_as_what_is_drawn_anew(
    fitted: Discrepancy, tmp_path
) -> None:
    path = tmp_path / "kept.safetensors"
    save_arrays(path, fitted.to_arrays())
    assert path.stat().st_size < 60_000
    kept = Discrepancy.from_arrays(load_file(path))
    drawn = Discrepancy.fit(components(IMAGES, 0))
    assert kept.null.shape == (6, DRAWS)
    assert kept.directions.shape == (8, FEATURES)
    for count in (10, 57, 1_000):
        window = components(count, count)
        assert kept.compare(window) == drawn.compare(window)


def test_it_is_of_one_reference_alone(fitted: Discrepancy) -> None:
    reference = components(IMAGES, 0)
    assert fitted.is_of(reference)
    assert not fitted.is_of(components(IMAGES, 1))
    assert not fitted.is_of(reference[:-1])
    assert not fitted.is_of(reference[::-1])
    assert not fitted.is_of(reference[:, :-1])
    moved = reference.copy()
    moved[7, 3] += 1e-3
    assert not fitted.is_of(moved)


def test_one_with_numbers_of_images_that_are_not_todays_is_drawn_anew(
    fitted: Discrepancy,
) -> None:
    fewer = replace(fitted, sizes=fitted.sizes[1:], null=fitted.null[1:])
    assert not fewer.is_of(components(IMAGES, 0))


@pytest.mark.parametrize("images", [1, 2, 20])
def test_a_tiny_reference_is_no_trouble(images: int) -> None:
    its = Discrepancy.fit(components(images, 0))
    assert its.sizes.tolist() == null_sizes(images)
    assert 0 <= its.compare(components(10, 1))[0] <= 1


def test_components_that_never_vary_are_no_evidence_until_they_do() -> None:
    its = Discrepancy.fit(np.zeros((500, 8)))
    assert its.compare(np.zeros((100, 8)))[0] == 1
    assert its.compare(np.ones((100, 8)))[0] == 0


BAD = {
    "it lacks mean, null": lambda its: {
        name: array for name, array in its.items() if name not in ("mean", "null")
    },
    r"location is float32 \(8,\); valid is float64 \(8,\)": lambda its: (
        its | {"location": its["location"].astype(np.float32)}
    ),
    r"directions is float32 \(7, 256\); valid is float32 \(8, 256\)": lambda its: (
        its | {"directions": its["directions"][1:]}
    ),
    r"null is float32 \(3, 500\); valid is float32 \(6, 500\)": lambda its: (
        its | {"null": its["null"][:3]}
    ),
    r"digest is uint8 \(16,\)": lambda its: its | {"digest": its["digest"][:16]},
    "phases has values that are no numbers": lambda its: its | {"phases": its["phases"] * np.nan},
    "scale is to be above 0": lambda its: its | {"scale": 0 * its["scale"]},
    "null holds distances, and some are below 0": lambda its: its | {"null": -its["null"]},
    r"sizes are to be numbers of images that rise: \[400": lambda its: (
        its | {"sizes": its["sizes"][::-1]}
    ),
    "are not to be empty": lambda its: its | {"null": np.float32(1)},
}


@pytest.mark.parametrize("said", BAD)
def test_arrays_that_are_none_such_are_refused_by_name(fitted: Discrepancy, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Discrepancy.from_arrays(BAD[said](fitted.to_arrays()))


def reference_of(bundle, sampler: Sampler) -> np.ndarray:
    return components_of(reference_records(bundle, sampler))


def test_a_bundle_keeps_that_of_its_reference_as_the_usual_sampler_leaves_it(
    store, watched, monkeypatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_SAMPLE_NEAR_BITS", "20")  # of the process that packs it
    bundle = store.load(store.find(watched(discrepancy=True)))
    usual = reference_of(bundle, usual_sampler())
    kept = load_discrepancy(bundle, usual)
    assert kept is not None
    assert kept.images[0] == len(usual) == 500
    others = reference_of(bundle, new_sampler(MonitoringSettings()))
    assert len(others) < 500
    assert load_discrepancy(bundle, others) is None


def test_an_older_bundle_keeps_none(store, watched) -> None:
    bundle = store.load(store.find(watched()))
    assert DISCREPANCY not in bundle.manifest.files
    assert load_discrepancy(bundle, reference_of(bundle, usual_sampler())) is None


def test_a_damaged_file_is_named_with_the_way_out(store, watched) -> None:
    bundle = store.load(store.find(watched(discrepancy={"mean": np.zeros(3)})))
    path, reference = bundle.path(DISCREPANCY), reference_of(bundle, usual_sampler())
    with pytest.raises(BundleError, match=r"y\.safetensors cannot be used: it lacks .*train again"):
        load_discrepancy(bundle, reference)
    path.write_bytes(b"torn")
    with pytest.raises(BundleError, match=r"y\.safetensors cannot be used"):
        load_discrepancy(bundle, reference)
    path.unlink()
    with pytest.raises(BundleError, match=r"y\.safetensors cannot be used"):
        load_discrepancy(bundle, reference)
