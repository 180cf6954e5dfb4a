"""The parts of the outlier score are as published, and its p-value keeps its promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from monitoring import outlier
from monitoring.outlier import (
    CHUNK_ROWS,
    ENERGY_OR_RESIDUAL,
    KNN_AND_RESIDUAL,
    KNN_AND_VIM,
    NEIGHBOURS,
    RECORD_COMPONENTS,
    OutlierModel,
    _kth_largest,
)

SIZE, CLASSES = 48, 5


class World:
    """Images as five clusters in a low-dimensional subspace, with a linear head."""

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.size = size
        self.plane = self.random.normal(size=(12, size)) / np.sqrt(size)
        self.centres = 4 * self.random.normal(size=(CLASSES, 12))

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Embedding and logits of in-domain images."""
        kind = self.random.integers(0, CLASSES, count)
        inside = self.centres[kind] + self.random.normal(size=(count, 12))
        noise = 0.1 * self.random.normal(size=(count, self.size))
        return self.head(1 + inside @ self.plane + noise)

    def draw_foreign(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """A cluster of its own, off the subspace."""
        centre = 1 + self.random.normal(size=self.size)
        return self.head(centre + 0.1 * self.random.normal(size=(count, self.size)))

    def head(self, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = (embedding - 1) @ np.linalg.pinv(self.plane) @ self.centres.T / 4
        return embedding.astype(np.float32), logits.astype(np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def fitted(world):
    return OutlierModel.fit(*world.draw(900), bank_limit=400)


@pytest.fixture(scope="module")
def calibrated(world, fitted):
    return fitted.calibrated(fitted.score(*world.draw(499))[0])


def auroc(inside: np.ndarray, foreign: np.ndarray) -> float:
    return float((foreign[:, None] > inside[None, :]).mean())


# The score, against its definition written out once more


def test_the_parts_agree_with_a_straightforward_implementation(world):
    embedding, logits = world.draw(300)
    model = OutlierModel.fit(embedding, logits)
    new, new_logits = world.draw(40)

    centre = embedding.astype(np.float64).mean(axis=0)
    centred = (embedding - centre).astype(np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=True)  # by falling variance

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows - centre) / np.linalg.norm(rows - centre, axis=1, keepdims=True)

    cosine = np.sort(unit(new) @ unit(embedding).T, axis=1)
    knn = 1 - cosine[:, -NEIGHBOURS]

    outside = directions[SIZE // 2 :]

    def residual(rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm((rows - centre) @ outside.T, axis=1)

    scale = logits.max(axis=1).mean() / residual(embedding).mean()
    vim = scale * residual(new) - np.log(np.exp(new_logits.astype(np.float64)).sum(axis=1))

    parts, components = model._parts(new, new_logits)
    assert parts[:, 0] / model.scale[0] == pytest.approx(knn / model.scale[0], abs=0.01)
    assert parts[:, 1] / model.scale[1] == pytest.approx(vim / model.scale[1], abs=0.01)
    expected = (new - centre) @ directions.T
    assert np.abs(components) == pytest.approx(np.abs(expected), abs=1e-2)


def test_the_score_is_the_sum_of_robust_z_values_or_the_largest(world, fitted):
    embedding, logits = world.draw(50)
    parts, _ = fitted._parts(embedding, logits)
    z = (parts - fitted.location) / fitted.scale
    knn, vim, residual, energy = z.T
    for detector, expected in [
        (KNN_AND_VIM, knn + vim),
        ("KNN", knn),
        ("ViM", vim),
        (ENERGY_OR_RESIDUAL, np.maximum(energy, residual)),
        (KNN_AND_RESIDUAL, knn + residual),
        ("residual", residual),
    ]:
        found = fitted.with_detector(detector).score(embedding, logits)[0]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_scores_of_images_that_nothing_was_fitted_on_lie_about_zero(world):
    """A subspace leaves little of the few images that it was fitted on outside."""
    few, validation, new = world.draw(80), world.draw(200), world.draw(500)
    by_validation = OutlierModel.fit(*few, detector="residual", scaled_on=validation)
    by_itself = OutlierModel.fit(*few, detector="residual")
    assert np.median(by_validation.score(*new)[0]) == pytest.approx(0, abs=0.3)
    assert np.median(by_itself.score(*new)[0]) > 1
    with_too_few = OutlierModel.fit(*few, scaled_on=tuple(part[:19] for part in validation))
    assert (with_too_few.location == by_itself.location).all()


def test_energy_or_residual_finds_what_a_head_that_is_sure_hides_from_vim(world, fitted):
    """Images off the subspace of which the head is three times as sure as of its own."""
    (inside, logits), off = world.draw(300), np.random.default_rng(1).normal(size=(300, SIZE))
    unseen = off - off @ np.linalg.pinv(world.plane) @ world.plane
    foreign = (inside + 0.15 * unseen).astype(np.float32), 3 * logits

    def told_apart(detector: str) -> float:
        model = fitted.with_detector(detector)
        return auroc(model.score(inside, logits)[0], model.score(*foreign)[0])

    assert told_apart("ViM") < 0.5
    assert told_apart(ENERGY_OR_RESIDUAL) > 0.95


def test_a_model_of_a_bundle_of_schema_1_scores_as_it_did():
    """Bundle and scores are of the first version of Plumbline."""
    bundle = Path(__file__).parents[1] / "model" / "schema_1"
    model = OutlierModel.from_arrays(load_file(bundle / "outlier.safetensors"))
    random = np.random.default_rng(0)
    noise = random.standard_normal((3, 240)) * np.array([[0.01], [1], [5]])
    embedding = (model.center + noise).astype(np.float32)
    scores = model.score(embedding, random.standard_normal((3, 3)).astype(np.float32))[0]
    assert scores == pytest.approx([14.0175, 360.687, 1339.96], rel=1e-5)


def test_a_model_from_before_residual_and_energy_scores_as_it_did(world, fitted):
    arrays = fitted.to_arrays()
    old = {name: arrays[name] for name in arrays if name != "largest"}
    old |= {name: arrays[name][:2] for name in ("location", "scale", "weights")}
    embedding, logits = world.draw(50)
    found = OutlierModel.from_arrays(old).score(embedding, logits)[0]
    assert found == pytest.approx(fitted.score(embedding, logits)[0], rel=1e-5, abs=1e-5)


def test_location_and_scale_are_median_and_robust_deviation_outside_the_bank(world):
    embedding, logits = world.draw(900)
    model = OutlierModel.fit(embedding, logits, seed=3, bank_limit=400)
    outside = np.random.default_rng(3).permutation(900)[400:800]
    parts, _ = model._parts(embedding[outside], logits[outside])
    median = np.median(parts, axis=0)
    assert model.location == pytest.approx(median, abs=1e-5)
    deviation = 1.4826 * np.median(np.abs(parts - median), axis=0)
    assert model.scale == pytest.approx(deviation, rel=1e-4)


def test_a_bank_image_is_not_its_own_neighbour_when_the_scale_is_found(world):
    """Else the KNN part of every new image would look foreign beside that of the bank."""
    embedding, logits = world.draw(100)
    model = OutlierModel.fit(embedding, logits)
    centred = embedding - embedding.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    knn = 1 - np.sort(similarity, axis=1)[:, -NEIGHBOURS]
    assert model.location[0] == pytest.approx(np.median(knn), rel=1e-3)


def test_a_foreign_cluster_is_told_apart_by_each_part_and_by_the_score(world, fitted):
    inside, foreign = world.draw(300), world.draw_foreign(300)
    assert auroc(fitted.score(*inside)[0], fitted.score(*foreign)[0]) > 0.99
    own, others = fitted._parts(*inside)[0], fitted._parts(*foreign)[0]
    for part in (0, 1):
        assert auroc(own[:, part], others[:, part]) > 0.95


def test_neighbours_in_the_batch_do_not_change_a_score(world, fitted):
    embedding, logits = world.draw(33)
    together, components = fitted.score(embedding, logits)
    for row in range(33):
        alone, own = fitted.score(embedding[row : row + 1], logits[row : row + 1])
        assert alone[0] == pytest.approx(together[row], abs=1e-3)
        assert own[0] == pytest.approx(components[row], abs=1e-3)


def test_many_rows_meet_the_bank_in_chunks(world, fitted, monkeypatch):
    seen = []
    real = outlier._coordinates

    def spy(embedding, *rest):
        seen.append(len(embedding))
        return real(embedding, *rest)

    monkeypatch.setattr(outlier, "_coordinates", spy)
    embedding, logits = world.draw(2 * CHUNK_ROWS + 3)
    scores, components = fitted.score(embedding, logits)
    assert seen == [CHUNK_ROWS, CHUNK_ROWS, 3]
    for chosen in (slice(0, 5), slice(CHUNK_ROWS - 2, CHUNK_ROWS + 2), slice(-3, None)):
        alone, own = fitted.score(embedding[chosen], logits[chosen])
        assert scores[chosen] == pytest.approx(alone, abs=1e-3)
        assert components[chosen] == pytest.approx(own, abs=1e-3)


def test_no_rows_have_no_scores(world, fitted):
    scores, components = fitted.score(*(part[:0] for part in world.draw(1)))
    assert scores.shape == (0,)
    assert len(components) == 0


@pytest.mark.parametrize(("rows", "size"), [(900, 48), (80, 200)], ids=["many", "few"])
def test_the_components_are_the_32_of_greatest_variance(rows, size):
    world = World(size)
    model = OutlierModel.fit(*world.draw(rows))
    embedding, logits = world.draw(500)
    _, components = model.score(embedding, logits)
    assert components.shape == (500, RECORD_COMPONENTS)
    variance = components.var(axis=0)
    assert variance[:4].min() > variance[12:].max()
    assert variance.sum() > 0.9 * embedding.var(axis=0).sum()


@pytest.mark.parametrize(("rows", "size"), [(25, 1280), (20, 4), (40, 16)])
def test_small_data_works_and_still_finds_what_is_foreign(rows, size):
    world = World(size)
    model = OutlierModel.fit(*world.draw(rows))
    scores, components = model.score(*world.draw(50))
    foreign = model.score(*world.draw_foreign(50))[0]
    assert np.isfinite(scores).all()
    assert np.isfinite(foreign).all()
    assert components.shape[1] <= min(RECORD_COMPONENTS, size)
    if size > 12:
        assert auroc(scores, foreign) > 0.8


def test_images_that_are_all_alike_give_finite_scores():
    flat = np.ones((30, 16), np.float32)
    logits = np.ones((30, 3), np.float32)
    model = OutlierModel.fit(flat, logits)
    assert np.isfinite(model.score(flat, logits)[0]).all()


def test_too_few_images_are_refused_with_both_numbers(world):
    with pytest.raises(ValueError, match="at least 20 fit images, 19 were given"):
        OutlierModel.fit(*world.draw(19))


def test_the_same_data_and_seed_give_the_same_model():
    embedding, logits = World().draw(300)
    one, other = (
        OutlierModel.fit(embedding, logits, seed=7, bank_limit=100).to_arrays() for _ in range(2)
    )
    assert all((one[name] == other[name]).all() for name in one)


def test_the_bank_keeps_within_its_limit(world):
    model = OutlierModel.fit(*world.draw(300), bank_limit=64)
    assert model.bank.shape[1] == 64
    assert np.linalg.norm(model.bank, axis=0).max() <= 1 + 1e-5


# The p-value


def with_scores(*scores: float) -> OutlierModel:
    nothing = np.zeros(0, np.float32)
    arrays = dict.fromkeys(OutlierModel.__dataclass_fields__, nothing)
    return OutlierModel.from_arrays(arrays).calibrated(np.array(scores, np.float32))


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, 5 / 5),
        (1.0, 5 / 5),
        (1.5, 4 / 5),
        (2.0, 4 / 5),
        (3.0, 2 / 5),
        (3.1, 1 / 5),
        (9, 1 / 5),
    ],
)
def test_the_p_value_counts_calibration_scores_at_or_above_ties_included(score, expected):
    model = with_scores(3.0, 1.0, 2.0, 2.0)
    assert model.p_value(np.array([score], np.float32))[0] == expected


@given(
    calibration=st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    scores=st.lists(st.integers(-6, 6), min_size=1, max_size=20),
)
def test_the_p_value_is_its_formula(calibration, scores):
    found = with_scores(*calibration).p_value(np.array(scores, np.float32))
    count = len(calibration)
    expected = [(1 + sum(kept >= score for kept in calibration)) / (count + 1) for score in scores]
    assert found.tolist() == expected


@pytest.mark.parametrize("count", [19, 99, 999])
def test_the_smallest_p_value_reaches_the_alpha_that_is_promised(count):
    """Rounded to float32, 1 / 20 would lie above 0.05 and nothing would ever be flagged."""
    model = with_scores(*range(count))
    alpha = {19: 0.05, 99: 0.01, 999: 0.001}[count]
    assert model.p_value(np.array([1e6], np.float32))[0] <= alpha
    assert model.smallest_alpha == alpha


def test_without_calibration_there_is_no_p_value(fitted):
    with pytest.raises(ValueError, match=r"calibrated\(\)"):
        fitted.p_value(np.zeros(1, np.float32))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_the_share_of_clean_images_that_are_flagged_is_near_alpha(alpha, world, fitted):
    """Over 20 calibration splits of 499 images, 500 new images each."""
    rates = []
    for _ in range(20):
        model = fitted.calibrated(fitted.score(*world.draw(499))[0])
        p_values = model.p_value(model.score(*world.draw(500))[0])
        rates.append((p_values <= alpha).mean())
    assert np.mean(rates) == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 20 / 499) + 0.003)


def test_foreign_images_are_flagged(world, calibrated):
    p_values = calibrated.p_value(calibrated.score(*world.draw_foreign(200))[0])
    assert (p_values <= 0.01).mean() > 0.9


# On disk


def test_a_model_comes_back_from_safetensors_as_it_was(world, calibrated, tmp_path):
    save_file(calibrated.to_arrays() | {"more": np.zeros(1)}, tmp_path / "outlier.safetensors")
    back = OutlierModel.from_arrays(load_file(tmp_path / "outlier.safetensors"))
    embedding, logits = world.draw(30)
    for one, other in zip(
        calibrated.score(embedding, logits), back.score(embedding, logits), strict=True
    ):
        assert (one == other).all()
    scores = calibrated.score(embedding, logits)[0]
    assert (back.p_value(scores) == calibrated.p_value(scores)).all()
    assert back.smallest_alpha == 1 / 500


@pytest.mark.parametrize("count", [10, 11, 40, 97, 500, 1234, 5000])
def test_the_kth_largest_is_exact(count):
    values = np.random.default_rng(0).normal(size=(6, count)).astype(np.float32).round(1)  # ties
    for k in (1, 2, 10):
        assert np.array_equal(_kth_largest(values, k), np.sort(values, axis=1)[:, -k])
