"""One contract for every outlier score, and agreement with pytorch-ood, written by others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN, EnergyBased, Mahalanobis, MaxSoftmax, ViM
from scipy.stats import spearmanr

from monitoring.outlier import DETECTORS, NEIGHBOURS, OutlierModel
from training.baseline_detectors import ENERGY, MAHALANOBIS, MSP, fit_baselines
from training.outlier_choice import auroc

SIZE, INSIDE, CLASSES = 32, 12, 5
Images = tuple[np.ndarray, np.ndarray]  # embedding, logits
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


class World:
    """Five clusters about an origin that the head reads as no class; foreign images lie off them.

    The mean of the embedding lies in what the head reads, so that both ways to find the origin, the
    mean and the head's own bias, give the same one.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        plane = np.linalg.qr(random.normal(size=(SIZE, INSIDE)))[0].T
        centres = random.normal(size=(CLASSES, INSIDE)) * 3
        self.targets = np.arange(600) % CLASSES
        noise = 0.3 * random.normal(size=(600, SIZE))
        inside = centres[self.targets] + random.normal(size=(600, INSIDE))
        embedding = inside @ plane + noise
        reads = (centres - centres.mean(axis=0)) @ plane / 3  # C x D
        toward = embedding.mean(axis=0)
        shift = np.linalg.pinv(reads) @ reads @ toward - toward
        self._shift, self._plane, self._centres = shift, plane, centres
        self.weight = reads
        self.bias = -reads @ toward
        self.fit = self._seen(embedding)
        fresh = centres[random.integers(0, CLASSES, 300)] + random.normal(size=(300, INSIDE))
        self.domestic = self._seen(fresh @ plane + 0.3 * random.normal(size=(300, SIZE)))
        away = toward + 1.5 * random.normal(size=(1, SIZE))
        self.foreign = self._seen(away + 0.5 * random.normal(size=(300, SIZE)))

    def _seen(self, embedding: np.ndarray) -> Images:
        shifted = (embedding + self._shift).astype(np.float32)
        return shifted, (shifted @ self.weight.T + self.bias).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def scores(world: World) -> dict[str, Score]:
    """Every score there is, by name."""
    fitted = OutlierModel.fit(*world.fit)

    def by(detector: str) -> Score:
        model = fitted.with_detector(detector)
        return lambda embedding, logits: model.score(embedding, logits)[0]

    return {name: by(name) for name in DETECTORS} | fit_baselines(*world.fit, world.targets)


every_score = pytest.mark.parametrize("name", [*DETECTORS, MSP, ENERGY, MAHALANOBIS])


@every_score
def test_foreign_images_score_higher(name: str, scores: dict[str, Score], world: World) -> None:
    assert auroc(scores[name](*world.foreign), scores[name](*world.domestic)) > 0.85


@every_score
def test_a_score_is_one_number_an_image_whatever_its_neighbours(
    name: str, scores: dict[str, Score], world: World
) -> None:
    embedding, logits = world.domestic
    together = scores[name](embedding, logits)
    assert together.shape == (300,)
    assert together.dtype == np.float32
    alone = [scores[name](embedding[row : row + 1], logits[row : row + 1])[0] for row in range(9)]
    assert alone == pytest.approx(together[:9], rel=1e-3, abs=1e-3)
    assert scores[name](embedding[:0], logits[:0]).shape == (0,)


@every_score
def test_values_that_overflow_elsewhere_stay_numbers(
    name: str, scores: dict[str, Score], world: World
) -> None:
    embedding, logits = world.domestic
    assert np.isfinite(scores[name](embedding * 100, logits * 1000)).all()


