"""An environment that has fastai and sees our packages too, so that both share torch."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from peer_environment import peer_python

FASTAI = "fastai==2.8.12"
ENVIRONMENT = Path("var/fastai-env")


def run_beside_fastai() -> None:
    """Go on in the environment that has fastai; it sees our packages too."""
    try:
        version("fastai")
    except ModuleNotFoundError:
        python = fastai_python()
        os.execv(python, [str(python), *sys.argv])


def fastai_python() -> Path:
    """Its interpreter; the environment is made the first time."""
    return peer_python(ENVIRONMENT, FASTAI)
