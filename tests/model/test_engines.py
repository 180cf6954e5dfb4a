"""One contract for every engine in every precision."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from model.bundle import Bundle, EngineGate
from model.decision import probabilities
from model.engines import Engine, gated_precision, load_engine
from model.errors import EngineError
from model.settings import ModelSettings
from model.store import ModelStore
from training.export import write_int8

PRECISIONS = {"openvino": ("f32", "bf16", "int8"), "torch": ("f32", "bf16")}
ENGINES = [(name, precision) for name, its in PRECISIONS.items() for precision in its]


@pytest.fixture(scope="module")
def bundle(trained, images, tmp_path_factory) -> Bundle:
    """That of `trained` with an int8 graph; every precision is let pass, to be held to this."""
    store = ModelStore(ModelSettings(home=trained.path))
    bundle = store.load(store.find(trained.tag))
    directory = tmp_path_factory.mktemp("with-int8") / "bundle"
    shutil.copytree(bundle.directory, directory)
    write_int8(directory, images)
    gates = {f"{name}-{its}": gate(its) for name, its in ENGINES}
    return replace(with_gates(bundle, gates), directory=directory)


def gate(precision: str, images_per_second: float | None = 1.0, reason: str = "") -> EngineGate:
    return EngineGate(
        precision=precision,
        label_agreement=1.0,
        largest_probability_difference=0.0,
        accuracy=0.9,
        flagged_share=0.01,
        passed=not reason,
        images_per_second=images_per_second,
        reason=reason,
    )


def with_gates(bundle: Bundle, gates: dict[str, EngineGate], **changes) -> Bundle:
    changed = bundle.manifest.model_copy(update={"engines": gates, **changes})
    return replace(bundle, manifest=changed)


@pytest.fixture(scope="module", params=ENGINES, ids=["-".join(its) for its in ENGINES])
def engine(request, bundle) -> Engine:
    """As the service loads it, with graphs on a GPU; most batches below are larger than 16."""
    name, precision = request.param
    return load_engine(name, bundle, precision=precision, serving=True, batch_images=16)


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


def test_engines_agree(engine, bundle, images):
    exact = load_engine("torch", bundle, precision="f32")
    first, second = (chances(bundle, its.run(images)) for its in (exact, engine))
    assert np.mean(first.argmax(axis=1) == second.argmax(axis=1)) > 0.95
    assert np.abs(first - second).max() < 0.2


def test_the_engine_says_what_it_runs_in(engine, bundle):
    assert engine.precision in PRECISIONS[engine.name]


def test_the_int8_graph_computes_in_int8(bundle):
    from model.engines.openvino_silent import openvino

    graph = openvino.Core().read_model(bundle.path("network.int8.xml"))
    kinds = {node.get_element_type().get_type_name() for node in graph.get_ops()}
    assert "i8" in kinds  # of the weights
    sizes = (bundle.path(f"network{its}.bin").stat().st_size for its in (".int8", ""))
    assert next(sizes) < 0.4 * next(sizes)


def test_an_engine_whose_gate_failed_is_refused_with_the_reason(bundle):
    gates = {"openvino-bf16": gate("bf16", reason="it flags everything"), "torch-f32": gate("f32")}
    given = with_gates(bundle, gates)
    for precision in (None, "bf16"):
        with pytest.raises(
            EngineError, match=r"'openvino.*it flags everything.*passed for: torch-f32"
        ):
            load_engine("openvino", given, precision=precision)


def test_an_engine_that_could_not_be_measured_is_refused_with_the_reason(bundle):
    left_out = {"openvino-int8": "nncf cannot quantise the network"}
    given = with_gates(bundle, {"openvino-f32": gate("f32")}, engines_left_out=left_out)
    with pytest.raises(EngineError, match="nncf cannot quantise"):
        load_engine("openvino", given, precision="int8")
    with pytest.raises(EngineError, match="trained without --int8"):
        load_engine("openvino", with_gates(bundle, {"openvino-f32": gate("f32")}), precision="int8")


def test_the_fastest_that_passed_is_served_unless_the_processor_would_emulate_it(bundle):
    speeds = {"f32": 10.0, "bf16": 30.0, "int8": 20.0}
    gates = {f"openvino-{its}": gate(its, speed) for its, speed in speeds.items()}
    manifest = with_gates(bundle, gates).manifest
    assert gated_precision("openvino", manifest, None) == "bf16"
    assert gated_precision("openvino", manifest, None, {"f32", "int8"}) == "int8"
    assert gated_precision("openvino", manifest, "bf16", {"f32", "int8"}) == "bf16"
    fitted = manifest.model_copy(update={"decided_by": "openvino-f32"})
    assert gated_precision("openvino", fitted, None) == "f32"
    assert gated_precision("openvino", fitted, None, {"int8"}) == "int8"
    refused = {**gates, "openvino-bf16": gate("bf16", 30.0, reason="no")}
    assert gated_precision("openvino", with_gates(bundle, refused).manifest, None) == "int8"


def test_a_gpu_runs_in_bf16_whatever_was_the_faster_on_the_cpu_that_measured(bundle):
    gates = {"torch-f32": gate("f32", 30.0), "torch-bf16": gate("bf16", 10.0)}
    manifest = with_gates(bundle, gates).manifest
    assert gated_precision("torch", manifest, None) == "f32"
    assert gated_precision("torch", manifest, None, gpu=True) == "bf16"
    assert gated_precision("torch", manifest, "f32", gpu=True) == "f32"
    assert gated_precision("torch", manifest, None, {"f32"}, gpu=True) == "f32"
    fitted = manifest.model_copy(update={"decided_by": "torch-f32"})
    assert gated_precision("torch", fitted, None, gpu=True) == "f32"
    refused = {**gates, "torch-bf16": gate("bf16", 10.0, reason="no")}
    assert gated_precision("torch", with_gates(bundle, refused).manifest, None, gpu=True) == "f32"


def test_a_bundle_of_schema_1_has_one_precision_an_engine(bundle):
    manifest = with_gates(bundle, {"openvino": gate("bf16", None)}).manifest
    assert gated_precision("openvino", manifest, None, {"f32"}) == "bf16"


def test_an_unknown_engine_or_precision_is_refused(bundle):
    with pytest.raises(EngineError, match="abacus"):
        load_engine("abacus", bundle, precision="f32")
    with pytest.raises(EngineError, match="int3"):
        load_engine("torch", bundle, precision="int3")


SILENT = """
import socket, sys