@pytest.mark.parametrize("name", [MSP, ENERGY, MAHALANOBIS])
def test_a_baseline_of_several_labels_finds_what_has_none(name: str) -> None:
    random = np.random.default_rng(1)
    targets = (random.random((400, 3)) < 0.5).astype(np.int64)
    targets[:, 0] |= ~targets.any(axis=1)

    def seen(labels: np.ndarray) -> Images:
        embedding = labels @ np.eye(3, 8) * 4 + random.normal(size=(len(labels), 8))
        return embedding.astype(np.float32), ((embedding[:, :3] - 2) * 3).astype(np.float32)

    score = fit_baselines(*seen(targets), targets)[name]
    foreign = seen(np.zeros((100, 3)))[0] - 3 * np.eye(8)[-1]
    strange = (foreign.astype(np.float32), ((foreign[:, :3] - 2) * 3).astype(np.float32))
    assert auroc(score(*strange), score(*seen(targets))) > 0.9


def test_mahalanobis_leaves_images_of_no_class_out(world: World) -> None:
    embedding, logits = world.fit
    with_others = np.concatenate([embedding, embedding[:50] + 100])
    targets = np.concatenate([world.targets, np.full(50, -1)])
    more = fit_baselines(with_others, np.concatenate([logits, logits[:50]]), targets)[MAHALANOBIS]
    once = fit_baselines(embedding, logits, world.targets)[MAHALANOBIS]
    assert more(*world.domestic) == pytest.approx(once(*world.domestic))


# pytorch-ood as the oracle


def as_tensors(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(images[0]), torch.from_numpy(images[1])


def orders_alike(ours: np.ndarray, theirs: torch.Tensor) -> float:
    return float(spearmanr(ours, theirs.numpy()).statistic)


@pytest.mark.parametrize("kind", ["domestic", "foreign"])
def test_msp_and_energy_are_those_of_pytorch_ood(
    kind: str, scores: dict[str, Score], world: World
) -> None:
    images = getattr(world, kind)
    logits = as_tensors(images)[1]
    msp, energy = (scores[name](*images) for name in (MSP, ENERGY))
    assert msp == pytest.approx(MaxSoftmax(None).predict_logits(logits).numpy(), abs=1e-5)
    assert energy == pytest.approx(EnergyBased(None).predict_logits(logits).numpy(), abs=1e-4)


@pytest.mark.parametrize("kind", ["domestic", "foreign"])
def test_mahalanobis_orders_images_as_pytorch_ood(
    kind: str, scores: dict[str, Score], world: World
) -> None:
    theirs = Mahalanobis(None).fit_features(as_tensors(world.fit)[0], torch.tensor(world.targets))
    images = getattr(world, kind)
    found = theirs.predict_features(as_tensors(images)[0])
    assert orders_alike(scores[MAHALANOBIS](*images), found) > 0.999


@pytest.mark.parametrize("kind", ["domestic", "foreign"])
def test_vim_is_that_of_pytorch_ood(kind: str, scores: dict[str, Score], world: World) -> None:
    weight, bias = (torch.tensor(its, dtype=torch.float32) for its in (world.weight, world.bias))
    theirs = ViM(None, d=SIZE // 2, w=weight, b=bias)
    theirs.fit_features(as_tensors(world.fit)[0], torch.tensor(world.targets))
    images = getattr(world, kind)
    found = theirs.predict_features(as_tensors(images)[0])
    assert orders_alike(scores["ViM"](*images), found) > 0.999


@pytest.mark.parametrize("kind", ["domestic", "foreign"])
def test_knn_orders_images_as_pytorch_ood(
    kind: str, scores: dict[str, Score], world: World
) -> None:
    """Ours centres the embedding first, so theirs is given centred ones."""
    centre = world.fit[0].mean(axis=0)
    theirs = KNN(None, k=NEIGHBOURS)
    fit = torch.from_numpy(world.fit[0] - centre)
    theirs.fit_features(fit, torch.tensor(world.targets))
    images = getattr(world, kind)
    found = theirs.predict_features(torch.from_numpy(images[0] - centre))
    assert orders_alike(scores["KNN"](*images), found) > 0.999
