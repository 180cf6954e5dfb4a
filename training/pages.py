"""Pages that stand alone: templates, pictures inside the file, written whole or not at all."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def templates() -> Environment:
    """The templates of this package; what is put into them is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path | str, text: str) -> None:
    """Write a page beside its place and rename it. Raises OSError."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # File names may hold bytes that are no text.
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def thumbnail(image: NDArray[Any], side: int = 128) -> NDArray[Any]:
    """The picture, made smaller where it is larger than `side` pixels."""
    if max(image.shape[:2]) <= side:
        return image
    share = side / max(image.shape[:2])
    height, width = (max(1, round(share * length)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def data_uri(image: NDArray[Any] | bytes) -> str:
    """A PNG as a data address; raises ValueError when the array is not a uint8 image."""
    if not isinstance(image, bytes):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"a picture must be uint8 H x W or H x W x 3, got {image.dtype} {image.shape}"
            )
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        image = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")
