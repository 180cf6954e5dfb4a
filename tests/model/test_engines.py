"""One contract for every engine."""

from __future__ import annotations

import numpy as np
import pytest

from model.decision import probabilities
from model.engines import Engine, load_engine
from model.errors import EngineError
from model.settings import ModelSettings
from model.store import ModelStore

ENGINES = ("openvino", "torch")


@pytest.fixture(scope="module")
def bundle(trained):
    store = ModelStore(ModelSettings(home=trained.path))
    return store.load(store.find(trained.tag))


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, bundle) -> Engine:
    return load_engine(request.param, bundle)


@pytest.fixture(scope="module")
def images(garment_images):
    return np.repeat(garment_images["images"][:33, :, :, None], 3, axis=3)


def chances(bundle, outputs):
    return probabilities(outputs.logits, bundle.manifest.calibration, bundle.manifest.task)


def test_outputs_have_the_stated_shapes_and_type(engine, bundle, images):
    logits, embedding = engine.run(images[:5])
    assert logits.shape == (5, len(bundle.manifest.classes))
    assert embedding.shape == (5, bundle.manifest.embedding_size)
    assert logits.dtype == embedding.dtype == np.float32


def test_outputs_are_copies(engine, images):
    first = engine.run(images[:2])
    kept = first.logits.copy()
    engine.run(images[2:4])
    assert np.array_equal(first.logits, kept)


def test_probabilities_do_not_depend_on_the_batch(engine, bundle, images):
    together = chances(bundle, engine.run(images))
    for size in (1, 2, 5, 8, 32):
        part = chances(bundle, engine.run(np.ascontiguousarray(images[:size])))
        assert np.abs(part - together[:size]).max() < 0.005


def test_images_may_be_read_only(engine, images):
    """As memory-mapped ones are; torch warns about those, and warnings are errors."""
    frozen = images[:2].copy()
    frozen.flags.writeable = False
    assert np.array_equal(engine.run(frozen).logits, engine.run(images[:2]).logits)


def test_weights_that_do_not_fit_are_refused_by_torch(bundle):
    from model.engines.torch_engine import TorchEngine

    spec = bundle.manifest.input
    with pytest.raises(EngineError, match=r"network.safetensors does not fit"):
        TorchEngine(bundle.directory, "small-resnet", 3, spec, threads=0, precision="f32")


def test_engines_agree(bundle, images):
    first, second = (chances(bundle, load_engine(name, bundle).run(images)) for name in ENGINES)
    assert np.mean(first.argmax(axis=1) == second.argmax(axis=1)) > 0.95
    assert np.abs(first - second).max() < 0.1


def test_an_engine_whose_gate_failed_is_refused(bundle):
    gates = bundle.manifest.engines
    failed = {**gates, "openvino": gates["openvino"].model_copy(update={"passed": False})}
    manifest = bundle.manifest.model_copy(update={"engines": failed})
    with pytest.raises(EngineError, match="did not pass the gate of the engine 'openvino'"):
        load_engine("openvino", type(bundle)(bundle.directory, manifest, bundle.manifest_sha256))


def test_an_unknown_engine_or_precision_is_refused(bundle):
    with pytest.raises(EngineError, match="abacus"):
        load_engine("abacus", bundle, precision="f32")
    with pytest.raises(EngineError, match="int3"):
        load_engine("torch", bundle, precision="int3")
