"""`plumbline train` that is asked to stop clears away what it had half written."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STOPPED_WHILE_WRITING = """
import os, signal
from plumbline.cli import main
from training import recipe

def run_training(request, store, **options):
    with store.registering(request.name) as (version, directory, seal):
        (directory / "network.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

recipe.run_training = run_training
main()
"""


@pytest.mark.slow
def test_a_training_that_is_terminated_leaves_no_half_version(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_HOME", str(tmp_path))
    train = ("train", "--data", "fashion-mnist", "--name", "shapes")
    done = subprocess.run([sys.executable, "-c", STOPPED_WHILE_WRITING, *train], check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert list((tmp_path / "bentoml" / "models" / "shapes").iterdir()) == []
