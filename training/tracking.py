"""Runs on disk for TensorBoard: losses, rates and metrics as they come, then what was registered.

tensorboard --logdir var/runs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

from model.network import Network
from training.callbacks import Callback
from training.loop import Trainer

TrackerName = Literal["tensorboard", "none"]


class TensorBoard(Callback):
    """Writes every training that it takes part in below `folder`, the linear head's beside.

    Tracking never stops a training: where the folder cannot be written, `say` tells it once.
    """

    order = 80

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda message: None) -> None:
        self.folder, self.say = folder, say
        self._writer: SummaryWriter | None = None
        self._failed = False

    def before_fit(self, trainer: Trainer) -> None:
        """Open a run."""
        is_network = isinstance(trainer.network, Network)
        self._open("all layers" if is_network else "linear head")
        settings = json.dumps(trainer.settings.as_dict(), indent=1)
        self._write("add_text", "settings", f"```\n{settings}\n```", trainer.step_number)

    def after_batch(self, trainer: Trainer) -> None:
        """Loss and rate of one step."""
        history, step = trainer.history, trainer.step_number
        self._write("add_scalar", "loss/fit", history.losses[-1], step)
        self._write("add_scalar", "learning rate/head", history.learning_rates[-1], step)

    def after_epoch(self, trainer: Trainer) -> None:
        """Validation, at the step it was measured after."""
        epoch, step = trainer.history.epochs[-1], trainer.step_number
        name = trainer.history.metric_name
        self._write("add_scalar", "loss/validation", epoch.validation_loss, step)
        self._write("add_scalar", f"validation/{name}", epoch.validation_metric, step)
        self._write("add_scalar", "time/epoch_seconds", epoch.seconds, step)

    def after_fit(self, trainer: Trainer) -> None:
        """Close the run, also after an error."""
        self._close()

    def registered(self, version: str, split: str, metrics: Mapping[str, float]) -> None:
        """Write what came of it: the version, and its metrics on test (or validation)."""
        self._open("registered")
        self._write("add_text", "version", version, 0)
        for name, value in metrics.items():
            self._write("add_scalar", f"{split}/{name}", value, 0)
        self._close()

    def _open(self, run: str) -> None:
        self._close()
        try:
            self._writer = SummaryWriter(str(self.folder / run))
        except OSError as error:
            self._tell(error)

    def _write(self, method: str, *values: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*values)
        except OSError as error:
            self._tell(error)
            self._writer = None

    def _close(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._tell(error)
        self._writer = None

    def _tell(self, error: OSError) -> None:
        if not self._failed:
            self.say(f"the run cannot be tracked in {self.folder}: {error}; training goes on")
        self._failed = True


def run_folder(home: Path, name: str) -> Path:
    """Where a run of the model `name` that starts now is tracked: home/runs/NAME/TIME."""
    return home / "runs" / name / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
