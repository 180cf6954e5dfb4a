"""torch on an NVIDIA GPU, OpenVINO elsewhere; torch is not imported to find out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest

from model import bundle as bundles
from model import engines
from model.bundle import EngineGate
from service import default_engine, devices
from service.default_engine import likely_engine, usable_engine
from service.settings import ServiceSettings


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A file where the driver keeps its device."""
    device = tmp_path / "nvidiactl"
    device.touch()
    monkeypatch.setattr(default_engine, "_GPU_DEVICES", (tmp_path / "none", device))


@pytest.fixture
def no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(default_engine, "_GPU_DEVICES", (tmp_path / "none",))


@pytest.fixture
def cuda(monkeypatch):
    """A GPU that the driver shows, and torch can use."""
    monkeypatch.setattr(default_engine, "visible_devices", lambda: ["0"])
    monkeypatch.setattr(engines, "torch_sees_gpu", lambda: True)


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(devices, "_DRIVER", "libnone.so.1")


@pytest.fixture
def bundle(bundle_directory):
    """One that passed the gates of both engines."""
    bundle = bundles.load(bundle_directory)
    gates = bundle.manifest.engines
    both = {**gates, "torch": gates["openvino"].model_copy(update={"precision": "f32"})}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"engines": both}))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_openvino_is_the_default():
    assert likely_engine() == ServiceSettings().engine == "openvino"


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu_torch_is_the_default_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(default_engine, "version", lambda name: "2.12.0+cu128")
    assert likely_engine() == ServiceSettings().engine == "torch"
    monkeypatch.setattr(default_engine, "version", lambda name: "2.12.0+cpu")
    assert likely_engine() == "openvino"
    monkeypatch.setattr(default_engine, "version", lambda name: version(f"no-{name}-here"))
    assert likely_engine() == "openvino"


@pytest.mark.usefixtures("gpu")
def test_what_is_given_wins_and_is_told_from_the_default(monkeypatch):
    assert not ServiceSettings().engine_is_given
    monkeypatch.setenv("PLUMBLINE_ENGINE", "openvino")
    given = ServiceSettings().listening_on(None, 3003)
    assert (given.engine, given.engine_is_given) == ("openvino", True)


@pytest.mark.usefixtures("cuda")
def test_torch_is_used_where_cuda_is(bundle):
    assert usable_engine("torch", bundle) == "torch"


@pytest.mark.usefixtures("no_cuda")
def test_a_gpu_that_the_driver_hides_leaves_openvino(bundle):
    assert usable_engine("torch", bundle) == "openvino"


@pytest.mark.usefixtures("cuda")
def test_a_gpu_that_torch_cannot_use_leaves_openvino_and_that_is_said(bundle, monkeypatch, caplog):
    monkeypatch.setattr(engines, "torch_sees_gpu", lambda: False)
    assert usable_engine("torch", bundle) == "openvino"
    assert "torch cannot use it" in caplog.text


@pytest.mark.usefixtures("cuda")
def test_a_bundle_that_did_not_pass_with_torch_is_run_by_openvino(bundle):
    gates: dict[str, EngineGate] = bundle.manifest.engines
    for torch_gate in ({}, {"torch": gates["torch"].model_copy(update={"passed": False})}):
        manifest = bundle.manifest.model_copy(
            update={"engines": {"openvino": gates["openvino"], **torch_gate}}
        )
        assert usable_engine("torch", replace(bundle, manifest=manifest)) == "openvino"


@pytest.mark.usefixtures("cuda")
def test_a_precision_that_torch_did_not_pass_in_is_run_by_openvino(bundle):
    assert usable_engine("torch", bundle, "f32") == "torch"
    assert usable_engine("torch", bundle, "int8") == "openvino"


def test_the_settings_do_not_import_torch():
    code = "import sys; from service.settings import ServiceSettings as S; S(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "service.settings" in done.stdout.split()
    assert "torch" not in done.stdout.split()
