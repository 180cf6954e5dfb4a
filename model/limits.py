"""What an image may measure before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageLimits:
    """Above these an image is refused before it is decoded."""

    part_bytes: int = 10 * 2**20
    pixels: int = 40_000_000
    least_side_pixels: int = 4
    aspect: float = 100.0


DEFAULT_LIMITS = ImageLimits()
