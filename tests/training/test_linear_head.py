"""The simple model on frozen features: any scale of them, and no more than they can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.decision import Task
from training.linear_head import WEIGHT_DECAYS, choose_head, fit_head
from training.loss import metric


def test_fitted_head_takes_raw_features_of_any_scale() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 300)
    features = random.normal(size=(300, 5)).astype(np.float32)
    features[np.arange(300), targets] += 4
    features = features * np.array([1, 100, 0.01, 5, 1], np.float32) + 50
    head = choose_head(
        features[:200], targets[:200], features[200:], targets[200:], class_count=3, task="single"
    )
    logits = (torch.from_numpy(features[200:]) @ head.weight.T + head.bias).numpy()
    assert metric(logits, targets[200:], "single") == pytest.approx(head.history.metric, abs=0.02)
    assert head.history.metric > 0.9


def clouds(count: int, seed: int, *, width: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Features N x width of three classes, told apart by their first three columns."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, count)
    features = random.normal(size=(count, width))
    features[np.arange(count), targets] += distance
    return features.astype(np.float32), targets


def test_more_features_than_images_are_held_back_and_the_loss_is_less_for_it() -> None:
    data = *clouds(60, 0, width=200, distance=1.5), *clouds(400, 1, width=200, distance=1.5)
    chosen = choose_head(*data, class_count=3, task="single")
    weakest = fit_head(*data, class_count=3, task="single", weight_decay=WEIGHT_DECAYS[-1])
    assert chosen.weight_decay > WEIGHT_DECAYS[-1]
    assert chosen.loss < 0.9 * weakest.loss
    assert chosen.history.metric >= weakest.history.metric - 0.01


def test_few_features_of_many_images_are_hardly_held_back() -> None:
    data = *clouds(3_000, 0, width=3, distance=3), *clouds(400, 1, width=3, distance=3)
    chosen = choose_head(*data, class_count=3, task="single")
    strongest = fit_head(*data, class_count=3, task="single", weight_decay=WEIGHT_DECAYS[0])
    assert chosen.weight_decay < WEIGHT_DECAYS[0]
    assert chosen.loss < strongest.loss


@pytest.mark.parametrize("task", ["multi", "single"])
def test_rare_labels_are_as_rare_as_they_are_where_features_tell_nothing(task: Task) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 20)).astype(np.float32)
    targets = (np.arange(400) % 40 == 0).astype(np.int64)  # 10 of 400
    if task == "multi":
        targets = np.stack([targets, np.roll(targets, 1)], axis=1).astype(np.float32)
    head = fit_head(
        *(features, targets, features, targets),
        class_count=2,
        task=task,
        weight_decay=WEIGHT_DECAYS[0],
    )
    logits = torch.from_numpy(features) @ head.weight.T + head.bias
    chances = torch.sigmoid(logits) if task == "multi" else torch.softmax(logits, dim=1)
    assert chances[:, 1].mean().item() == pytest.approx(10 / 400, abs=0.01)
