"""How large the images of some data are as stored."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.formats import read_header
from training.sources import Source

Array = NDArray[Any]


def image_sizes(source: Source, names: Sequence[str]) -> Array:
    """Width and height as stored, int64 N x 2, of the rows of these names."""
    rows = {name: row for row, name in enumerate(source.names)}

    def size(name: str) -> tuple[int, int]:
        stored = source.reader.stored(rows[name])
        if isinstance(stored, bytes):
            header = read_header(stored)
            return header.width, header.height
        return stored.shape[1], stored.shape[0]

    with ThreadPoolExecutor() as threads:
        return np.array(list(threads.map(size, names)), np.int64).reshape(len(names), 2)
