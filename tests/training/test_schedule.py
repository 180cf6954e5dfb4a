"""The schedule against PyTorch's own, and its shape in words."""

import pytest
import torch

from training.schedule import discriminative_rates, one_cycle, one_cycle_momentum

STEPS, PEAK, WARMUP = 200, 0.2, 0.25


def torch_schedule() -> tuple[list[float], list[float]]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, STEPS, pct_start=WARMUP, base_momentum=0.85, max_momentum=0.95
    )
    rates, momenta = [], []
    for step in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < STEPS - 1:
            schedule.step()
    return rates, momenta


def test_same_as_torch_at_every_step() -> None:
    rates, momenta = torch_schedule()
    ours = [one_cycle(step, STEPS, PEAK, warmup_share=WARMUP) for step in range(STEPS)]
    momentum = [one_cycle_momentum(step, STEPS, warmup_share=WARMUP) for step in range(STEPS)]
    assert ours == pytest.approx(rates, rel=1e-6)
    assert momentum == pytest.approx(momenta, rel=1e-6)


@pytest.mark.parametrize("total", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_short_trainings_stay_between_zero_and_peak(total: int, warmup: float) -> None:
    rates = [one_cycle(step, total, PEAK, warmup_share=warmup) for step in range(total)]
    assert all(0 < rate <= PEAK for rate in rates)


def test_discriminative_rates_multiply_evenly_from_low_to_high() -> None:
    rates = discriminative_rates(1e-5, 1e-2, 4)
    assert rates == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    assert discriminative_rates(1e-5, 1e-2, 1) == [1e-2]
