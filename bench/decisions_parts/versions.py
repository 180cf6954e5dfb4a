"""Versions trained by the command line, as a user would, and their outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.engines import Engine, Outputs, load_engine
from model.settings import ModelSettings
from model.store import ModelStore
from training.evaluate import Reopened, reopen, run_engine
from training.splits import Split


def train(data: Path | str, home: Path, options: Sequence[str]) -> str:
    """`plumbline train` in a home of its own; gives the version."""
    command = [
        *(sys.executable, "-m", "plumbline", "train", "--data", str(data), "--name", "bench"),
        *("--track", "none", "--json", *options),
    ]
    clean = {name: its for name, its in os.environ.items() if not name.startswith("PLUMBLINE_")}
    environment = {**clean, "PLUMBLINE_HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the training ended with {done.returncode}: {' '.join(command)}")
    return str(json.loads(done.stdout)["version"])


def open_trained(home: Path, version: str) -> tuple[Reopened, Engine]:
    """The version on the data of its training, and the engine that serves it."""
    store = ModelStore(ModelSettings(home=home))
    opened = reopen(store, version)
    store.state.dispose()
    return opened, load_engine("openvino", opened.bundle, threads=0)


def outputs_of(opened: Reopened, engine: Engine, split: Split) -> tuple[Outputs, NDArray[np.int64]]:
    """Outputs and targets of one split."""
    part = opened.splits[split]
    return run_engine(engine, part.images), np.asarray(part.targets)
