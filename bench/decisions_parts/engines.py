"""What every engine does in every precision: labels, accuracy, calibration, flags, speed.

    .venv/bin/python bench/decisions.py engines [--data fashion-mnist] [--epochs N] [--seeds 0 1 2]

Each seed trains by `plumbline train --int8` in a home folder of its own, and every engine runs
the *test* images, whether it passed its gate on validation images or not; the gate's verdict
stands beside. All decide by the one calibration, threshold and outlier score of the version, which
were fitted to the engine that serves by default (marked *). Test-time augmentation, as a last
line, is of that engine. Images per second: one thread, batches of 8, the fastest of several.

Ends with 1 where an engine that passed its gate loses more than half a point of accuracy on the
test images, or gives other labels than torch to more than 1 % of them, by the lower ends of 95 %
intervals: a gate that lets such an engine pass is worth nothing.

Figures, machine and spread: docs/decisions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_parts.machine import print_machine

from model.bundle import INT8, EngineGate
from model.engines import Engine, Outputs, gated_precision
from model.engines.openvino_engine import OpenVinoEngine, native_precisions
from model.engines.torch_engine import TorchEngine
from model.settings import ModelSettings
from model.store import ModelStore
from model.views import means_the_same_mirrored
from training.engine_runs import EngineRun, images_per_second
from training.evaluate import (
    Reopened,
    assess,
    augmented_probabilities,
    reopen,
    run_engine,
)
from training.export import INT8_IMAGES, write_int8
from training.findings import Rows
from training.gates import hold_to_torch
from training.loading import load
from training.metrics import wilson_interval
from training.sources import open_source
from training.splits import Split

KEYS = ("torch-f32", "torch-bf16", "openvino-f32", "openvino-bf16", "openvino-int8")
MOST_ACCURACY_LOST = 0.005
MOST_OTHER_LABELS = 0.01
HEADINGS = (
    *("engine", "same labels", "accuracy", "lost (95 %)", "ECE", "flagged"),
    *("images/s", "gate"),
)


def main() -> None:
    """Train, measure, print; exit with 1 where a gate let pass what it should not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="fashion-mnist", help="as for plumbline train")
    parser.add_argument("--epochs", type=int, help="0: the head alone, on frozen features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--version", help="measure this one of PLUMBLINE_HOME; train none")
    options = parser.parse_args()
    print_machine("torch", "openvino", "nncf", "numpy")
    misses: list[str] = []
    if options.version:
        store = ModelStore(ModelSettings())
        misses = measure(store, options.version, options.data, options.version)
        store.state.dispose()
    else:
        for seed in options.seeds:
            misses += train_and_measure(options.data, options.epochs, seed)
    for miss in misses:
        print(f"MISSED  {miss}")
    sys.exit(1 if misses else 0)


def train_and_measure(data: str, epochs: int | None, seed: int) -> list[str]:
    """One training in a home folder of its own; gives what is missed."""
    with tempfile.TemporaryDirectory() as home:
        version = train(data, epochs, seed, home)
        store = ModelStore(ModelSettings(home=Path(home)))
        misses = measure(store, version, data, f"seed {seed}")
        store.state.dispose()
    return misses


