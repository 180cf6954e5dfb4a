"""Cross-fitting: every image calibrates, none by a model that saw it."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.outlier import KNN_AND_VIM, OutlierModel
from training.cross_fitting import can_cross_fit, cross_fitted_scores
from training.linear_head import fit_head
from training.refitted_head import HeadRecipe

CLASSES, WEIGHT_DECAY = 3, 1.0


def embeddings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in 40 dimensions, with their classes."""
    centers = np.random.default_rng(99).normal(0, 2, (CLASSES, 40))
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count)
    return (centers[targets] + random.normal(0, 1, (count, 40))).astype(np.float32), targets


def cross_fitted(embedding: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    return cross_fitted_scores(
        embedding,
        targets,
        scaled_on=embeddings(60, 500 + seed)[0],
        like=OutlierModel.fit(embedding, embedding[:, :CLASSES]),
        detector=KNN_AND_VIM,
        head=HeadRecipe(slice(None), CLASSES, "single", WEIGHT_DECAY, seed=seed),
    )


def test_only_too_few_images_are_cross_fitted_and_not_hardly_any() -> None:
    assert can_cross_fit(30, 120)
    assert not can_cross_fit(99, 1000)
    assert not can_cross_fit(5, 15)


def test_the_flag_rate_on_new_images_is_that_asked_for() -> None:
    """Calibrated on the images fitted on without folds, far more would be flagged."""
    flagged, naive = [], []
    for seed in range(4):
        fit, targets = embeddings(120, seed)
        new, _ = embeddings(2000, 1000 + seed)
        head = fit_head(
            *(fit, targets, fit, targets),
            class_count=CLASSES,
            task="single",
            weight_decay=WEIGHT_DECAY,
            seed=seed,
        )
        weight, bias = head.weight.numpy(), head.bias.numpy()
        validation = embeddings(60, 500 + seed)[0]
        model = OutlierModel.fit(
            *(fit, fit @ weight.T + bias), scaled_on=(validation, validation @ weight.T + bias)
        )
        new_scores = model.score(new, new @ weight.T + bias)[0]
        scores = cross_fitted(fit, targets, seed)
        flagged.append((model.calibrated(scores).p_value(new_scores) <= 0.05).mean())
        own = model.score(fit, fit @ weight.T + bias)[0]
        naive.append((model.calibrated(own).p_value(new_scores) <= 0.05).mean())
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.025)
    assert np.mean(naive) > 2 * np.mean(flagged)


def test_scores_stand_in_the_order_of_the_rows() -> None:
    fit, targets = embeddings(100, 0)
    fit[17] += 30  # far from everything
    scores = cross_fitted(fit, targets, 0)
    assert scores.argmax() == 17
