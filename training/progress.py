"""The progress bar of training: epoch, loss, metric, rate and time left."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from training.callbacks import Callback
from training.loop import Trainer

_SMOOTHING = 0.95  # of the loss that is shown


class ProgressBar(Callback):
    """Shows one bar per training on a terminal, a line per epoch elsewhere.

    Quiet where `enabled` is False (`--json`).
    Writes to stderr, so that what a command prints to stdout can be read by a program.
    """

    order = 90

    def __init__(self, title: str, *, enabled: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.enabled = enabled
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.title = title
        self._loss = math.nan
        self._metric = ""

    def before_fit(self, trainer: Trainer) -> None:
        """Open the bar."""
        self._loss, self._metric = math.nan, ""
        self._bar = self.progress.add_task(self.title, total=trainer.total_steps, state="")
        self.progress.start()

    def after_batch(self, trainer: Trainer) -> None:
        """Advance by one step."""
        loss = trainer.history.losses[-1]
        first = math.isnan(self._loss)
        self._loss = loss if first else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        done = trainer.step_number + 1  # more than steps seen, where a training was resumed
        self.progress.update(self._bar, completed=done, state=self._state(trainer))

    def after_epoch(self, trainer: Trainer) -> None:
        """Show the new validation metric."""
        last = trainer.history.epochs[-1]
        self._metric = f" {trainer.history.metric_name} {last.validation_metric:.4f}"
        self.progress.update(self._bar, state=self._state(trainer))
        if self.enabled and not self.console.is_terminal:
            self.console.print(f"{self.title}: {self._state(trainer)}, {last.seconds:.0f} s")

    def after_fit(self, trainer: Trainer) -> None:
        """Close the bar, also after an error."""
        self.progress.stop()

    def _state(self, trainer: Trainer) -> str:
        epoch = 1 + (trainer.step_number - 1) // trainer.steps_per_epoch
        rate = trainer.history.learning_rates[-1]
        return (
            f"epoch {max(epoch, 1)}/{trainer.settings.epochs} loss {self._loss:.3f}{self._metric}"
            f" rate {rate:.1e}"
        )
