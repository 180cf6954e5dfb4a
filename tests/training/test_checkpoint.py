"""Checkpoints: a training that was killed goes on to the losses of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import TrainingError
from model.network import create_network, default_input_spec
from training.callbacks import Callback
from training.checkpoint import Checkpoint, epochs_in
from training.loop import Arrays, Trainer
from training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    epochs=4,
    batch_size=16,
    precision="fp32",
    device="cpu",
    flip=True,
    average_decay=0.9,
    clip_gradient_norm=1.0,
    deterministic=True,
)
KEY = "a training"


def stripes(count: int = 64) -> Arrays:
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, count)
    row, column = np.mgrid[:28, :28]
    images = np.stack([row, column])[targets] // 4 % 2 * 150 + random.integers(
        0, 99, (count, 28, 28)
    )
    return Arrays(np.repeat(images[..., None], 3, axis=3).astype(np.uint8), targets)


def trainer(*callbacks: Callback, settings: TrainingSettings = SETTINGS) -> Trainer:
    network = create_network("small-resnet", 2, default_input_spec("small-resnet"), seed=0)
    data = stripes()
    return Trainer(network, data, data, settings, "single", callbacks=callbacks)


class KilledError(Exception):
    """Stands for whatever ends a training."""


class EndAfter(Callback):
    """Breaks a training off in the middle of an epoch."""

    order = 99

    def __init__(self, step: int) -> None:
        self.step = step

    def after_batch(self, trainer: Trainer) -> None:
        if trainer.step_number == self.step:
            raise KilledError


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_training_gives_the_losses_and_weights_of_an_uninterrupted_one(
    tmp_path: Path, optimizer: str
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer, learning_rate=0.01)
    whole = trainer(settings=settings)
    expected = whole.fit()
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        trainer(Checkpoint(path, KEY), EndAfter(9), settings=settings).fit()
    assert epochs_in(path, KEY) == 2

    resumed = trainer(Checkpoint(path, KEY, resume=True), settings=settings)
    history = resumed.fit()

    assert history.losses == expected.losses
    assert history.learning_rates == expected.learning_rates
    for ours, theirs in zip(history.epochs, expected.epochs, strict=True):
        assert ours.validation_loss == theirs.validation_loss
        assert ours.validation_metric == theirs.validation_metric
    for name, tensor in whole.network.state_dict().items():
        assert tensor.equal(resumed.network.state_dict()[name]), name


@pytest.mark.slow
def test_a_training_killed_by_the_system_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from test_checkpoint import KEY, Checkpoint, Callback, trainer\n"
        "class Kill(Callback):\n"
        "    order = 99\n"
        "    def after_batch(self, trainer):\n"
        "        if trainer.step_number == 13: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer(Checkpoint(Path(sys.argv[1]), KEY), Kill()).fit()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert epochs_in(path, KEY) == 3
    said: list[str] = []
    resumed = trainer(Checkpoint(path, KEY, resume=True, say=said.append)).fit()
    assert said == ["resumed after epoch 3 of 4"]
    assert resumed.losses == pytest.approx(trainer().fit().losses, rel=1e-5)


def test_without_resume_a_training_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        trainer(Checkpoint(path, KEY), EndAfter(9)).fit()
    assert len(trainer(Checkpoint(path, KEY)).fit().losses) == 16
    assert epochs_in(path, KEY) == 4


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    trainer(Checkpoint(path, KEY)).fit()
    assert epochs_in(path, "another") == 0
    with pytest.raises(TrainingError, match="other data, network or settings"):
        trainer(Checkpoint(path, "another", resume=True)).fit()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"torn")
    assert epochs_in(path, KEY) == 0
    with pytest.raises(TrainingError, match="cannot be read"):
        trainer(Checkpoint(path, KEY, resume=True)).fit()


def test_a_checkpoint_that_cannot_be_written_is_told_once_and_training_goes_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    said: list[str] = []
    history = trainer(Checkpoint(tmp_path / "file" / "here", KEY, say=said.append)).fit()
    assert len(history.epochs) == 4
    assert len(said) == 1
    assert "training goes on" in said[0]


def test_the_checkpoint_before_a_bad_loss_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"

    class Spoil(Callback):
        order = 99

        def after_epoch(self, trainer: Trainer) -> None:
            if len(trainer.history.epochs) == 2:
                for parameter in trainer.network.parameters():
                    parameter.data.fill_(float("nan"))

    with pytest.raises(TrainingError, match="the loss is nan at step 8"):
        trainer(Checkpoint(path, KEY), Spoil()).fit()
    assert epochs_in(path, KEY) == 2
