"""Exporting: wherever the disk ends, it is one clear error, and nothing is left."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from model.bundle import INT8, ONNX, OPENVINO, OUTLIER, REFERENCE, REPORT, save_arrays, writing
from model.errors import BundleError, EngineError
from model.images import InputSpec
from model.network import create_network
from model.settings import ModelSettings
from model.store import ModelStore
from model.whole_embedding import WholeEmbedding
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.records import Record, write_records
from training.export import (
    check_exports,
    export_network,
    remove_int8,
    run_network,
    write_int8,
    write_openvino,
)
from training.report import write_report
from training.report_data import ReportData

SPEC = InputSpec(size=28, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
FULL = Path("/dev/full")  # the kernel's disk without room

needs_a_full_disk = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, as on Linux")


@pytest.fixture(scope="module")
def network() -> WholeEmbedding:
    return WholeEmbedding(create_network("small-resnet", 3, SPEC, seed=0))


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_network(network, directory, SPEC.size)
    return directory


@pytest.fixture
def record() -> Record:
    return Record(
        id="0" * 32,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        model="pets:1",
        stage="registered",
        client="calibration",
        image_sha256="0" * 64,
        perceptual_hash=0,
        bytes=1000,
        width=28,
        height=28,
        format="prepared",
        brightness=0.5,
        contrast=0.5,
        sharpness=0.5,
        logits=np.zeros(2, np.float32),
        labels=["cat"],
        confidence=0.5,
        outlier_score=0.0,
        p_value=0.5,
        flagged=False,
        components=np.zeros(RECORD_COMPONENTS, np.float32),
    )


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_both_graphs_do_what_the_network_does(network, exported):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)
    assert check_exports(exported, images, run_network(network, images)) < 1e-4


@needs_a_full_disk
@pytest.mark.parametrize("name", ["network.bin", OPENVINO])
def test_a_disk_that_ends_at_the_openvino_files_leaves_nothing(name, exported, tmp_path):
    with pytest.raises(BundleError, match=r"network\.xml and network\.bin could not be written"):
        with writing(tmp_path / "new") as partial:
            shutil.copy(exported / ONNX, partial)
            (partial / name).symlink_to(FULL)
            write_openvino(partial)
    assert list(tmp_path.iterdir()) == []


@needs_a_full_disk
def test_a_disk_that_ends_at_the_onnx_file_leaves_nothing(network, tmp_path):
    with pytest.raises(BundleError, match="No space left"), writing(tmp_path / "new") as partial:
        (partial / ONNX).symlink_to(FULL)
        export_network(network, partial, SPEC.size)
    assert list(tmp_path.iterdir()) == []


@needs_a_full_disk
def test_a_disk_that_ends_at_the_reference_leaves_nothing(record, tmp_path):
    with pytest.raises(BundleError, match="No space left"), writing(tmp_path / "new") as partial:
        (partial / REFERENCE).symlink_to(FULL)
        write_records(partial / REFERENCE, [record])
    assert list(tmp_path.iterdir()) == []


# These are written under another name first: a link to the full disk would be replaced.


def test_a_disk_that_ends_at_the_weights_leaves_nothing(network, tmp_path):
    with pytest.raises(BundleError, match="File too large"), writing(tmp_path / "new") as partial:
        with largest_file(2**16):
            export_network(network, partial, SPEC.size)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_ends_at_the_outlier_arrays_leaves_nothing(tmp_path):
    with pytest.raises(BundleError, match="File too large"), writing(tmp_path / "new") as partial:
        with largest_file(2**16):
            save_arrays(partial / OUTLIER, {"bank": np.zeros(2**20, np.uint8)})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_ends_at_the_report_leaves_nothing(tmp_path):
    report = ReportData("pets", "pets:1", "2026", "single", ["cat", "dog"])
    with pytest.raises(BundleError, match="File too large"), writing(tmp_path / "new") as partial:
        with largest_file(2**10):
            write_report(partial / REPORT, report)
    assert list(tmp_path.iterdir()) == []


KILLED_WHILE_QUANTISING = """
import os, signal, shutil, sys
from pathlib import Path
import numpy as np
from model.settings import ModelSettings
from model.store import ModelStore
from training.export import write_int8
import nncf

class Dataset(nncf.Dataset):
    def get_inference_data(self, *arguments):
        for number, batch in enumerate(super().get_inference_data(*arguments)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

nncf.Dataset = Dataset
store = ModelStore(ModelSettings(home=Path(sys.argv[1])))
with store.registering("shapes") as (_, directory, seal):
    for path in Path(sys.argv[2]).glob("network.*"):
        shutil.copy(path, directory)
    write_int8(directory, np.zeros((60, 28, 28, 3), np.uint8))
"""


@pytest.mark.slow
def test_a_training_killed_while_it_quantises_leaves_no_version(exported, tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_QUANTISING, str(tmp_path), str(exported)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "bentoml" / "models" / "shapes"
    assert [path.name[0] for path in folder.iterdir()] == ["."]  # half, under no version's name
    store = ModelStore(ModelSettings(home=tmp_path))
    assert store.versions() == []
    with pytest.raises(KeyboardInterrupt), store.registering("shapes"):  # sweeps it away
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []
    store.state.dispose()


def test_what_cannot_be_quantised_is_an_error_that_says_so(tmp_path):
    (tmp_path / OPENVINO).write_text("no graph")
    with pytest.raises(EngineError, match="nncf cannot quantise the network"):
        write_int8(tmp_path, np.zeros((10, 28, 28, 3), np.uint8))


def test_removing_the_int8_graph_leaves_the_others(exported, tmp_path):
    for path in exported.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / INT8).write_text("graph")
    (tmp_path / INT8).with_suffix(".bin").write_text("weights")
    remove_int8(tmp_path)
    remove_int8(tmp_path)
    assert {its.name for its in tmp_path.iterdir()} == {its.name for its in exported.iterdir()}
