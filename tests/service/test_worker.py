"""What a worker process puts in force; and one whose GPU is lost makes room for another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


IN_FORCE = """
from service.app import service
from service.protocol import BoundedProtocol
service.to_asgi()
print(type(BoundedProtocol.refusal).__name__, BoundedProtocol.timeout_seconds)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("access_log", "refusal"), [("false", "EarlyRefusal"), ("true", "NoneType")]
)
def test_it_refuses_by_heads_unless_every_answer_is_logged(access_log, refusal, tmp_path) -> None:
    given = {
        "PLUMBLINE_HOME": str(tmp_path),
        "PLUMBLINE_ACCESS_LOG": access_log,
        "PLUMBLINE_BODY_TIMEOUT_SECONDS": "7",
    }
    done = subprocess.run(
        [sys.executable, "-c", IN_FORCE],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [refusal, "7.0"]
