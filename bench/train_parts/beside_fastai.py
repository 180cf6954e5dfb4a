"""Trainings beside fastai's: the same data, architecture, epochs, batch and threads, by turns.

    .venv/bin/python bench/train.py fastai [--data fashion emoji] [--seeds 0 1 2]

Each training is a process of its own, and the two sides take turns. `fashion`: ResNet-18 from
scratch at 28 px on 20,000 training images of Fashion-MNIST, 3 epochs, batches of 64, 2,000 images
to validate on, all 10,000 to test. `emoji`: EfficientNet-Lite0 with ImageNet weights on the
drawings of examples/make_emoji.py, 4 epochs of all layers after the head alone (fastai: an epoch of
it; ours: on features computed once), batches of 32; a third of them are test images. Of the images
to validate on, ours keeps half for calibration. Images per second are those of every epoch that
passes images through the network with gradients, over the whole time.

Ends with 1 when ours is less than 1.3 times as fast, less accurate on average, or, on the emoji,
less than 8 points more accurate at no more CPU seconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastai_environment import fastai_python
from PIL import Image

from train_parts.machine import print_machine, spread
from training.raw_tables import fashion_mnist_folder

HERE = Path(__file__).parent
EPOCHS = {"fashion": 3, "emoji": 4}
OURS = {
    "fashion": (
        *("--architecture", "resnet18", "--size", "28"),
        *("--batch-size", "64", "--learning-rate", "0.05"),
    ),
    "emoji": ("--batch-size", "32"),
}
LEAST_RATIO, LEAST_POINTS = 1.3, 0.08
TRAIN_IMAGES, VALID_IMAGES = 20_000, 2_000
TEST_SHARE, VALID_SHARE = 1 / 3, 1 / 6  # of the emoji


def main() -> None:
    """Measure and print; exit with 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    theirs = fastai_python()
    print_machine("torch", "timm")
    reached = True
    for kind in options.data:
        with tempfile.TemporaryDirectory() as folder:
            {"fashion": write_fashion, "emoji": write_emoji}[kind](Path(folder))
            reached &= compare(kind, Path(folder), options.seeds, theirs)
    sys.exit(0 if reached else 1)


def compare(kind: str, data: Path, seeds: Sequence[int], python: Path) -> bool:
    """Print both sides; whether every floor is reached."""
    fastai: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    for seed in seeds:
        fastai.append(run(python, "fastai_side.py", data, kind, EPOCHS[kind], seed))
        ours.append(run(sys.executable, "our_side.py", data, EPOCHS[kind], seed, *OURS[kind]))
        print(f"  {kind}, seed {seed}: fastai {fastai[-1]}, ours {ours[-1]}", flush=True)
    ratios = [speed(our) / speed(their) for our, their in zip(ours, fastai, strict=True)]
    print(f"{kind}: images/s {spread([speed(its) for its in ours], '.1f')} against fastai's")
    print(f"  {spread([speed(its) for its in fastai], '.1f')}; ratio {spread(ratios, '.2f')}")
    print(f"  test accuracy {accuracies(ours)} against {accuracies(fastai)}")
    fast = statistics.median(ratios) >= LEAST_RATIO
    gain = mean(ours) - mean(fastai)
    cost, theirs = (statistics.mean(its["cpu"] for its in runs) for runs in (ours, fastai))
    print(f"  {100 * gain:+.1f} points, at {cost:.0f} CPU seconds against {theirs:.0f}")
    good = gain >= LEAST_POINTS and cost <= theirs if kind == "emoji" else gain >= 0
    return fast and good


def run(python: Path | str, program: str, *arguments: object) -> dict[str, Any]:
    """One side, in a process of its own."""
    command = [str(python), str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(found: dict[str, Any]) -> float:
    """Training images per second of all that was done."""
    return float(found["images"] / found["seconds"])


def mean(runs: Sequence[dict[str, Any]]) -> float:
    """Test accuracy."""
    return statistics.mean(its["accuracy"] for its in runs)


def accuracies(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and range."""
    found = [its["accuracy"] for its in runs]
    return f"{statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})"


def write_fashion(folder: Path) -> None:
    """PNG files in class folders."""
    source = fashion_mnist_folder()
    train, labels = idx(source, "train")
    chosen = np.random.default_rng(0).permutation(len(train))[: TRAIN_IMAGES + VALID_IMAGES]
    for number, row in enumerate(chosen):
        part = "train" if number < TRAIN_IMAGES else "valid"
        save(folder / part / str(labels[row]) / f"{row:05}.png", train[row])
    test, labels = idx(source, "t10k")
    for row, image in enumerate(test):
        save(folder / "test" / str(labels[row]) / f"{row:05}.png", image)


def idx(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images N x 28 x 28 and labels N."""
    images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return np.frombuffer(images, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """One PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_emoji(folder: Path) -> None:
    """The drawings, dealt by a fixed seed within each category."""
    example = HERE.parent.parent / "examples" / "make_emoji.py"
    drawings = folder / "drawings"
    subprocess.run([sys.executable, example, drawings], check=True, stdout=subprocess.DEVNULL)
    random = np.random.default_rng(0)
    for category in sorted(path for path in drawings.iterdir() if path.is_dir()):
        files = sorted(category.iterdir())
        for place, row in enumerate(random.permutation(len(files))):
            share = place / len(files)
            part = "train"
            if share < TEST_SHARE + VALID_SHARE:
                part = "test" if share < TEST_SHARE else "valid"
            # Without an alpha channel: fastai would make transparent pixels black, ours white.
            target = folder / part / category.name / files[row].name
            target.parent.mkdir(parents=True, exist_ok=True)
            flat = Image.new("RGB", (72, 72), "white")
            drawing = Image.open(files[row]).convert("RGBA")
            flat.paste(drawing, mask=drawing)
            flat.save(target)
    shutil.rmtree(drawings)
