"""What the first bytes of an image say: format and size, before anything is decoded.

The cheap half of checking an image. Nothing here allocates more than a few bytes, whatever the
header claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import ImageError

Format = Literal["jpeg", "png", "webp"]

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: all of 0xC0..0xCF but DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}


@dataclass(frozen=True)
class Header:
    """Format and stored size of an image, in pixels, before EXIF orientation."""

    format: Format
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Read format and size from the header.

    Raises `ImageError` with code `empty`, `unsupported_type` (the first bytes are no JPEG, PNG
    or WebP signature, or a JPEG of 12 bits a sample) or `undecodable` (signature right, header
    broken).
    """
    match sniff(data):
        case "jpeg":
            return _jpeg_header(data)
        case "png":
            return _png_header(data)
        case "webp":
            return _webp_header(data)


def sniff(data: bytes) -> Format:
    """Tell the format by the first bytes alone; names and labels are not believed.

    >>> sniff(bytes.fromhex("89504e470d0a1a0a"))
    'png'
    """
    if not data:
        raise ImageError("empty", "the image has no bytes; send a JPEG, PNG or WebP image")
    if data.startswith(_JPEG_SIGNATURE):
        return "jpeg"
    if data.startswith(_PNG_SIGNATURE):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ImageError(
        "unsupported_type",
        f"the first bytes are {data[:8].hex(' ')}, which is no JPEG, PNG or WebP signature",
    )


def _jpeg_header(data: bytes) -> Header:
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            position += 2
        elif marker in _JPEG_FRAMES:
            return _jpeg_frame(data, position)
        else:
            position += 2 + _big_endian(data, position + 2, 2)
    raise ImageError("undecodable", "the JPEG ends or breaks off before its frame header")


def _jpeg_frame(data: bytes, position: int) -> Header:
    if data[position + 4] != 8:
        raise ImageError(
            "unsupported_type",
            f"the JPEG has {data[position + 4]} bits a sample; only 8 are supported",
        )
    return Header("jpeg", _big_endian(data, position + 7, 2), _big_endian(data, position + 5, 2))


def _png_header(data: bytes) -> Header:
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise ImageError("undecodable", "the PNG does not begin with its IHDR chunk")
    return Header("png", _big_endian(data, 16, 4), _big_endian(data, 20, 4))


def _webp_header(data: bytes) -> Header:
    kind = data[12:16]
    if len(data) >= 30:
        if kind == b"VP8X":
            return Header("webp", 1 + _little(data, 24, 3), 1 + _little(data, 27, 3))
        if kind == b"VP8L" and data[20] == 0x2F:
            bits = _little(data, 21, 4)
            return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
            return Header("webp", _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF)
    raise ImageError("undecodable", "the WebP has no readable VP8, VP8L or VP8X header")


def _big_endian(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "big")


def _little(data: bytes, start: int, length: int) -> int:
    return int.from_bytes(data[start : start + length], "little")
