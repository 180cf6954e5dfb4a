"""The torch engine beyond the contract of all engines: its weights, its precision, its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.bundle import NETWORK
from model.engines import torch_engine
from model.engines.cuda_graphs import FixedBatches, record_plainly, sizes_up_to
from model.engines.torch_engine import TorchEngine, cast_weights_once
from model.errors import EngineError, EngineLostError
from model.network import create_network, default_input_spec, weights_of

SIZE = 64
# With padding of its own, with layer norms, and with neither.
ARCHITECTURES = ["tf_efficientnet_lite0", "convnext_atto", "resnet18"]


@pytest.fixture
def make_engine(tmp_path):
    """`make_engine("resnet18", precision="bf16")`: with weights drawn by chance."""

    def make(architecture: str, **options) -> TorchEngine:
        spec = default_input_spec(architecture).model_copy(update={"size": SIZE})
        network = create_network(architecture, 3, spec)
        save_file(weights_of(network), tmp_path / NETWORK)
        return TorchEngine(tmp_path, architecture, 3, spec, threads=0, **options)

    return make


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_cast_once_give_what_autocast_gives_to_the_last_bit(architecture, images):
    spec = default_input_spec(architecture).model_copy(update={"size": SIZE})
    network = create_network(architecture, 3, spec).eval()

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return [output.float() for output in network(torch.from_numpy(images))]

    expected = run()
    cast_weights_once(network, torch.bfloat16)
    assert all(torch.equal(*pair) for pair in zip(run(), expected, strict=True))
    kinds = {
        type(module): module.weight.dtype
        for module in network.modules()
        if getattr(module, "weight", None) is not None
    }
    assert kinds.pop(nn.Conv2d) == kinds.pop(nn.Linear) == torch.bfloat16
    assert set(kinds.values()) == {torch.float32}  # norms above all


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_fixed_batches_of_the_network_give_what_it_gives_itself(make_engine, images, precision):
    """All of the way through a GPU, but the capture."""
    engine = make_engine("resnet18", precision=precision)
    shape = (SIZE, SIZE, 3)
    batches = FixedBatches(engine.forward, shape, sizes_up_to(4), record=record_plainly)
    given, expected = batches.run(images), engine.run(images)
    for one, other in zip(given, expected, strict=True):
        assert np.abs(one - other).max() <= 0.02 * np.abs(other).max()


# Of a GPU that refuses


def failing(error: RuntimeError):
    class Failing(nn.Module):
        def forward(self, images):
            raise error

    return Failing()


def test_want_of_memory_names_the_batch_the_memory_and_the_settings(
    make_engine, images, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 80 * 2**30))
    engine = make_engine("resnet18", precision="f32")
    engine.network = failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(
        EngineError,
        match=r"batch of 5 images: 1.0 of 80.0 GiB are free; .*PLUMBLINE_WORKERS.*BATCH_IMAGES",
    ):
        engine.run(images)


def test_what_torch_cannot_compute_is_told_in_one_line(make_engine, images):
    engine = make_engine("resnet18", precision="f32")
    engine.network = failing(torch.AcceleratorError("no kernel image is available\nhints of torch"))
    with pytest.raises(EngineError, match="no kernel image is available; PLUMBLINE_ENGINE"):
        engine.run(images)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_gpu_that_answers_nothing_more_is_told_from_one_that_refused_a_batch(
    make_engine, images, is_lost, monkeypatch
):
    def synchronize():
        if is_lost:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = make_engine("resnet18", precision="f32")
    engine.network = failing(torch.AcceleratorError("an illegal memory access was encountered"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(EngineError) as told:
        engine.run(images)
    assert isinstance(told.value, EngineLostError) == is_lost


def test_a_gpu_that_would_emulate_bf16_runs_in_float32_unless_asked(monkeypatch):
    assert torch_engine.native_precisions() == {"f32", "bf16"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert torch_engine.native_precisions() == {"f32"}
