"""What a tracked run holds, read back as TensorBoard and MLflow read it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import venv
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.errors import SettingsError
from training.history import TrainingHistory
from training.linear_head import WEIGHT_DECAYS, LinearHead, choose_head
from training.loop import Arrays, Trainer
from training.settings import TrainingSettings
from training.tracking import MLflow, TensorBoard, Tracker, open_tracker, run_folder

XOR = Arrays(np.eye(4, dtype=np.float32), np.array([0, 1, 1, 0]))
RUN = f"linear head, weight decay {TrainingSettings().weight_decay:g}"


def train(tracker: Tracker) -> Trainer:
    settings = TrainingSettings(epochs=3, batch_size=2, precision="fp32", device="cpu")
    trainer = Trainer(LinearHead(4, 2), XOR, XOR, settings, "single", callbacks=[tracker])
    trainer.fit()
    return trainer


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_run_holds_every_step_every_epoch_and_the_settings(tmp_path: Path) -> None:
    history = train(TensorBoard(tmp_path)).history
    events = read(tmp_path / RUN)
    losses = events.Scalars("loss/fit")
    assert [event.step for event in losses] == [0, 1, 2, 3, 4, 5]
    assert [event.value for event in losses] == pytest.approx(history.losses)
    validated = events.Scalars("loss/validation")
    assert [event.step for event in validated] == [2, 4, 6]
    assert [event.value for event in events.Scalars("validation/accuracy")] == pytest.approx(
        [epoch.validation_metric for epoch in history.epochs]
    )
    assert (
        b'"batch_size": 2' in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    )


def test_what_was_registered_stands_beside_the_run(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    train(tracker)
    tracker.registered("shapes:20261124-12345678", "test", {"accuracy": 0.75})
    events = read(tmp_path / "registered")
    assert events.Scalars("test/accuracy")[0].value == 0.75
    version = events.Tensors("version/text_summary")[0].tensor_proto.string_val[0]
    assert version == b"shapes:20261124-12345678"


def test_the_training_command_tracks_its_run(trained: Any) -> None:
    (run,) = (trained.path / "runs").glob("*/*")
    assert read(run / "all layers").Scalars("loss/fit")
    registered = read(run / "registered")
    assert 0 < registered.Scalars("test/accuracy")[0].value <= 1
    version = registered.Tensors("version/text_summary")[0].tensor_proto.string_val[0]
    assert version.decode() == trained.tag


def test_a_folder_that_cannot_be_written_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file stands here")
    told: list[str] = []
    tracker = TensorBoard(run_folder(tmp_path, "shapes"), told.append)
    assert len(train(tracker).history.epochs) == 3
    train(tracker)
    assert len(told) == 1
    assert "training goes on" in told[0]


@pytest.fixture
def deprecated_parts_of_mlflow() -> Iterator[None]:
    """MLflow's own uses of SQLAlchemy and others warn; ours must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_each_fit_of_the_linear_head_is_a_run_of_its_own(tmp_path: Path) -> None:
    data = np.eye(4, dtype=np.float32), np.arange(4)
    choose_head(*data, *data, class_count=4, task="single", callbacks=[TensorBoard(tmp_path)])
    runs = [path.name for path in tmp_path.iterdir()]
    assert len(runs) > 1
    assert set(runs) <= {f"linear head, weight decay {decay:g}" for decay in WEIGHT_DECAYS}


@pytest.mark.usefixtures("deprecated_parts_of_mlflow")
def test_mlflow_holds_runs_in_sqlite_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = open_tracker("mlflow", tmp_path, "shapes", print)
    assert isinstance(tracker, MLflow)
    history = train(tracker).history
    tracker.registered("shapes:20261124-12345678", "test", {"accuracy": 0.75})
    check_mlflow_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", history)


@pytest.mark.slow
@pytest.mark.usefixtures("deprecated_parts_of_mlflow")
def test_mlflow_holds_runs_on_a_real_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        tracker = open_tracker("mlflow", tmp_path, "shapes", print)
        assert isinstance(tracker, MLflow)
        history = train(tracker).history
        tracker.registered("shapes:20261124-12345678", "test", {"accuracy": 0.75})
        check_mlflow_runs(uri, history)


@pytest.mark.usefixtures("deprecated_parts_of_mlflow")
def test_an_mlflow_server_that_is_not_there_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://name:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI") as raised:
        open_tracker("mlflow", tmp_path, "shapes", print)
    assert "secret" not in str(raised.value).partition(" does not answer")[0]


def check_mlflow_runs(uri: str, history: TrainingHistory) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shapes")
    assert experiment is not None
    runs = {
        run.info.run_name: run
        for run in client.search_runs([experiment.experiment_id], max_results=9)
    }
    assert set(runs) == {RUN, "registered"}
    training = runs[RUN]
    assert training.info.status == "FINISHED"
    assert training.data.params["batch_size"] == "2"
    losses = client.get_metric_history(training.info.run_id, "fit_loss")
    assert [metric.step for metric in losses] == [0, 1, 2, 3, 4, 5]
    assert [metric.value for metric in losses] == pytest.approx(history.losses)
    validated = client.get_metric_history(training.info.run_id, "validation_accuracy")
    assert [metric.step for metric in validated] == [2, 4, 6]
    assert runs["registered"].data.tags["version"] == "shapes:20261124-12345678"
    assert runs["registered"].data.metrics["test_accuracy"] == 0.75


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """`mlflow server`, in an environment of its own: it needs other versions than ours."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    server = f"mlflow=={version('mlflow-skinny')}"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, server], check=True
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its own workers too
        process.wait(30)


def wait_until_healthy(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{uri}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())
