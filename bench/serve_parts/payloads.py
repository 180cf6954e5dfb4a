"""The images that are asked for, and the versions that answer."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from model.settings import ModelSettings
from model.store import ModelStore
from training.idx import read_idx_files
from training.raw_tables import fashion_mnist_folder

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS, GARMENTS = "photographs", "garments"
SIZES = {"256": (256, 256), "640": (640, 480), "1024": (1024, 768)}  # px, of JPEGs
PAYLOADS = (*SIZES, "28")  # the last: PNGs, for the small network
COUNT = 40


def images(payload: str) -> list[bytes]:
    """Forty of one of PAYLOADS: crops of photographs, or garments."""
    return garments() if payload == "28" else jpegs(SIZES[payload])


def model_of(payload: str) -> str:
    """The version that they are asked of."""
    return GARMENTS if payload == "28" else PHOTOGRAPHS


def jpegs(size: tuple[int, int]) -> list[bytes]:
    """JPEGs of quality 90, crops of photographs."""
    rng = np.random.default_rng(0)
    found = []
    for _, photograph in zip(range(COUNT), itertools.cycle(photographs()), strict=False):
        left, top = (int(rng.integers(0, max(1, length // 4))) for length in photograph.size)
        crop = photograph.crop((left, top, *photograph.size)).resize(size)
        found.append(encoded(crop, "JPEG", quality=90))
    return found


def photographs() -> list[Image.Image]:
    """Five photographs."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "camera")
    return [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names]


def garments() -> list[bytes]:
    """PNGs of 28 x 28, of the test images."""
    read = read_idx_files(fashion_mnist_folder())
    test = read.images[read.train_count :]
    return [encoded(Image.fromarray(pixels), "PNG") for pixels in test[:COUNT]]


def encoded(image: Image.Image, format: str, **options: int) -> bytes:
    """The bytes of its file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def train_once(home: Path, name: str) -> None:
    """Train the version where the home folder has none.

    EfficientNet-Lite0 at 224 px with its real ImageNet weights and a head for eight photographs,
    or the small network at 28 px for garments.
    """
    if ModelStore(ModelSettings(home=home)).versions(name):
        return
    with tempfile.TemporaryDirectory() as folder:
        data = "fashion-mnist"
        if name == PHOTOGRAPHS:
            data = folder
            example = ROOT / "examples" / "make_photographs.py"
            subprocess.run([sys.executable, example, folder], check=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "plumbline", "train", "--data", data),
                *("--name", name, "--epochs", "1", "--promote"),
            ],
            env={**os.environ, "PLUMBLINE_HOME": str(home)},
            check=True,
        )
