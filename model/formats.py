"""What the first bytes of an image say: format and size, before anything is decoded.

The cheap half of checking an image. Nothing here allocates more than a few bytes, whatever the
header claims.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.errors import ImageError

Format = Literal["jpeg", "png", "webp"]

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: all of 0xC0..0xCF but DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Baseline, extended and progressive with Huffman codes, and arithmetic where decoders have it.
_JPEG_DECODABLE = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_SCANS_LIMIT = 64
# Honest files have under two hundred: a colour profile of ten megabytes takes 160.
_JPEG_SEGMENTS_LIMIT = 2000
# Where the next segment begins, behind any number of fill bytes.
_JPEG_NEXT_MARKER = re.compile(rb"\xff++[^\xff]")
# Only the last byte of fill: to search for all of it would take the square of its length. Restart
# markers, of which a scan may have many, are passed over.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
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


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each JPEG segment before the first scan.

    Raises `ImageError` `undecodable` past a number of segments that no encoder writes: ten
    megabytes can hold millions of them.
    """
    position = 2
    for _ in range(_JPEG_SEGMENTS_LIMIT):
        found = _JPEG_NEXT_MARKER.match(data, position)
        if found is None or found.end() + 2 > len(data):
            return
        position = found.end()
        marker = data[position - 1]
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        if marker in (_JPEG_SCAN, _JPEG_END):
            return
        end = position + _big_endian(data, position, 2)
        yield marker, position + 2, end
        position = end
    raise ImageError(
        "undecodable", f"the JPEG has more than {_JPEG_SEGMENTS_LIMIT} segments before its scan"
    )


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each whole PNG chunk, IEND included.

    Raises `ImageError` `undecodable` when the bytes end before IEND.
    """
    position = len(_PNG_SIGNATURE)
    while True:
        start = position + 8
        end = start + _big_endian(data, position, 4)
        if end + 4 > len(data):
            raise ImageError("undecodable", "the PNG is truncated: it has no IEND chunk")
        kind = data[position + 4 : start]
        yield kind, start, end
        if kind == b"IEND":
            return
        position = end + 4


def still_png(data: bytes) -> bytes:
    """A whole PNG reduced to what its first picture needs.

    Animation, texts and colour profiles go: decoders warn about broken ones, or unpack them at
    length, and none of them changes the pixels that a model sees.
    """
    chunks = [
        data[start - 8 : end + 4] for kind, start, end in png_chunks(data) if kind in _PNG_NEEDED
    ]
    return b"".join([_PNG_SIGNATURE, *chunks])


def too_many_jpeg_scans(data: bytes) -> bool:
    """Whether a JPEG has more scans, or more segments about them, than any encoder writes.

    Each scan costs a pass over all pixels and a few bytes: ten megabytes can hold an hour of work.
    """
    if data.count(b"\xff\xda") <= _JPEG_SCANS_LIMIT:  # cheap, and true for honest images
        return False
    scans, position = 0, 2
    for _ in range(_JPEG_SEGMENTS_LIMIT):
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[0][1] == _JPEG_END:
            return False
        scans += found[0][1] == _JPEG_SCAN
        if scans > _JPEG_SCANS_LIMIT:
            return True
        position = found.end() + max(2, _big_endian(data, found.end(), 2))
    return True


def _jpeg_header(data: bytes) -> Header:
    for marker, start, _ in jpeg_segments(data):
        if marker in _JPEG_FRAMES and start + 5 <= len(data):
            return _jpeg_frame(data, marker, start)
    raise ImageError("undecodable", "the JPEG ends or breaks off before its frame header")


def _jpeg_frame(data: bytes, marker: int, start: int) -> Header:
    if marker not in _JPEG_DECODABLE:
        raise ImageError(
            "unsupported_type",
            f"the JPEG is of kind SOF{marker - 0xC0} (lossless or hierarchical);"
            " only baseline, extended and progressive are supported",
        )
    if data[start] != 8:
        raise ImageError(
            "unsupported_type",
            f"the JPEG has {data[start]} bits a sample; only 8 are supported",
        )
    return Header("jpeg", _big_endian(data, start + 3, 2), _big_endian(data, start + 1, 2))


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
