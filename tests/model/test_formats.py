"""The first bytes of an image tell its format and size, and nothing about it is believed twice."""

from __future__ import annotations

import base64

import pytest
import simplejpeg
from PIL import Image

from model.errors import ImageError
from model.exif import orientation
from model.formats import (
    Header,
    jpeg_segments,
    png_chunks,
    read_header,
    sniff,
    still_png,
    too_many_jpeg_scans,
)
from model.images import InputSpec, prepare

KINDS = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "lossy": ("WEBP", {}),
    "lossless": ("WEBP", {"lossless": True}),
    "extended": ("WEBP", {"exif": Image.Exif()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_gives_format_and_stored_size(kind, photograph, encoded):
    format, options = KINDS[kind]
    data = encoded(photograph, format, **options)
    assert read_header(data) == Header(format.lower(), 200, 150)


def test_the_header_of_an_animated_webp_gives_its_canvas(photograph, encoded):
    data = encoded(photograph, "WEBP", save_all=True, append_images=[photograph.rotate(90)])
    assert data[12:16] == b"VP8X"
    assert read_header(data) == Header("webp", 200, 150)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"a line of text", "unsupported_type"),
        (b"GIF89a" + bytes(50), "unsupported_type"),
        (b"BM" + bytes(50), "unsupported_type"),
        (b"RIFF\x00\x00\x00\x00WAVE" + bytes(50), "unsupported_type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_type"),
        (b"\xff\xd8\xff", "undecodable"),
        (b"\xff\xd8\xff\xe0\x00\x02" * 3, "undecodable"),
        (b"\x89PNG\r\n\x1a\n", "undecodable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "undecodable"),
        (b"RIFF\x00\x00\x00\x00WEBP", "undecodable"),
        (b"RIFF\x00\x00\x00\x00WEBPVP9 " + bytes(40), "undecodable"),
    ],
)
def test_bytes_that_are_no_whole_header_are_refused_by_code(data, code):
    with pytest.raises(ImageError) as refusal:
        read_header(data)
    assert refusal.value.code == code


def frame(marker: int, bits: int) -> bytes:
    content = bytes([bits, 0, 9, 0, 7, 1, 1, 0x11, 0])
    return b"\xff\xd8\xff" + bytes([marker, 0, 2 + len(content)]) + content


@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC0, 12), (0xC3, 8), (0xCB, 8)])
def test_jpegs_of_12_bits_and_of_lossless_kinds_are_an_unsupported_type(marker, bits):
    with pytest.raises(ImageError) as refusal:
        read_header(frame(marker, bits))
    assert refusal.value.code == "unsupported_type"


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2, 0xC9, 0xCA])
def test_jpegs_of_decodable_kinds_pass_and_give_width_then_height(marker):
    assert read_header(frame(marker, 8)) == Header("jpeg", 7, 9)


# 16 x 12 pixels of the astronaut in grey, by libjpeg-turbo's `cjpeg -quality 50 -grayscale`.
HUFFMAN = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRT"
    "c4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/wAALCAAMABABAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL"
    "/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJi"
    "coKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ip"
    "qrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/AI1unstOhjSF7h"
    "EJ6MVJHbI7dentVqfU7CKCwM87IQpysvJ6Y5PrmqMM0ksayuxL7SSfXBFc3NeTHUblSxIaRgQSSCN2OR06V//Z"
)
ARITHMETIC = base64.b64decode(  # and -arithmetic
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRT"
    "c4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/yQALCAAMABABAREA/8wABgAQEAX/2gAIAQEAAD8A+PPBpCUnRNG4x3Q4oizC"
    "OUFPjRkLgINh10hZ+IS5qllpIodAPQ3M30Xj3qv6Jkf8O2gPMGKBZor6rX14lo31Ggv78awyJE+HN44GHA+btLj/2Q"
    "=="
)
PROGRESSIVE = base64.b64decode(  # and -arithmetic -progressive
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRT"
    "c4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/ygALCAAMABABAREA/8wABAAQ/9oACAEBAAAAAfGqvgzA/8wABBAF/9oACAEB"
    "AAEFAo6aPGv++lgBNqr/zAAEEAX/2gAIAQEABj8CEOia0BaoBHd1/8wABBAF/9oACAEBAAE/IfXFrUc86w3abGOVhU"
    "WD5Ov/2gAIAQEAAAAQYP/MAAQQBf/aAAgBAQABPxCcitiLxG87kuNidCqYLtgD+dyWzeDFuPs+0/dz5a3khjz/2Q=="
)
SPEC = InputSpec(size=12, mean=(0, 0, 0), std=(1, 1, 1))


def pixels_or_code(data: bytes) -> list | str:
    try:
        return prepare(data, SPEC).tolist()
    except ImageError as error:
        return error.code


@pytest.mark.parametrize("data", [ARITHMETIC, PROGRESSIVE], ids=["sequential", "progressive"])
def test_an_arithmetic_jpeg_is_decoded_as_its_huffman_twin_or_an_unsupported_type(data):
    assert read_header(data) == read_header(HUFFMAN) == Header("jpeg", 16, 12)
    assert pixels_or_code(data) in (pixels_or_code(HUFFMAN), "unsupported_type")


