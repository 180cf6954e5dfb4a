"""Runs on record as they go: losses, rates and metrics, then the version that was registered.

TensorBoard by default; MLflow as an extra. Tracking never stops a training: what cannot be written
is told once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from model.errors import SettingsError
from model.network import Network
from training.callbacks import Callback
from training.loop import Trainer
from training.request import TrackerName

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

Say = Callable[[str], None]

_BATCH_OF_METRICS = 500  # that MLflow is sent at once; it takes 1,000


class Tracker(Callback, ABC):
    """Writes every training that it takes part in; each of the linear head is a run of its own."""

    order = 80
    shown_by: str  # the command that shows the runs

    @abstractmethod
    def registered(self, version: str, split: str, metrics: Mapping[str, float]) -> None:
        """Write what came of it: the version, and its metrics on test (or validation)."""


class TensorBoard(Tracker):
    """Runs as event files below `folder`."""

    def __init__(self, folder: Path, say: Say = lambda message: None) -> None:
        self.folder, self.say = folder, say
        # Runs of all models lie together: home/runs/NAME/TIME.
        self.shown_by = f"tensorboard --logdir {folder.parent.parent}"
        self._writer: SummaryWriter | None = None
        self._failed = False

    def before_fit(self, trainer: Trainer) -> None:
        """Open a run."""
        self._open(_run_name(trainer))
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
        """A run of its own."""
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


class MLflow(Tracker):
    """Runs of an experiment named after the model, in SQLite or on a tracking server.

    Steps are sent after every epoch, so that a slow server does not slow the loop down. Raises
    `SettingsError` where the package is missing or the server does not answer at the start.
    """

    def __init__(self, uri: str, experiment: str, say: Say = lambda message: None) -> None:
        self.say = say
        self.uri = uri.rpartition("@")[2]  # without a password, for messages
        local = uri.startswith("sqlite:")
        self.shown_by = f"mlflow ui --backend-store-uri {uri}" if local else self.uri
        self._client = _mlflow_client(uri)
        self._experiment = self._experiment_id(experiment)
        self._run: Run | None = None
        self._sent = 0  # steps of the open run
        self._failed = False

    def before_fit(self, trainer: Trainer) -> None:
        """Open a run, with the settings as its parameters."""
        from mlflow.entities import Param

        self._open(_run_name(trainer))
        settings = trainer.settings.as_dict().items()
        parameters = [Param(name, str(value)) for name, value in settings]
        self._log(params=parameters)
        self._sent = trainer.step_number

    def after_epoch(self, trainer: Trainer) -> None:
        """Loss and rate of every step since the last epoch, and validation."""
        history, last = trainer.history, trainer.history.epochs[-1]
        metrics = []
        for step in range(self._sent, trainer.step_number):
            metrics.append(("fit_loss", history.losses[step], step))
            metrics.append(("head_learning_rate", history.learning_rates[step], step))
        self._sent = trainer.step_number
        name = history.metric_name.replace(" ", "_")
        metrics += [
            ("validation_loss", last.validation_loss, self._sent),
            (f"validation_{name}", last.validation_metric, self._sent),
            ("epoch_seconds", last.seconds, self._sent),
        ]
        self._metrics(metrics)

    def after_fit(self, trainer: Trainer) -> None:
        """Close the run, also after an error."""
        whole = len(trainer.history.epochs) == trainer.settings.epochs
        self._close("FINISHED" if whole else "FAILED")

    def registered(self, version: str, split: str, metrics: Mapping[str, float]) -> None:
        """A run of its own, with the version as a tag."""
        from mlflow.entities import RunTag

        self._open("registered")
        self._log(tags=[RunTag("version", version)])
        self._metrics([(f"{split}_{name}", value, 0) for name, value in metrics.items()])
        self._close("FINISHED")

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_experiment_by_name(name)
            return str(found.experiment_id if found else self._client.create_experiment(name))
        except (MlflowException, OSError) as error:
            raise SettingsError(
                f"MLflow at {self.uri} does not answer: {_first_line(error)}; mend"
                " MLFLOW_TRACKING_URI, or train with --track tensorboard"
            ) from error

    def _open(self, name: str) -> None:
        self._try(lambda: self._client.create_run(self._experiment, run_name=name), keep=True)

    def _metrics(self, values: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in values]
        for start in range(0, len(metrics), _BATCH_OF_METRICS):
            self._log(metrics=metrics[start : start + _BATCH_OF_METRICS])

    def _log(self, **what: Any) -> None:
        if self._run is not None:
            run = self._run.info.run_id
            self._try(lambda: self._client.log_batch(run, **what))

    def _close(self, status: str) -> None:
        if self._run is not None:
            run = self._run.info.run_id
            self._try(lambda: self._client.set_terminated(run, status))
        self._run = None

    def _try(self, call: Callable[[], Any], *, keep: bool = False) -> None:
        from mlflow.exceptions import MlflowException

        try:
            result = call()
        except (MlflowException, OSError) as error:
            if not self._failed:
                told = _first_line(error)
                self.say(f"the run cannot be tracked at {self.uri}: {told}; training goes on")
            self._failed, self._run = True, None
            return
        if keep:
            self._run = result


def open_tracker(name: TrackerName, home: Path, model: str, say: Say) -> Tracker | None:
    """The tracker of one training of `model`; None where none is wanted."""
    if name == "tensorboard":
        return TensorBoard(run_folder(home, model), say)
    if name == "mlflow":
        default = f"sqlite:///{(home / 'mlflow.db').absolute()}"
        return MLflow(os.environ.get("MLFLOW_TRACKING_URI", default), model, say)
    return None


def run_folder(home: Path, name: str) -> Path:
    """Where a run of the model `name` that starts now is tracked: home/runs/NAME/TIME."""
    return home / "runs" / name / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def _run_name(trainer: Trainer) -> str:
    if isinstance(trainer.network, Network):
        return "all layers"
    # It is fitted with several, and each is a run of its own.
    return f"linear head, weight decay {trainer.settings.weight_decay:g}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _mlflow_client(uri: str) -> MlflowClient:
    if importlib.util.find_spec("mlflow") is None:
        raise SettingsError(
            "--track mlflow needs the package mlflow-skinny (or mlflow), which is not installed;"
            " install it with: pip install 'plumbline[mlflow]'"
        )
    # It phones home otherwise, and tries for minutes to reach a server that is not there.
    for variable, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
    ):
        os.environ.setdefault(variable, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)
