"""Two processes train as one does: same losses, same metrics, one version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.errors import SettingsError
from model.network import create_network, default_input_spec
from training.distributed import WholeBatchNorm, share_batch_norm
from training.loop import Arrays, Trainer
from training.settings import TrainingSettings
from training.world import World, local_device, training_together

SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=16,
    learning_rate=0.02,
    precision="fp32",
    device="cpu",
    flip=True,
    shift_share=0.1,
    accumulate_batches=2,
    average_decay=0.9,
    clip_gradient_norm=1.0,
)


def stripes(count: int = 71) -> Arrays:
    """Odd, so that the processes' shares of validation differ in length."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, count)
    row, column = np.mgrid[:28, :28]
    pattern = np.stack([row, column])[targets] // 4 % 2 * 150
    images = pattern + random.integers(0, 99, (count, 28, 28))
    return Arrays(np.repeat(images[..., None], 3, axis=3).astype(np.uint8), targets)


def course(settings: TrainingSettings) -> dict[str, Any]:
    """What a training by the present processes comes to."""
    with training_together(settings.device):
        network = create_network("small-resnet", 2, default_input_spec("small-resnet"), seed=0)
        data = stripes()
        history = Trainer(network, data, data, settings, "single").fit()
    return {
        "losses": history.losses,
        "validation": [epoch.validation_loss for epoch in history.epochs],
        "metric": history.metric,
        "running_mean": network.body.stem[1].running_mean.tolist(),  # type: ignore[union-attr, index]
        "layers": sorted({type(module).__name__ for module in network.modules()}),
    }


def torchrun(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Two processes of `python ARGUMENTS`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nproc-per-node", "2"),
            *map(str, arguments),
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def course_of_two(tmp_path: Path, settings: TrainingSettings) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    program = tmp_path / "course.py"
    program.write_text(
        "import json, os, sys; from pathlib import Path\n"
        "from test_distributed import TrainingSettings, course\n"
        "found = course(TrainingSettings(**json.loads(sys.argv[1])))\n"
        "Path(os.environ['RANK'] + '.json').write_text(json.dumps(found))\n"
    )
    done = torchrun(program, json.dumps(settings.as_dict()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["moving", "frozen"])
def test_two_processes_give_the_losses_and_metrics_of_one(tmp_path: Path, batch_norm: str) -> None:
    settings = replace(SETTINGS, freeze_batch_norm=batch_norm == "frozen")
    expected = course(settings)
    for found in course_of_two(tmp_path, settings):
        assert found["losses"] == pytest.approx(expected["losses"], rel=2e-3)
        assert found["validation"] == pytest.approx(expected["validation"], rel=5e-3)
        assert found["metric"] == expected["metric"]
        assert found["running_mean"] == pytest.approx(expected["running_mean"], rel=1e-3)
        assert found["layers"] == expected["layers"]  # nothing of the wrapping stays


@pytest.mark.slow
def test_torchrun_makes_one_version_with_the_metrics_of_one_process(
    garments: Path, tmp_path: Path, run_plumbline: Any
) -> None:
    command = ("train", "--data", str(garments), "--name", "garments", "--epochs", "1")
    # At the usual rate thirty steps blow the last bits of a sum up to a hundredth of accuracy.
    rate = ("--learning-rate", "0.02")
    options = ("--batch-size", "128", "--precision", "fp32", *rate, "--json")
    alone = json.loads(run_plumbline(*command, *options, home=tmp_path / "one").stdout)
    home = tmp_path / "two"
    done = torchrun(
        *("-m", "plumbline", *command, *options), cwd=tmp_path, PLUMBLINE_HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    together = json.loads(done.stdout)  # one process speaks
    assert together["metrics"]["accuracy"] == pytest.approx(alone["metrics"]["accuracy"], abs=0.01)
    assert len(list((home / "runs" / "garments").iterdir())) == 1


def test_processes_that_cannot_share_a_batch_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stripes()
    network = create_network("small-resnet", 2, default_input_spec("small-resnet"), seed=0)
    trainer = Trainer(network, data, data, replace(SETTINGS, batch_size=2), "single")
    trainer.world = World(rank=0, size=3)
    with pytest.raises(SettingsError, match=r"3 processes cannot share batches of 2 images"):
        _ = trainer.batch_size


def test_batches_are_dealt_evenly_whatever_their_size() -> None:
    data = stripes()
    network = create_network("small-resnet", 2, default_input_spec("small-resnet"), seed=0)
    trainers = []
    for rank in range(3):
        trainer = Trainer(network, data, data, SETTINGS, "single")
        trainer.world = World(rank, 3)
        trainers.append(trainer)
    sizes = {len(targets) for one in trainers for _, targets in one.batches(1)}
    assert sizes == {5}  # of batches of 15, the multiple of 3 below 16


def test_batch_norm_over_one_process_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 3, 5, 5) * 3 + 1
    plain = nn.Sequential(nn.BatchNorm2d(3))
    shared = nn.Sequential(nn.BatchNorm2d(3))
    (replaced,) = share_batch_norm(shared)
    assert replaced[:2] == (shared, "0")
    assert isinstance(shared[0], WholeBatchNorm)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    try:
        one, two = (features.clone().requires_grad_() for _ in range(2))
        expected, found = plain(one), shared(two)
        (expected.square() * torch.arange(5)).sum().backward()
        (found.square() * torch.arange(5)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(two.grad, one.grad)
    for name, buffer in plain[0].named_buffers():
        torch.testing.assert_close(dict(replaced[2].named_buffers())[name], buffer)


def test_batch_norm_that_does_more_is_left_alone_on_a_cpu() -> None:
    from timm.layers import BatchNormAct2d

    network = nn.Sequential(BatchNormAct2d(3))
    share_batch_norm(network)
    assert type(network[0]) is BatchNormAct2d


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("tpu", "valid are auto, cpu, cuda, or cuda:N"),
        ("cuda:x", "valid are auto, cpu, cuda, or cuda:N"),
        ("cuda:99", "PyTorch sees"),
    ],
)
def test_a_device_that_is_not_there_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        local_device(wanted)
    assert local_device("cpu") == torch.device("cpu")