def test_where_libjpeg_leaves_arithmetic_coding_out_it_is_an_unsupported_type(monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("Sorry, arithmetic coding is not implemented")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    with pytest.raises(ImageError, match="arithmetic") as refusal:
        prepare(ARITHMETIC, SPEC)
    assert refusal.value.code == "unsupported_type"


@pytest.mark.parametrize("data", [ARITHMETIC, PROGRESSIVE], ids=["sequential", "progressive"])
def test_a_truncated_arithmetic_jpeg_is_not_decoded(data):
    for missing in range(1, len(data) // 10):
        with pytest.raises(ImageError):
            prepare(data[:-missing], SPEC)


def test_sniffing_believes_only_the_first_bytes(photograph, encoded):
    assert sniff(encoded(photograph, "WEBP")) == "webp"
    with pytest.raises(ImageError, match="74 65 78 74"):
        sniff(b"text, then a PNG: " + encoded(photograph, "PNG"))


def test_a_still_png_keeps_the_first_picture_and_nothing_else(photograph, encoded):
    whole = encoded(photograph, "PNG", save_all=True, append_images=[photograph.rotate(90)])
    kinds = [kind for kind, _, _ in png_chunks(still_png(whole))]
    assert {b"acTL", b"fcTL", b"fdAT"} <= {kind for kind, _, _ in png_chunks(whole)}
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_png_without_its_end_is_truncated_wherever_it_ends(photograph, encoded):
    data = encoded(photograph, "PNG")
    for missing in range(1, 30):
        with pytest.raises(ImageError, match="truncated"):
            still_png(data[:-missing])


def test_scans_are_counted_up_to_the_end_of_the_image(photograph, encoded):
    data = encoded(photograph, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert not too_many_jpeg_scans(data)
    assert not too_many_jpeg_scans(data + b"\xff\xda" * 1000)  # behind the end: ignored
    assert too_many_jpeg_scans(data[:-2] + scan * 100 + data[-2:])


class Watched(bytes):
    """Bytes that count how often one of them is read by itself, or a piece copied."""

    reads = 0

    def __getitem__(self, place):
        self.reads += 1
        return super().__getitem__(place)


LARGEST = 10 * 2**20
HOSTILE = {
    "fill": b"\xff" * LARGEST,
    "restart markers": b"\xff\xd0" * (LARGEST // 2),
    "empty segments": b"\xff\xe0\x00\x02" * (LARGEST // 4),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_jpeg_of_ten_megabytes_without_a_frame_is_refused_in_few_steps(kind):
    data = Watched(b"\xff\xd8" + HOSTILE[kind])
    with pytest.raises(ImageError) as refusal:
        read_header(data)
    assert refusal.value.code == "undecodable"
    assert data.reads < 10_000


def test_fill_bytes_before_a_segment_are_passed_over(photograph, encoded):
    data = encoded(photograph, "JPEG")
    filled = data[:2] + b"\xff" * 100_000 + data[2:]
    assert read_header(filled) == Header("jpeg", 200, 150)
    assert [marker for marker, _, _ in jpeg_segments(filled)] == [
        marker for marker, _, _ in jpeg_segments(data)
    ]


@pytest.mark.timeout(60)  # in the square of the length the fill alone would take days
@pytest.mark.parametrize(
    ("kind", "many"), [("fill", 0), ("restart markers", 0), ("empty segments", 1)]
)
def test_scans_are_counted_in_few_steps(kind, many, photograph, encoded):
    scans = b"\xff\xee\x00\xca" + b"\xff\xda" * 100  # in a comment: they only look like scans
    data = Watched(encoded(photograph, "JPEG")[:2] + scans + HOSTILE[kind])
    assert too_many_jpeg_scans(data) == bool(many)
    assert data.reads < 10_000


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_read_from_each_format(format, value, photograph, encoded):
    exif = Image.Exif()
    exif[0x010E] = "a description that comes before the orientation"
    exif[0x0112] = value
    data = encoded(photograph, format, exif=exif)
    assert orientation(data, read_header(data)) == value


def exif_block(order: str, value: int, kind: int = 3, size: int = 2) -> bytes:
    mark, number = (b"II", "little") if order == "little" else (b"MM", "big")
    tiff = mark + (42).to_bytes(2, number) + (8).to_bytes(4, number) + (1).to_bytes(2, number)
    entry = (0x0112).to_bytes(2, number) + kind.to_bytes(2, number) + (1).to_bytes(4, number)
    return b"Exif\x00\x00" + tiff + entry + value.to_bytes(size, number).ljust(4, b"\0")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (exif_block("little", 6), 6),
        (exif_block("big", 6), 6),
        (exif_block("big", 8, kind=4, size=4), 8),
        (exif_block("big", 0), 1),
        (exif_block("big", 9), 1),
        (exif_block("big", 6, kind=2), 1),  # a text
        (exif_block("big", 6)[:-3], 1),  # cut off
        (b"Exif\x00\x00", 1),
        (b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", 1),
        (b"Exif\x00\x00not a TIFF header", 1),
    ],
)
def test_an_orientation_that_cannot_be_read_counts_as_upright(block, expected, photograph, encoded):
    data = encoded(photograph, "JPEG", exif=block)
    assert orientation(data, read_header(data)) == expected
