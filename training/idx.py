"""The idx files of MNIST and its successors: `train-images-idx3-ubyte.gz` and the like.

Format: a big-endian magic number (2051 images, 2049 labels), the sizes, then unsigned bytes
(LeCun, Cortes and Burges, "The MNIST database").
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError

FASHION_MNIST_CLASSES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]

_FIRST_FASHION_LABELS = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
_IMAGES_MAGIC = 2051
_LABELS_MAGIC = 2049
_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
_KINDS = {"images": "idx3", "labels": "idx1"}


@dataclass(frozen=True)
class IdxFiles:
    """Training rows, then test rows."""

    images: NDArray[np.uint8]  # N x H x W
    labels: list[int]
    train_count: int
    classes: list[str]
    is_fashion_mnist: bool

    @property
    def names(self) -> list[str]:
        """`train/0` and so on."""
        tests = len(self.labels) - self.train_count
        return [f"train/{row}" for row in range(self.train_count)] + [
            f"test/{row}" for row in range(tests)
        ]


def find_idx_files(folder: Path) -> dict[tuple[str, str], Path]:
    """The idx files in a folder, by ("train" or "test", "images" or "labels")."""
    found = {}
    for part, prefixes in _PREFIXES.items():
        for kind, dimensions in _KINDS.items():
            for prefix in prefixes:
                for joint in "-.":
                    for suffix in ("", ".gz"):
                        name = f"{prefix}-{kind}{joint}{dimensions}-ubyte{suffix}"
                        if (folder / name).is_file():
                            found[part, kind] = folder / name
    return found


def read_idx_files(folder: Path) -> IdxFiles:
    """Read the training rows, and the test rows where there are some. Raises `DataError`."""
    found = find_idx_files(folder)
    parts = [part for part in _PREFIXES if any(key[0] == part for key in found)]
    if "train" not in parts:
        raise DataError(f"{folder} has no train-images-idx3-ubyte; training needs it")
    pairs = [_read_pair(folder, found, part) for part in parts]
    images = [pair[0] for pair in pairs]
    if len({part.shape[1:] for part in images}) > 1:
        raise DataError(f"{folder}: training and test images differ in size")
    labels = np.concatenate([pair[1] for pair in pairs])
    is_fashion = pairs[0][1][:10].tolist() == _FIRST_FASHION_LABELS
    digits = [str(label) for label in range(int(labels.max()) + 1)]
    return IdxFiles(
        images=np.concatenate(images),
        labels=labels.tolist(),
        train_count=len(images[0]),
        classes=FASHION_MNIST_CLASSES if is_fashion else digits,
        is_fashion_mnist=is_fashion,
    )


def _read_pair(
    folder: Path, found: dict[tuple[str, str], Path], part: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    for kind, dimensions in _KINDS.items():
        if (part, kind) not in found:
            raise DataError(
                f"{folder} has idx files of the {part} rows but not their {kind}; add "
                f"{_PREFIXES[part][0]}-{kind}-{dimensions}-ubyte"
            )
    images = read_idx(found[part, "images"], _IMAGES_MAGIC)
    labels = read_idx(found[part, "labels"], _LABELS_MAGIC)
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"{found[part, 'images']} has {len(images)} images and "
            f"{found[part, 'labels'].name} {len(labels)} labels; both need the same, above 0"
        )
    return images, labels


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """One idx file as an array of uint8. Raises `DataError` when it is not whole."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is broken or truncated: {error}; fetch it anew") from error
    dimensions = magic % 256
    header = np.frombuffer(data[: 4 + 4 * dimensions], ">i4") if len(data) >= 16 else np.array([0])
    if header[0] != magic:
        raise DataError(f"{path} is no idx file: its magic number is {header[0]}, not {magic}")
    shape = [int(size) for size in header[1:]]
    body = len(data) - 4 - 4 * dimensions
    if min(shape) < 0 or body != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{path} is truncated or corrupt: {body} bytes for {' x '.join(map(str, shape))}; "
            "fetch it anew"
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
