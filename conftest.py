"""Real parts that many tests share: a trained model in a home folder, and a running server.

The model is trained once per test run, by the command line, on a part of Fashion-MNIST.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from training.idx import IdxFiles, read_idx_files
from training.raw_tables import fashion_mnist_folder

HOUSE = Path(__file__).parent
TRAIN_ROWS, TEST_ROWS = 9_000, 1_000
NAME = "garments"

# Put on the path of every server that tests start: the service must run without these.
_WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "sklearn", "scipy", "onnx"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
"""


@dataclass(frozen=True)
class TrainedHome:
    """A home folder with one champion, which tests must not change."""

    path: Path
    data: Path  # idx files
    tag: str
    report: dict[str, object]  # what `plumbline train --json` printed

    def copy(self, to: Path) -> Path:
        """A home of one's own, to break."""
        shutil.copytree(self.path, to, ignore=shutil.ignore_patterns("cache", "records"))
        return to


@dataclass(frozen=True)
class Server:
    """A running `plumbline serve`."""

    url: str
    process: subprocess.Popen[str]
    home: Path
    log: Path


def plumbline(
    *arguments: str | Path, home: Path, check: bool = True, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "plumbline", *map(str, arguments)],
        env=_environment(home, settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"{arguments} exited with {done.returncode}:\n{done.stderr}")
    return done


def _environment(home: Path, settings: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if "PLUMBLINE" not in name}
    given = {f"PLUMBLINE_{name.upper()}": value for name, value in settings.items()}
    return {**clean, "PLUMBLINE_HOME": str(home), **given}


@pytest.fixture(scope="session")
def run_plumbline() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, in a process of its own."""
    return plumbline


@pytest.fixture(scope="session")
def fashion_mnist() -> IdxFiles:
    """All of Fashion-MNIST."""
    return read_fashion_mnist(HOUSE / "var")


def read_fashion_mnist(home: Path) -> IdxFiles:
    """From Debian's package, else from below `home`, where a first use downloads it to."""
    return read_idx_files(fashion_mnist_folder(home))


@pytest.fixture(scope="session")
def garments(fashion_mnist: IdxFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of idx files with the first rows of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("garments")
    return write_first_rows(fashion_mnist, folder, TRAIN_ROWS, TEST_ROWS)


@pytest.fixture(scope="session")
def few_garments(fashion_mnist: IdxFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of fewer rows, for trainings whose outcome does not matter."""
    return write_first_rows(fashion_mnist, tmp_path_factory.mktemp("few"), 2_400, 200)


def write_first_rows(source: IdxFiles, folder: Path, train_rows: int, test_rows: int) -> Path:
    """Idx files of the first rows; gives the folder."""
    images, labels = source.images, np.array(source.labels, np.uint8)
    for prefix, start, rows in (
        ("train", 0, train_rows),
        ("t10k", source.train_count, test_rows),
    ):
        chosen = slice(start, start + rows)
        head = struct.pack(">4I", 2051, rows, *images.shape[1:])
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images[chosen].tobytes())
        head = struct.pack(">2I", 2049, rows)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels[chosen].tobytes())
    return folder


@pytest.fixture(scope="session")
def garment_images(fashion_mnist: IdxFiles) -> dict[str, np.ndarray]:
    """Test images of Fashion-MNIST, uint8 N x 28 x 28, and their labels."""
    start = fashion_mnist.train_count
    return {
        "images": fashion_mnist.images[start:],
        "labels": np.array(fashion_mnist.labels[start:], np.uint8),
    }


@pytest.fixture(scope="session")
def trained(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedHome:
    """A small model trained on `garments` by `plumbline train`, and promoted."""
    home = tmp_path_factory.mktemp("home")
    done = plumbline(
        *("train", "--data", garments, "--name", NAME, "--epochs", "4"),
        *("--batch-size", "128", "--promote", "--json"),
        home=home,
    )
    report = json.loads(done.stdout)
    return TrainedHome(home, garments, report["version"], report)


ServeFixture = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> ServeFixture:
    """Start a server on a home folder; `with serving(home, setting=value) as server`."""
    blocker = tmp_path_factory.mktemp("without-torch")
    (blocker / "sitecustomize.py").write_text(_WITHOUT_TORCH)

    @contextmanager
    def serve(home: Path, *, wait: bool = True, **settings: str | None) -> Iterator[Server]:
        port = free_port()
        given = {"workers": "1", "serve_on": f"127.0.0.1:{port}", **settings}
        wanted = {name: value for name, value in given.items() if value is not None}
        environment = {**_environment(home, wanted), "PYTHONPATH": str(blocker)}
        log = tmp_path_factory.mktemp("server") / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "plumbline", "serve"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        server = Server(f"http://127.0.0.1:{port}", process, home, log)
        try:
            if wait:
                wait_until_ready(server)
            yield server
        finally:
            stop(process)

    return serve


@pytest.fixture(scope="session")
def server(trained: TrainedHome, serving: ServeFixture) -> Iterator[Server]:
    """One server on `trained`, for tests that change nothing."""
    with serving(trained.path) as running:
        yield running


def stop(process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Ask a server to stop, and wait for it; one that hangs fails the test, and is killed."""
    process.terminate()
    try:
        process.wait(seconds)
    finally:
        process.kill()  # does nothing where it has ended
        process.wait()


def wait_until_ready(server: Server, seconds: float = 60) -> None:
    """Wait for `/readyz` to say yes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(f"the server stopped:\n{server.log.read_text()}")
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready in time:\n{server.log.read_text()}")


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
