"""Precision by the clock: how many steps are timed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from model.network import create_network, default_input_spec
from training import precision
from training.loop import Arrays, Trainer
from training.precision import PRECISIONS, fastest_precision
from training.settings import TrainingSettings


@pytest.fixture
def trainer() -> Trainer:
    random = np.random.default_rng(0)
    data = Arrays(random.integers(0, 256, (8, 28, 28, 3), np.uint8), random.integers(0, 2, 8))
    network = create_network("small-resnet", 2, default_input_spec("small-resnet"), seed=0)
    return Trainer(network, data, data, TrainingSettings(batch_size=8, device="cpu"), "single")


def count_steps(trainer: Trainer) -> list[int]:
    """Grows by one with every step that is timed."""
    steps: list[int] = []
    loss = trainer.loss_function

    def counted(*given: Any) -> Any:
        steps.append(1)
        return loss(*given)

    trainer.loss_function = counted
    return steps


def test_a_precision_far_slower_than_the_best_is_timed_by_one_step(trainer: Trainer) -> None:
    steps = count_steps(trainer)
    batch = trainer.to_device(trainer.fit_split, trainer.rows)
    precision._step_seconds(trainer, PRECISIONS[0], *batch, best=1e-9)
    assert len(steps) == 1
    precision._step_seconds(trainer, PRECISIONS[0], *batch, best=math.inf)
    assert len(steps) == 1 + 4


def test_the_fastest_is_taken_and_leaves_the_network_as_it_was(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    times = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(precision, "_step_seconds", lambda *given: next(times))
    assert fastest_precision(trainer) is PRECISIONS[1]


@pytest.mark.parametrize(("has_bf16", "numbers"), [(True, {"fp32", "bf16"}), (False, {"fp32"})])
def test_bf16_is_not_timed_where_the_processor_would_emulate_it(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, numbers: set[str]
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: has_bf16)
    timed = []
    monkeypatch.setattr(
        precision, "_step_seconds", lambda its, one, *given: float(len(timed.append(one) or timed))
    )
    fastest_precision(trainer)
    assert {one.name.split()[0] for one in timed} == numbers