def train(data: str, epochs: int | None, seed: int, home: str) -> str:
    """`plumbline train --int8`; gives the version."""
    command = [
        *(sys.executable, "-m", "plumbline", "train", "--data", data, "--name", "bench"),
        *("--seed", str(seed), "--int8", "--track", "none", "--json"),
        *([] if epochs is None else ["--epochs", str(epochs)]),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PLUMBLINE_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the training ended with {done.returncode}")
    return str(json.loads(done.stdout)["version"])


def measure(store: ModelStore, version: str, data: str, title: str) -> list[str]:
    """Print the table of one version; gives what is missed."""
    opened = reopen(store, version, data)
    manifest, decider, rows = opened.manifest, opened.decider(), rows_of(opened)
    served = f"openvino-{gated_precision('openvino', manifest, None, native_precisions())}"
    print(f"\n{title}: {manifest.architecture}, {len(rows)} {opened.split} images")
    print(" | ".join(HEADINGS))
    misses = []
    with tempfile.TemporaryDirectory() as folder:
        directory = with_int8(opened, store, data, Path(folder, "bundle"))
        by_torch = run_engine(open_engine(opened, directory, KEYS[0], threads=0), rows.images)
        for key in KEYS:
            outputs, speed = run(opened, directory, key)
            seen = hold_to_torch(
                EngineRun(key, key.partition("-")[2], outputs, speed),
                by_torch,
                rows,
                decider,
            )
            gate = manifest.engines.get(key)
            print(line(f"{key} *" if key == served else key, seen, gate), flush=True)
            if gate is not None and gate.passed:
                misses += [f"{title}, {key}: {miss}" for miss in missed(seen)]
            if key == served:
                engine = open_engine(opened, directory, key, threads=0)
                augmented = with_augmentation(opened, engine, outputs)
    print(augmented, flush=True)
    return misses


def with_int8(opened: Reopened, store: ModelStore, data: str, directory: Path) -> Path:
    """The bundle's files, with an int8 graph also where its gate took that away."""
    shutil.copytree(opened.bundle.directory, directory)
    if not (directory / INT8).exists():
        manifest = opened.bundle.manifest
        seed = int(manifest.training.get("seed", 0))
        source = open_source(data, task=manifest.task, seed=seed, home=store.home)
        fit = load(source, manifest.input, store.home / "cache")[Split.FIT]
        write_int8(directory, Rows(fit.images, fit.targets).sample(INT8_IMAGES, seed).images)
    return directory


def open_engine(opened: Reopened, directory: Path, key: str, *, threads: int) -> Engine:
    """An engine by its key in the manifest, whatever its gate said."""
    name, _, precision = key.partition("-")
    if name == "openvino":
        return OpenVinoEngine(directory, threads=threads, precision=precision)
    manifest = opened.bundle.manifest
    return TorchEngine(
        directory,
        manifest.architecture,
        len(manifest.classes),
        manifest.input,
        threads=threads,
        precision=precision,
    )


def rows_of(opened: Reopened) -> Rows:
    """The test rows."""
    (part,) = opened.chosen.values()
    return Rows(part.images, part.targets)


def run(opened: Reopened, directory: Path, key: str) -> tuple[Outputs, float]:
    """Outputs on all cores, and images per second on one."""
    images = rows_of(opened).images
    outputs = run_engine(open_engine(opened, directory, key, threads=0), images)
    threads = torch.get_num_threads()
    speed = images_per_second(open_engine(opened, directory, key, threads=1), images)
    torch.set_num_threads(threads)  # which torch keeps for the whole process
    return outputs, speed


def line(name: str, seen: EngineGate, gate: EngineGate | None) -> str:
    """One row of the table."""
    lost = seen.accuracy_lost
    verdict = "not measured" if gate is None else "passed" if gate.passed else gate.reason
    cells = (
        name,
        f"{seen.label_agreement:.2%}",
        f"{seen.accuracy:.4f}",
        f"{lost.value:+.2%} ({lost.low:+.2%} to {lost.high:+.2%})",
        "" if seen.ece is None else f"{seen.ece:.4f}",
        f"{seen.flagged_share:.2%}",
        f"{seen.images_per_second:,.0f}",
        verdict,
    )
    return " | ".join(cells)


def with_augmentation(opened: Reopened, engine: Engine, outputs: Outputs) -> str:
    """The headline figures with test-time augmentation and without."""
    mirror = means_the_same_mirrored(opened.bundle.manifest.training)
    rows, decider = rows_of(opened), opened.decider()
    chances = augmented_probabilities(engine, decider, rows.images, outputs, mirror=mirror)
    ways = [assess(decider, outputs, rows.targets, its) for its in (None, np.asarray(chances))]
    name = "accuracy" if decider.task == "single" else "macro_f1"

    def told(found: dict[str, Any]) -> str:
        return f"{name} {found[name]:.4f}, ECE {found['ece']:.4f}, none {found['none_rate']:.2%}"

    views = 6 if mirror else 3
    return f"{views} views of each image: {told(ways[1])}; one: {told(ways[0])}"


def missed(seen: EngineGate) -> list[str]:
    """What an engine that passed its gate should not do on test images."""
    found = []
    lost = seen.accuracy_lost
    if lost is not None and lost.low is not None and lost.low > MOST_ACCURACY_LOST:
        found.append(f"loses {lost.value:.2%} of accuracy")
    others = round((1 - seen.label_agreement) * seen.images)
    if wilson_interval(others, seen.images)[0] > MOST_OTHER_LABELS:
        found.append(f"gives {1 - seen.label_agreement:.2%} of the images other labels than torch")
    return found


if __name__ == "__main__":
    main()
