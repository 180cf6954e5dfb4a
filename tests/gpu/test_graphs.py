"""The engine as a GPU runs it. Not run where the project is developed: there is no GPU."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.bundle import NETWORK
from model.engines.cuda_graphs import FixedBatches, record_plainly
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError
from model.network import create_network, default_input_spec, weights_of
from service.devices import visible_devices

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

SIZE = 64
ARCHITECTURES = ["resnet18", "tf_efficientnet_lite0", "convnext_atto"]
PRECISIONS = ["f32", "bf16"]


@pytest.fixture
def make_engine(tmp_path):
    """`make_engine("resnet18", "bf16", batch_images=8)`: as the service loads it."""

    def make(architecture: str, precision: str, **options) -> TorchEngine:
        spec = default_input_spec(architecture).model_copy(update={"size": SIZE})
        network = create_network(architecture, 10, spec)
        save_file(weights_of(network), tmp_path / NETWORK)
        given = {"threads": 1, "precision": precision, "serving": True} | options
        return TorchEngine(tmp_path, architecture, 10, spec, **given)

    return make


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)


def chances(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_size_is_captured_and_gives_what_the_network_gives(
    make_engine, images, architecture, precision, caplog
):
    engine = make_engine(architecture, precision, batch_images=16)
    assert "without CUDA graphs" not in caplog.text
    assert engine._batches.sizes == (1, 2, 4, 8, 16)
    plain = make_engine(architecture, precision, serving=False)
    for count in (1, 3, 16, 40):
        given, expected = engine.run(images[:count]), plain.run(images[:count])
        assert np.abs(chances(given.logits) - chances(expected.logits)).max() < 0.005
        largest = np.abs(expected.embedding).max()
        assert np.abs(given.embedding - expected.embedding).max() < 0.02 * largest


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neighbours_change_nothing_within_a_size_and_little_between_sizes(
    make_engine, images, architecture, precision
):
    engine = make_engine(architecture, precision, batch_images=16)
    alone = engine.run(images[:1])
    for neighbours in (images[1:16], images[16:31]):
        first = engine.run(np.concatenate([images[:1], neighbours]))
        again = engine.run(np.concatenate([images[:1], neighbours[::-1]]))
        assert np.array_equal(first.logits[0], again.logits[0])
        assert np.abs(chances(first.logits[:1]) - chances(alone.logits)).max() < 0.005


def test_float32_is_float32(make_engine, images):
    on_gpu = make_engine("resnet18", "f32", batch_images=4)
    spec = default_input_spec("resnet18").model_copy(update={"size": SIZE})
    network = create_network("resnet18", 10, spec).eval()
    with torch.inference_mode():
        expected, _ = network(torch.from_numpy(images[:4]))
    assert np.abs(on_gpu.run(images[:4]).logits - expected.numpy()).max() < 1e-4


def test_a_batch_beyond_all_memory_is_refused_with_what_mends_it(make_engine):
    with pytest.raises(EngineError, match=r"no memory for a batch of .*PLUMBLINE_BATCH_IMAGES"):
        make_engine("resnet18", "bf16", batch_images=2**27)  # 1.5 TiB of pixels


def test_a_network_that_waits_for_the_gpu_cannot_be_captured_and_runs_all_the_same(
    make_engine, images, caplog
):
    from model.engines.cuda_graphs import GraphRecorder

    def waits(given):
        sums = given.float().mean(dim=(1, 2))
        return sums * float(sums.max() > 0), sums  # asks the host in the middle of the pass

    stream = torch.cuda.Stream()
    shape = (SIZE, SIZE, 3)
    batches = FixedBatches(waits, shape, (1, 2), record=GraphRecorder(stream), stream=stream)
    assert "without CUDA graphs" in caplog.text
    expected = FixedBatches(waits, shape, (1, 2), record=record_plainly).run(images[:2])
    assert np.allclose(batches.run(images[:2]).logits, expected.logits, rtol=1e-4)


def test_a_model_is_made_ready_while_another_answers(make_engine, images):
    """As at a promotion: the old one is asked on, by another thread."""
    old = make_engine("resnet18", "bf16", batch_images=8)
    eager = make_engine("resnet18", "f32", serving=False)
    expected = old.run(images[:8]).logits
    stopping, wrong = threading.Event(), []

    def answer() -> None:
        while not stopping.is_set():
            try:
                eager.run(images[:5])
                if not np.array_equal(old.run(images[:8]).logits, expected):
                    wrong.append("other logits")
            except Exception as error:  # noqa: BLE001 (told)
                wrong.append(repr(error))
                return

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        new = make_engine("convnext_atto", "bf16", batch_images=16)
    finally:
        stopping.set()
        thread.join()
    assert wrong == []
    assert new.run(images[:3]).logits.shape == (3, 10)


def test_the_driver_shows_as_many_gpus_as_torch_sees():
    assert len(visible_devices()) == torch.cuda.device_count()
