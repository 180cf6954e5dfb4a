"""The floors of the house: imports run one way, and serving on a CPU needs no torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent

# What each room may import of the others, as design.md draws it.
MAY = {
    "model": set(),
    "monitoring": {"model"},
    "training": {"model", "monitoring"},
    "service": {"model", "monitoring"},
    "plumbline": {"model", "monitoring", "training", "service"},
}
HEAVY = ("torch", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "evidently", "onnx")


def modules(package: str) -> list[Path]:
    return sorted((HOUSE / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_reader_of_imports_sees_those_inside_functions(tmp_path):
    path = tmp_path / "example.py"
    path.write_text("import a.b\nfrom c.d import e\ndef f():\n    from g import h\n")
    assert imported(path) == {"a", "c", "g"}


@pytest.mark.parametrize("package", MAY)
def test_a_room_imports_only_the_floors_below_it(package):
    assert modules(package)
    for path in modules(package):
        above = imported(path) & (set(MAY) - MAY[package] - {package})
        assert not above, f"{path.relative_to(HOUSE)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("package", ["model", "monitoring", "service"])
def test_torch_is_named_only_where_it_may_be(package):
    named = (
        "network.py",
        "whole_embedding.py",
        "engines/torch_engine.py",
        "engines/cuda_graphs.py",
    )
    allowed = {HOUSE / "model" / name for name in named}
    # The monitor's own, whose extra brings scipy; nothing that the service imports.
    monitors = (
        *("windows.py", "discrepancy.py", "clusters.py"),
        *("class_priors.py", "prior_shift.py", "feedback_accuracy.py"),
    )
    allowed |= {HOUSE / "monitoring" / name for name in monitors}
    for path in set(modules(package)) - allowed:
        assert not imported(path) & {"torch", "timm", "torchvision", "sklearn", "scipy"}, path


@pytest.mark.parametrize("package", ["model", "monitoring", "service"])
def test_nothing_that_serves_unpickles(package):
    for path in modules(package):
        assert not imported(path) & {"pickle", "cloudpickle", "joblib", "dill", "shelve"}, path


def test_openvino_is_imported_without_its_telemetry_everywhere():
    silent = HOUSE / "model" / "engines" / "openvino_silent.py"
    for path in {path for package in MAY for path in modules(package)} - {silent}:
        assert "openvino" not in imported(path), path


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)
        return None

sys.meta_path.insert(0, Refuse())
"""


def without(refused: tuple[str, ...], code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PLUMBLINE_HOME": str(home),
        "PYTHONPATH": str(HOUSE),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home / "bentoml"),
    }
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(refused=refused) + code],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_refusal_works(tmp_path):
    told = without(HEAVY, "import torch", tmp_path)
    assert told.returncode == 1
    assert "torch is not installed here" in told.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import service.app; assert service.app.service.name == 'plumbline'",
        "import model.engines.openvino_engine, service.worker, service.serving",
        "import model.store, model.images, monitoring.records, monitoring.outlier",
    ],
    ids=["service", "engine and worker", "ground floor"],
)
def test_the_service_on_a_cpu_imports_without_torch(code, tmp_path):
    told = without(HEAVY, code, tmp_path)
    assert told.returncode == 0, told.stderr


def test_asking_for_the_torch_engine_without_torch_says_how_to_install_it(tmp_path):
    code = (
        "from model.engines import load_engine\n"
        "from model.errors import EngineError\n"
        "try:\n"
        "    load_engine('torch', None, precision='f32')\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    told = without(HEAVY, code, tmp_path)
    assert "pip install 'plumbline[training]'" in told.stdout, told.stderr
