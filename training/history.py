"""The course of one training, for the report and for resuming."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch brought."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    validation_metric: float
    seconds: float


@dataclass
class TrainingHistory:
    """The course of a training, for the report. Losses and rates are per step."""

    metric_name: str  # accuracy, or mean average precision
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    precision: str = "fp32"

    @property
    def metric(self) -> float:
        """Validation metric after the last epoch."""
        return self.epochs[-1].validation_metric