def refuse(*arguments, **options):
    raise SystemExit(f"a connection was tried: {arguments}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from pathlib import Path
import model.engines.openvino_engine
from training.export import write_int8
write_int8(Path(sys.argv[1]), np.zeros((20, 28, 28, 3), np.uint8))
assert "nncf" in sys.modules and "pytest" not in sys.modules  # which switches telemetry off itself
assert sys.modules["openvino_telemetry"] is None
"""


@pytest.mark.slow
def test_openvino_and_nncf_do_not_phone_home(bundle, tmp_path):
    """They would write an identifier into the home folder first."""
    directory, home = tmp_path / "bundle", tmp_path / "home"
    shutil.copytree(bundle.directory, directory)
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(directory)],
        env={"HOME": str(home), "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not (home / "intel").exists()


def test_signals_are_heard_whatever_order_engines_go_in(bundle):
    """OpenVINO's plugin moves the stack for signals of the thread that loads it."""
    program = (
        "import gc, os, signal, sys; from pathlib import Path\n"
        "from model.engines.openvino_engine import OpenVinoEngine\n"
        "made = [OpenVinoEngine(Path(sys.argv[1]), threads=1, precision='f32') for _ in range(2)]\n"
        "while made:\n"
        "    made.pop(0)\n"
        "    gc.collect()\n"
        "signal.signal(signal.SIGTERM, lambda *its: print('heard'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-X", "faulthandler", "-c", program, str(bundle.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
