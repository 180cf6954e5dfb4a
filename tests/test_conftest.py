"""What the tests share is set up by `make test` alone, and is cleared away again."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from training import raw_tables

HOUSE = Path(__file__).parent.parent


@pytest.fixture
def shared(request) -> ModuleType:
    """The conftest.py at the root."""
    return request.config.pluginmanager.getplugin(str(HOUSE / "conftest.py"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make: apt-get install make")
def test_make_test_gets_the_data_before_the_tests_run():
    told = subprocess.run(
        ["make", "--dry-run", "test"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout
    assert "\nscripts/get_fashion_mnist\n" in f"\n{told}"
    assert told.index("scripts/get_fashion_mnist") < told.index("bin/pytest")


def test_the_data_are_found_below_the_home_where_debian_has_none(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(raw_tables, "DEBIAN_FOLDER", tmp_path / "no package here")
    folder = tmp_path / "home" / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for prefix, rows in (("train", 10), ("t10k", 8)):
        images = struct.pack(">4I", 2051, rows, 2, 2) + bytes(4 * rows)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2I", 2049, rows) + bytes(range(rows))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    found = shared.read_fashion_mnist(tmp_path / "home")
    assert (found.train_count, found.labels) == (10, [*range(10), *range(8)])


def test_a_server_that_does_not_stop_is_killed(shared):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-uc", deaf], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            shared.stop(process, seconds=0.1)
        assert process.poll() == -signal.SIGKILL
