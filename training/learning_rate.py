"""The learning-rate finder: loss along exponentially rising rates, and four suggestions.

Smith 2015, "Cyclical Learning Rates"; fastai book, chapter 5. Unlike there, the search leaves
no trace: weights, optimizer, random state and order of the data come back as they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import TrainingError
from model.network import Network
from training.charts import Chart, Series, stand_alone
from training.loop import Trainer, memory_error

LOWEST_RATE, HIGHEST_RATE = 1e-7, 10.0
STEPS = 100
_STOP_FACTOR = 4.0  # times the best loss: it will not come back
_SMOOTHING = 0.98
_SKIPPED_SHARE, _SKIPPED_LAST = 10, 5  # of the curve: the first tenth, and where it explodes
_SLIDE_WIDTH, _SLIDE_SLOPE = 15, 0.005
_LEAST_STEPS = 23  # to suggest anything from: what is kept of them is wider than a slide

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Suggestions:
    """Four readings of one curve; `valley` is the one to start with."""

    valley: float  # halfway down the longest slope
    slide: float  # before the loss begins to shoot up
    minimum: float  # a tenth of the rate of the least loss
    steep: float  # where the loss falls fastest


@dataclass(frozen=True)
class Sweep:
    """Learning rates and the smoothed loss at each, N; shorter where the loss exploded."""

    rates: Floats
    losses: Floats

    def suggest(self) -> Suggestions:
        """Raises `TrainingError` where the loss exploded before there was a curve."""
        if len(self.rates) < _LEAST_STEPS:
            where = f", at rate {self.rates[-1]:.1e}" if len(self.rates) else ""
            raise TrainingError(
                f"the loss exploded after {len(self.rates)} steps{where}; {_LEAST_STEPS} are"
                " needed: sweep from a lower rate with --lowest"
            )
        kept = slice(len(self.rates) // _SKIPPED_SHARE, -_SKIPPED_LAST)
        rates, losses = self.rates[kept], self.losses[kept]
        return Suggestions(
            valley=valley(rates, losses),
            slide=slide(rates, losses),
            minimum=minimum(rates, losses),
            steep=steep(rates, losses),
        )


def find_learning_rate(
    trainer: Trainer,
    *,
    lowest: float = LOWEST_RATE,
    highest: float = HIGHEST_RATE,
    steps: int = STEPS,
) -> Sweep:
    """Train `steps` batches at exponentially rising rates, then put everything back.

    Layer groups keep the ratios of their peak rates; the rates reported are those of the last
    group, the head. Callbacks take part that say so by `in_sweep`. Raises `TrainingError` when
    memory is out.
    """
    with memory_error(trainer), _untouched(trainer):
        return _sweep(trainer, lowest, highest, steps)


def picture(sweep: Sweep, suggestions: Suggestions) -> str:
    """The curve with its suggestions, as an SVG drawing of its own."""
    marks = [(math.log10(rate), f"{name} {rate:.1e}") for name, rate in asdict(suggestions).items()]
    chart = Chart(
        title="Loss along rising learning rates",
        x_label="learning rate, power of ten",
        y_label="loss, smoothed",
        series=[Series("loss", np.log10(sweep.rates), sweep.losses)],
        y_range=(0.9 * float(sweep.losses.min()), 1.2 * float(sweep.losses[0])),
        marks=marks,
    )
    return stand_alone(chart)


def _sweep(trainer: Trainer, lowest: float, highest: float, steps: int) -> Sweep:
    callbacks = [callback for callback in trainer.callbacks if callback.in_sweep]
    trainer.callbacks = callbacks
    trainer.notify("before_fit")
    trainer.network.train()
    trainer.notify("before_epoch")
    head_peak = trainer.optimizer.param_groups[-1]["peak"]
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, batch in zip(range(steps), _endless(trainer), strict=False):
        trainer.images, trainer.targets = batch
        rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate * group["peak"] / head_peak
        trainer.step_number, trainer.accumulated_batches = step, 1
        trainer.notify("before_batch")
        trainer.predict()
        trainer.get_loss()
        average = _SMOOTHING * average + (1 - _SMOOTHING) * trainer.loss.item()
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > _STOP_FACTOR * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        trainer.backward()
        trainer.step()
        trainer.zero_grad()
    return Sweep(np.array(rates), np.array(losses))


def _endless(trainer: Trainer) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 1
    while True:
        yield from trainer.batches(epoch)
        epoch += 1


@contextmanager
def _untouched(trainer: Trainer) -> Iterator[None]:
    """Afterwards weights, optimizer, precision, callbacks and random state are as before."""
    network = copy.deepcopy(trainer.network.state_dict())
    modes = [(module, module.training) for module in trainer.network.modules()]
    optimizer = copy.deepcopy(trainer.optimizer.state_dict())
    names = ("callbacks", "precision", "scaler", "accumulated_batches", "step_number")
    kept = {name: getattr(trainer, name) for name in names}
    precision_name = trainer.history.precision
    memory_format = getattr(trainer.network, "memory_format", None)
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(trainer.settings.seed)
            yield
    finally:
        trainer.zero_grad()
        if isinstance(trainer.network, Network) and memory_format is not None:
            trainer.network.use_memory_format(memory_format)
        trainer.network.load_state_dict(network)
        for module, training in modes:
            module.training = training
        trainer.optimizer.load_state_dict(optimizer)
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer.history.precision = precision_name


def valley(rates: Floats, losses: Floats) -> float:
    """Halfway along the longest falling stretch of the curve (fastai's default)."""
    # Longest decreasing subsequence ending at each point, quadratic: 100 points.
    length = np.ones(len(losses), int)
    for end in range(1, len(losses)):
        before = length[:end][losses[:end] > losses[end]]
        length[end] = 1 + before.max(initial=0)
    last = int(length.argmax())
    first = max(0, last - int(length[last]))
    third = (last - first) / 3
    return float(rates[first + int(third) + int(third / 2)])


def slide(rates: Floats, losses: Floats) -> float:
    """Where, seen from the end, the slope stops changing: before the loss begins to rise."""
    slope = np.gradient(losses)
    for right in range(len(losses) - 1, _SLIDE_WIDTH - 1, -1):
        left = right - _SLIDE_WIDTH
        if abs(slope[right] - slope[left]) <= _SLIDE_SLOPE:
            break
    return float(rates[left])


def minimum(rates: Floats, losses: Floats) -> float:
    """A tenth of the rate of the least loss."""
    return float(rates[losses.argmin()] / 10)


def steep(rates: Floats, losses: Floats) -> float:
    """Where the loss falls fastest per factor of the rate."""
    return float(rates[(np.diff(losses) / np.diff(np.log(rates))).argmin()])
