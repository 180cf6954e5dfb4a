"""The EXIF orientation of an image, read from its bytes without decoding anything.

Written out because Pillow's reader may raise, warn or search the whole file on broken EXIF; here
what cannot be read counts as upright.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from model.formats import Header, jpeg_segments, png_chunks

ByteOrder = Literal["little", "big"]

UPRIGHT = 1

_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4  # the TIFF types that an orientation is written as
_PREFIX = b"Exif\x00\x00"


def orientation(data: bytes, header: Header) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or it cannot be read."""
    match header.format:
        case "jpeg":
            blocks = _in_jpeg(data)
        case "png":
            blocks = (data[start:end] for kind, start, end in png_chunks(data) if kind == b"eXIf")
        case "webp":
            blocks = _in_webp(data)
    return _orientation_of(next(blocks, b"").removeprefix(_PREFIX))


def _in_jpeg(data: bytes) -> Iterator[bytes]:
    for marker, start, end in jpeg_segments(data):
        if marker == 0xE1 and data.startswith(_PREFIX, start):
            yield data[start:end]


def _in_webp(data: bytes) -> Iterator[bytes]:
    position = 12
    while position + 8 <= len(data):
        start, size = position + 8, int.from_bytes(data[position + 4 : position + 8], "little")
        if data.startswith(b"EXIF", position):
            yield data[start : start + size]
        position = start + size + size % 2


def _orientation_of(tiff: bytes) -> int:
    order: ByteOrder
    match tiff[:4]:
        case b"II*\x00":
            order = "little"
        case b"MM\x00*":
            order = "big"
        case _:
            return UPRIGHT
    directory = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[directory : directory + 2], order)
    for start in range(directory + 2, directory + 2 + 12 * entries, 12):
        entry = tiff[start : start + 12]
        if int.from_bytes(entry[:2], order) == _ORIENTATION_TAG and len(entry) == 12:
            size = {_SHORT: 2, _LONG: 4}.get(int.from_bytes(entry[2:4], order), 0)
            value = int.from_bytes(entry[8 : 8 + size], order)
            return value if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
