"""Resident memory of a training on 10,000 and on 40,000 images of 500 x 400.

    .venv/bin/python bench/train.py memory [--images 10000 40000]

Each is a training of one epoch by the command line, from JPEG files (a few hundred, linked under
many names) to a registered version. Ends with 1 when the most memory grows by more than the item
table: 4 KB an image.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from train_parts.machine import print_machine

DISTINCT, CLASSES = 200, 4
TABLE_BYTES = 4096  # an image
OPTIONS = (
    *("--architecture", "small-resnet", "--size", "64", "--epochs", "1", "--batch-size", "64"),
    *("--precision", "fp32", "--track", "none", "--json"),
)


def main() -> None:
    """Measure and print; exit with 1 where memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs=2, default=[10_000, 40_000])
    options = parser.parse_args()
    print_machine("torch", "numpy")
    found = []
    for count in options.images:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder, "data"), count)
            found.append(most_memory(Path(folder)))
        print(f"{count:,} images: {found[-1] / 2**20:.0f} MiB at most", flush=True)
    grown = found[1] - found[0]
    each = grown / (options.images[1] - options.images[0])
    print(f"{each / 1024:.2f} KiB an image more")
    sys.exit(0 if each <= TABLE_BYTES else 1)


def write_images(folder: Path, count: int) -> None:
    """Noisy JPEGs of 500 x 400 in class folders."""
    random = np.random.default_rng(0)
    for index in range(CLASSES):
        (folder / str(index)).mkdir(parents=True)
    for number in range(count):
        label = number % CLASSES
        path = folder / str(label) / f"{number:06}.jpg"
        if number < DISTINCT:
            small = random.integers(0, 256, (20, 25, 3), np.uint8)
            small[:, :, label % 3] //= 1 + label // 3 + 2
            Image.fromarray(small).resize((500, 400)).save(path, quality=85)
        else:
            os.link(folder / str(label) / f"{number % DISTINCT:06}.jpg", path)


def most_memory(folder: Path) -> int:
    """Bytes resident at most, looked at ten times a second."""
    command = [
        *(sys.executable, "-m", "plumbline", "train", "--data", str(folder / "data")),
        *("--name", "memory", *OPTIONS),
    ]
    environment = {**os.environ, "PLUMBLINE_HOME": str(folder / "home")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        watched, most = psutil.Process(process.pid), 0
        while process.poll() is None:
            try:
                most = max(most, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the training ended with {process.returncode}")
    return most
