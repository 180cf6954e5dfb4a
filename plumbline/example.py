"""An image to try the service with: written once, named after what it shows."""

from __future__ import annotations

import uuid
from pathlib import Path

from PIL import Image

from training.idx import read_idx_files
from training.raw_tables import FASHION_MNIST, fashion_mnist_folder

SNEAKER = 7  # label in Fashion-MNIST


def write_example(home: Path, data: str) -> Path | None:
    """A sneaker of Fashion-MNIST's test split as PNG; None for other data."""
    if data != FASHION_MNIST:
        return None
    path = home / "examples" / "sneaker.png"
    if not path.exists():
        files = read_idx_files(fashion_mnist_folder(home))
        first = files.labels.index(SNEAKER, files.train_count)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: half an image would never be written anew.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            Image.fromarray(files.images[first]).save(partial, "PNG")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path
