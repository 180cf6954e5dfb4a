"""Small real things that many tests need: images as bytes, settings at rest, a whole bundle."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from PIL import Image
from skimage import data as photographs

from model import bundle as bundles
from model.bundle import DataSummary, EngineGate, Manifest, Metric, OutlierSummary
from model.decision import Calibration, Thresholds
from model.images import InputSpec
from model.settings import ModelSettings
from model.store import ModelStore

if TYPE_CHECKING:
    from tests.postgresql import PostgresqlServer

# The same examples on every machine, and no time limit on a busy one.
hypothesis.settings.register_profile("plumbline", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("plumbline")

SaveImage = Callable[..., bytes]
MakeManifest = Callable[..., Manifest]
FillBundle = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PLUMBLINE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny batches gain nothing from more threads, and lose where tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hangup_is_heard() -> Iterator[None]:
    """As at a terminal, also where these tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MiB, to be filled or mounted anew."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted only by root, where the kernel lets it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """An astronaut, 200 x 150, in colour and plainly not symmetric."""
    return Image.fromarray(photographs.astronaut()[:450:3, :600:3].copy()).resize((200, 150))


@pytest.fixture(scope="session")
def encoded() -> SaveImage:
    """`encoded(image, "PNG", **options)`: the bytes Pillow writes."""

    def encode(image: Image.Image, format: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def make_manifest() -> MakeManifest:
    """`make_manifest(**changes)`: the manifest of a small single-label model."""

    def make(**changes: Any) -> Manifest:
        fields: dict[str, Any] = {
            "name": "shapes",
            "version": "20260101-0123abcd",
            "created": datetime(2026, 1, 1, tzinfo=UTC),
            "task": "single",
            "none_allowed": True,
            "classes": ("circle", "square", "star"),
            "architecture": "small",
            "embedding_size": 8,
            "input": InputSpec(size=28, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            "calibration": Calibration(method="temperature", temperature=1.5),
            "thresholds": Thresholds(objective="macro_f1", value=0.4),
            "outlier": OutlierSummary(
                alpha=0.01,
                calibration_images=999,
                smallest_alpha=0.001,
                self_check={"noise": 0.99},
                self_check_passed=True,
                statement="at most 1 % of images like those it learned from are flagged",
            ),
            "engines": {
                "openvino": EngineGate(
                    precision="bf16",
                    label_agreement=1.0,
                    largest_probability_difference=0.0,
                    accuracy=0.9,
                    flagged_share=0.01,
                    passed=True,
                )
            },
            "metrics": {"accuracy": Metric(value=0.9, low=0.88, high=0.92)},
            "data": DataSummary(source="made up", fingerprint="0" * 64, images={"fit": 100}),
            "training": {"epochs": 1},
            "libraries": {"numpy": "2"},
        }
        return Manifest(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def fill_bundle() -> FillBundle:
    """Put a small file in the place of each that a bundle needs."""

    def fill(directory: Path) -> None:
        for name in bundles.REQUIRED_FILES:
            (directory / name).write_bytes(f"stands for {name}".encode())

    return fill


@pytest.fixture
def bundle_directory(tmp_path: Path, make_manifest: MakeManifest, fill_bundle: FillBundle) -> Path:
    """A sealed bundle on disk that loads."""
    directory = tmp_path / "bundle"
    with bundles.writing(directory) as partial:
        fill_bundle(partial)
        bundles.seal(partial, make_manifest())
    return directory


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A real server, for all tests of a run."""
    from tests.postgresql import PostgresqlServer

    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a state database that is not there yet; a claim that asks for it runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'state.sqlite'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    """An empty model store with its state database."""
    store = ModelStore(ModelSettings(home=tmp_path / "home"))
    yield store
    store.state.dispose()


@pytest.fixture
def register(
    store: ModelStore, make_manifest: MakeManifest, fill_bundle: FillBundle
) -> Callable[..., str]:
    """`register()`: a new version in `store`; gives its tag."""

    def add(name: str = "shapes", **changes: Any) -> str:
        with store.registering(name) as (version, directory, seal):
            fill_bundle(directory)
            seal(make_manifest(name=name, version=version, **changes))
        return f"{name}:{version}"

    return add
