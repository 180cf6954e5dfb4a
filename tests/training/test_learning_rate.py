"""The learning-rate finder: its readings, and that it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.errors import TrainingError
from tests.training.test_checkpoint import trainer
from training.learning_rate import (
    Sweep,
    find_learning_rate,
    minimum,
    steep,
    valley,
)

RATES = np.logspace(-7, 1, 100)


def basin(low: float = 1e-3, high: float = 1.0) -> np.ndarray:
    """A loss that is flat, falls from `low`, and shoots up from `high`."""
    position = np.log10(RATES)
    falling = np.clip(position - np.log10(low), 0, None) * 0.5
    rising = np.clip(position - np.log10(high), 0, None) * 4
    return 2.3 + 1e-4 * np.arange(100) - falling + rising


def test_training_after_a_sweep_equals_training_without_it() -> None:
    expected = trainer().fit()
    swept = trainer()
    before = {name: its.clone() for name, its in swept.network.state_dict().items()}
    random = torch.get_rng_state()
    sweep = find_learning_rate(swept, steps=30)
    assert len(sweep.rates) > 10
    assert torch.get_rng_state().equal(random)
    for name, tensor in swept.network.state_dict().items():
        assert tensor.equal(before[name]), name
    history = swept.fit()
    assert history.losses == expected.losses
    assert [one.validation_loss for one in history.epochs] == [
        one.validation_loss for one in expected.epochs
    ]


def test_a_sweep_stops_when_the_loss_explodes() -> None:
    sweep = find_learning_rate(trainer(), highest=1e4, steps=60)
    assert len(sweep.rates) < 60
    assert sweep.losses[-1] <= 4 * sweep.losses.min()


@pytest.mark.parametrize("steps", [0, 20, 22])
def test_a_sweep_too_short_to_read_is_an_error_that_says_what_to_do(steps: int) -> None:
    with pytest.raises(TrainingError, match=f"after {steps} steps.*--lowest"):
        Sweep(RATES[:steps], basin()[:steps]).suggest()


def test_the_shortest_sweep_that_is_read_gives_all_four() -> None:
    suggestions = Sweep(RATES[:23], basin()[:23]).suggest()
    assert all(0 < rate <= RATES[22] for rate in vars(suggestions).values())


def test_a_sweep_learns_at_good_rates_and_suggests_one_of_them() -> None:
    sweep = find_learning_rate(trainer(), steps=100)
    assert sweep.losses.min() < 0.8 * sweep.losses[0]
    suggestions = sweep.suggest()
    assert 1e-5 < suggestions.valley < sweep.rates[sweep.losses.argmin()]


def test_suggestions_lie_on_the_slope() -> None:
    losses = basin()
    assert 1e-3 < valley(RATES, losses) < 1.0
    assert minimum(RATES, losses) == pytest.approx(0.1, rel=0.25)
    assert 1e-3 <= steep(RATES, losses) <= 1.0
    assert 1e-3 < Sweep(RATES, losses).suggest().slide < 3.0


def test_a_curve_of_few_steps_suggests_nothing() -> None:
    with pytest.raises(TrainingError, match="exploded after 9 steps"):
        Sweep(RATES[:9], basin()[:9]).suggest()
