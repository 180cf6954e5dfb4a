"""A worker whose GPU is lost makes room for another."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from service.worker import _predict
from model.errors import EngineLostError

class Predictor:
    def predict(self, images):
        raise EngineLostError("the GPU is lost to this process")

_predict(Predictor(), [])
print("went on")
"""


def test_it_ends_at_once_and_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "the GPU is lost to this process; this worker ends" in done.stderr
