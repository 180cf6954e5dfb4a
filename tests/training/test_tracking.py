"""What a tracked run holds, read back as TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.fine_tuning import LinearHead
from training.loop import Arrays, Trainer
from training.settings import TrainingSettings
from training.tracking import TensorBoard, run_folder

XOR = Arrays(np.eye(4, dtype=np.float32), np.array([0, 1, 1, 0]))


def train(tracker: TensorBoard) -> Trainer:
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
    events = read(tmp_path / "linear head")
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
