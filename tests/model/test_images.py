"""Bytes become the same checked pixels in training and serving, or one clear error."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from skimage import data as photographs

from model.errors import ImageError
from model.images import InputSpec, check, fit_to, prepare, prepare_checked, properties
from model.limits import ImageLimits

WHOLE = InputSpec(size=150, mean=(0, 0, 0), std=(1, 1, 1))  # the centre square of `photograph`
SMALL = InputSpec(size=32, mean=(0, 0, 0), std=(1, 1, 1))

FORMATS = {
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "progressive": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "png": ("PNG", {}),
    "lossless": ("WEBP", {"lossless": True}),
    "lossy": ("WEBP", {"quality": 95}),
}
LOSSLESS = {"png", "lossless"}


def centre(image: Image.Image) -> np.ndarray:
    """The centre square, untouched, as RGB."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def code_of(data: bytes, spec: InputSpec = SMALL, limits: ImageLimits | None = None) -> str:
    """The code of the refusal, or 'ok'."""
    try:
        pixels = prepare(data, spec, limits or ImageLimits())
    except ImageError as refusal:
        return refusal.code
    assert pixels.shape == (spec.size, spec.size, 3)
    assert pixels.dtype == np.uint8
    return "ok"


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(
    depth: int, color: int, rows: bytes, *extra: bytes, size: tuple[int, int] = (8, 8)
) -> bytes:
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


# What comes out is what was put in


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_of_each_format_comes_back(kind, photograph, encoded):
    format, options = FORMATS[kind]
    pixels = prepare(encoded(photograph, format, **options), WHOLE)
    assert pixels.flags["C_CONTIGUOUS"]
    assert difference(pixels, centre(photograph)) <= (0 if kind in LOSSLESS else 3)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "lossless"])
def test_exif_orientation_is_applied_as_pillow_would(kind, value, photograph, encoded):
    format, options = FORMATS[kind]
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(photograph, format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    assert difference(prepare(data, WHOLE), centre(upright)) < 0.1


@pytest.mark.parametrize("kind", ["jpeg", "png", "lossless"])
@pytest.mark.parametrize(
    "block",
    [b"Exif\x00\x00", b"Exif\x00\x00junk" * 9, b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" * 4],
    ids=["empty", "junk", "too many entries"],
)
def test_broken_exif_spoils_no_image(kind, block, photograph, encoded):
    format, options = FORMATS[kind]
    data = encoded(photograph, format, exif=block, **options)
    assert difference(prepare(data, WHOLE), centre(photograph)) <= 3


def test_grey_jpeg_and_png_come_out_as_three_equal_channels(photograph, encoded):
    grey = photograph.convert("L")
    for format, bound in (("JPEG", 3), ("PNG", 0)):
        options = {"quality": 95} if format == "JPEG" else {}
        pixels = prepare(encoded(grey, format, **options), WHOLE)
        assert (pixels == pixels[:, :, :1]).all()
        assert difference(pixels, centre(grey)) <= bound


def test_a_palette_is_looked_up(photograph, encoded):
    few = photograph.quantize(50)
    assert difference(prepare(encoded(few, "PNG"), WHOLE), centre(few)) == 0


def test_a_palette_with_transparency_lies_on_white(encoded):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (4, 0, 8, 8))
    pixels = prepare(encoded(image, "PNG", transparency=b"\x00\xff"), _spec(8))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == [0, 0, 200]).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(format, encoded):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 100, 0, 255), (4, 0, 8, 8))
    image.paste((0, 0, 0, 128), (0, 4, 4, 8))
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = prepare(encoded(image, format, **options), _spec(8))
    assert (pixels[:4, :4] == 255).all()
    assert (pixels[:, 4:] == [0, 100, 0]).all()
    assert (np.abs(pixels[4:, :4].astype(int) - 127) <= 1).all()


def test_grey_with_alpha_is_laid_on_white(encoded):
    image = Image.new("LA", (8, 8), (0, 0))
    image.paste((50, 255), (4, 0, 8, 8))
    pixels = prepare(encoded(image, "PNG"), _spec(8))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 50).all()


def test_cmyk_jpeg_looks_as_pillow_shows_it(photograph, encoded):
    inks = photograph.convert("CMYK")
    data = encoded(inks, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        shown = image.convert("RGB")
    pixels = prepare(data, WHOLE)
    assert difference(pixels, centre(shown)) < 0.1
    assert difference(pixels, centre(photograph)) < 6


def test_one_bit_images_are_black_and_white(encoded):
    image = Image.new("1", (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    pixels = prepare(encoded(image, "PNG"), _spec(8))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


STEPS = np.tile((np.arange(8) * 0x2000 + 0xFF).astype(">u2"), (8, 1))  # 16-bit columns


def rows_of(samples: np.ndarray) -> bytes:
    return b"".join(b"\x00" + row.astype(">u2").tobytes() for row in samples)


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3)], ids=["grey", "rgb"])
def test_sixteen_bits_become_eight(color, channels):
    data = png(16, color, rows_of(np.repeat(STEPS[:, :, None], channels, axis=2)))
    expected = np.arange(8) * 0x20
    assert np.abs(prepare(data, _spec(8))[0, :, 0].astype(int) - expected).max() <= 1


def test_pillows_own_sixteen_bit_grey_becomes_eight(encoded):
    image = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16))
    assert image.mode == "I;16"
    pixels = prepare(encoded(image, "PNG"), _spec(8))
    expected = np.rint(np.arange(64).reshape(8, 8) * 1000 / 257)
    assert (pixels[:, :, 0] == expected).all()


@pytest.mark.parametrize(
    ("color", "clear"),
    [(0, struct.pack(">H", 0x60FF)), (2, struct.pack(">HHH", *[0x60FF] * 3))],
    ids=["grey", "rgb"],
)
def test_the_transparent_colour_of_a_sixteen_bit_image_is_white(color, clear):
    channels = 1 if color == 0 else 3
    rows = rows_of(np.repeat(STEPS[:, :, None], channels, axis=2))
    row = prepare(png(16, color, rows, chunk(b"tRNS", clear)), _spec(8))[0, :, 0]
    assert row[3] == 255
    assert np.abs(np.delete(row, 3).astype(int) - np.delete(np.arange(8) * 0x20, 3)).max() <= 1


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_the_transparent_grey_is_white_at_every_depth(depth):
    levels = np.arange(8) % min(8, 2**depth)
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = int(bits, 2).to_bytes(depth, "big")  # 8 samples of `depth` bits
    data = png(depth, 0, (b"\x00" + row) * 8, chunk(b"tRNS", struct.pack(">H", 1)))
    pixels = prepare(data, _spec(8))[0, :, 0]
    stored = levels * 255 // (2**depth - 1)
    assert pixels.tolist() == np.where(levels == 1, 255, stored).tolist()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(format, photograph, encoded):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(
        photograph, format, save_all=True, append_images=[ImageOps.invert(photograph)], **options
    )
    assert difference(prepare(data, WHOLE), centre(photograph)) == 0


def test_a_broken_animation_shows_its_default_picture(photograph, encoded):
    data = encoded(photograph, "PNG")
    broken = chunk(b"acTL", struct.pack(">II", 0, 0)) + chunk(b"fcTL", bytes(26))
    assert difference(prepare(data[:33] + broken + data[33:], WHOLE), centre(photograph)) == 0


# What is refused


@pytest.mark.parametrize(
    "kind", [*FORMATS, "cmyk", "grey jpeg", "palette", "alpha webp", "animated webp", "apng"]
)
def test_a_truncated_image_is_undecodable_wherever_it_is_cut(kind, photograph, encoded):
    second = {"save_all": True, "append_images": [photograph.rotate(90)]}
    data = {
        "cmyk": lambda: encoded(photograph.convert("CMYK"), "JPEG"),
        "grey jpeg": lambda: encoded(photograph.convert("L"), "JPEG"),
        "palette": lambda: encoded(photograph.quantize(50), "PNG"),
        "alpha webp": lambda: encoded(_with_alpha(photograph), "WEBP"),
        "animated webp": lambda: encoded(photograph, "WEBP", **second),
        "apng": lambda: encoded(photograph, "PNG", **second),
    }.get(kind, lambda: encoded(photograph, FORMATS[kind][0], **FORMATS[kind][1]))()
    tenths = [len(data) * tenth // 10 for tenth in range(1, 10)]
    last_tenth = [len(data) * (900 + step) // 1000 for step in range(0, 100, 9)]
    last_bytes = range(len(data) - 25, len(data))
    assert code_of(data) == "ok"
    for length in (*tenths, *last_tenth, *last_bytes):
        assert code_of(data[:length]) == "undecodable", f"cut to {length} of {len(data)} bytes"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("trailing", [b"\x00" * 100, b"\xff\xda" * 500, b"<html>" * 50])
def test_bytes_behind_a_whole_image_are_ignored(kind, trailing, photograph, encoded):
    format, options = FORMATS[kind]
    data = encoded(photograph, format, **options)
    assert (prepare(data + trailing, SMALL) == prepare(data, SMALL)).all()


def test_an_image_with_too_many_bytes_is_too_large(photograph, encoded):
    data = encoded(photograph, "JPEG")
    assert code_of(data, limits=ImageLimits(part_bytes=len(data))) == "ok"
    assert code_of(data, limits=ImageLimits(part_bytes=len(data) - 1)) == "too_large"


def test_an_image_with_too_many_pixels_is_too_large(photograph, encoded):
    data = encoded(photograph, "WEBP")
    assert code_of(data, limits=ImageLimits(pixels=200 * 150)) == "ok"
    assert code_of(data, limits=ImageLimits(pixels=200 * 150 - 1)) == "too_large"


def test_a_huge_claim_is_refused_by_its_header_alone():
    data = png(8, 2, bytes(1000), size=(100_000, 100_000))
    started = time.perf_counter()
    assert code_of(data) == "too_large"
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_under_the_least_side_is_undecodable(format, encoded):
    assert code_of(encoded(Image.new("RGB", (4, 4)), format)) == "ok"
    assert code_of(encoded(Image.new("RGB", (3, 40)), format)) == "undecodable"


def test_an_image_that_is_too_long_for_its_width_is_too_large(encoded):
    assert code_of(encoded(Image.new("L", (400, 4)), "PNG")) == "ok"
    assert code_of(encoded(Image.new("L", (401, 4)), "PNG")) == "too_large"


def test_nothing_is_empty():
    assert code_of(b"") == "empty"


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_an_unsupported_type_though_pillow_reads_them(format, encoded):
    assert code_of(encoded(Image.new("RGB", (16, 16)), format)) == "unsupported_type"


def test_text_is_an_unsupported_type():
    assert code_of(b"not an image\n" * 100) == "unsupported_type"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_decoder_that_finds_another_size_than_was_checked_is_not_believed(
    kind, photograph, encoded
):
    format, options = FORMATS[kind]
    data = encoded(photograph, format, **options)
    smaller = replace(check(data), width=8)
    with pytest.raises(ImageError, match="8 x 150 pixels in one place and 200 x 150 in another"):
        prepare_checked(data, smaller, SMALL)


def test_a_frame_hidden_from_our_walk_does_not_slip_past_the_limits(photograph, encoded):
    # Our walk takes 0xff00 for a segment and jumps over the true frame; libjpeg skips 0xff00.
    data = encoded(photograph, "JPEG")
    start = data.index(b"\xff\xc0")
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    true_frame = data[start : start + 2 + length]
    small_frame = true_frame[:5] + struct.pack(">HH", 8, 8) + true_frame[9:]
    hidden = b"\xff\x00" + struct.pack(">H", 2 + len(true_frame) + 4)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(small_frame))
    rest = data[start + 2 + length :]
    crafted = data[:start] + hidden + true_frame + comment + small_frame + rest
    assert check(crafted).width == 8
    assert code_of(crafted) == "undecodable"


def test_a_jpeg_with_thousands_of_scans_is_refused_before_it_costs_minutes(encoded):
    data = encoded(Image.new("RGB", (2000, 1500), "grey"), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    started = time.perf_counter()
    assert code_of(data[:-2] + scan * 20_000 + data[-2:]) == "undecodable"
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("signature", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
@given(tail=st.binary(max_size=300))
def test_junk_behind_a_signature_raises_nothing_but_a_refusal(signature, tail):
    assert code_of(signature + tail) in {"undecodable", "unsupported_type", "too_large"}


def _seeds() -> list[bytes]:
    image = Image.fromarray(photographs.astronaut()[:60:3, :72:3].copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    seeds = []
    for format, picture, options in (
        ("JPEG", image, {"exif": exif}),
        ("JPEG", image, {"progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("PNG", image, {"exif": exif}),
        ("PNG", image.quantize(20), {"transparency": b"\x00\x80"}),
        ("PNG", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("WEBP", image.convert("RGBA"), {"exif": exif}),
        ("WEBP", image, {"lossless": True}),
        ("WEBP", image, {"save_all": True, "append_images": [image.rotate(90)]}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, format, **options)
        seeds.append(buffer.getvalue())
    return seeds


SEEDS = _seeds()
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.parametrize("warned", ["error", "ignore"])
@given(seed=st.sampled_from(SEEDS), edits=EDITS, early=st.booleans())
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(seed=SEEDS[0], edits=[(0.5, 0xFF)], early=True)
def test_a_damaged_image_raises_nothing_but_a_refusal(warned, seed, edits, early):
    data = bytearray(seed)
    reach = min(len(data), 120) if early else len(data)  # half of the damage hits the headers
    for place, value in edits:
        data[int(place * (reach - 1))] = value
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        code_of(bytes(data))


def test_what_pillow_warns_of_is_decided_alike_whether_or_not_warnings_are_errors():
    generator = np.random.default_rng(0)
    for seed in SEEDS:
        for _ in range(60):
            data = bytearray(seed)
            for place in generator.integers(0, min(len(data), 200), 3):
                data[place] = generator.integers(256)
            decided = []
            for action in ("error", "ignore"):
                with warnings.catch_warnings():
                    warnings.simplefilter(action)
                    decided.append(code_of(bytes(data)))
            assert decided[0] == decided[1]


# Size and crop


def test_an_image_of_the_input_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    assert (fit_to(pixels, _spec(28)) == pixels).all()


def test_a_grey_image_of_the_input_size_is_repeated_not_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    for shaped in (pixels, pixels[:, :, None]):
        fitted = fit_to(shaped, _spec(28))
        assert (fitted == pixels[:, :, None]).all()
        assert fitted.shape == (28, 28, 3)


def test_resizing_is_antialiased():
    checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
    fitted = fit_to(checkers.astype(np.uint8), _spec(32))
    assert np.abs(fitted.astype(int) - 127).max() <= 8  # grey, not a moire of black and white


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_the_centre_is_cropped_and_resized_as_pillow_does(interpolation, crop, photograph, encoded):
    spec = InputSpec(size=48, crop=crop, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)
    side = 150 * crop
    left, top = (200 - side) / 2, (150 - side) / 2
    expected = photograph.resize(
        (48, 48), Image.Resampling[interpolation.upper()], box=(left, top, left + side, top + side)
    )
    assert difference(prepare(encoded(photograph, "PNG"), spec), np.asarray(expected)) == 0


@pytest.mark.parametrize("quality", [75, 95])
def test_decoding_a_large_jpeg_small_changes_little(quality, encoded):
    large = Image.fromarray(photographs.astronaut()).resize((1600, 1200), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=quality)
    spec = InputSpec(size=160, mean=(0, 0, 0), std=(1, 1, 1))
    decoded_whole = fit_to(simplejpeg.decode_jpeg(data, "RGB"), spec)
    assert difference(prepare(data, spec), decoded_whole) < 1.5


def test_a_jpeg_is_not_decoded_below_the_input_size(encoded):
    """Otherwise it would be blown up again: as sharp as the whole decode, it is not."""
    generator = np.random.default_rng(0)
    cells = Image.fromarray(generator.integers(0, 256, (60, 60, 3), np.uint8))
    data = encoded(cells.resize((480, 480), Image.Resampling.NEAREST), "JPEG", quality=95)
    spec = InputSpec(size=200, crop=0.9, mean=(0, 0, 0), std=(1, 1, 1))
    decoded_whole = fit_to(simplejpeg.decode_jpeg(data, "RGB"), spec)
    assert properties(prepare(data, spec)).sharpness > 0.9 * properties(decoded_whole).sharpness


# Properties


def seen(image: Image.Image):
    return properties(np.asarray(image))


def test_a_darker_image_has_less_brightness_and_a_flatter_one_less_contrast(photograph):
    plain, dark = seen(photograph), seen(photograph.point(lambda value: value // 2))
    flat = seen(photograph.point(lambda value: 96 + value // 4))
    assert dark.brightness == pytest.approx(plain.brightness / 2, abs=0.01)
    assert flat.contrast == pytest.approx(plain.contrast / 4, abs=0.01)


def test_a_blurred_image_has_less_sharpness(photograph):
    soft = [seen(photograph.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0, 1, 3)]
    assert soft[0].sharpness > 2 * soft[1].sharpness > 4 * soft[2].sharpness


def test_properties_are_those_of_their_definition(photograph):
    luma = np.asarray(photograph.convert("L")).astype(float)
    inner = -4 * luma[1:-1, 1:-1] + luma[:-2, 1:-1] + luma[2:, 1:-1]
    inner += luma[1:-1, :-2] + luma[1:-1, 2:]
    found = seen(photograph)
    assert found.brightness == pytest.approx(luma.mean() / 255, abs=1e-4)
    assert found.contrast == pytest.approx(luma.std() / 255, abs=1e-4)
    assert found.sharpness == pytest.approx(inner.std() / 255, rel=0.05)  # some rows speak for all


def test_black_has_no_contrast_and_white_is_bright():
    black, white = seen(Image.new("RGB", (28, 28))), seen(Image.new("RGB", (28, 28), "white"))
    assert (black.brightness, black.contrast, black.sharpness) == (0, 0, 0)
    assert white.brightness == pytest.approx(1, abs=1e-6)
    assert white.contrast == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [1, 77, 128, 254])
def test_a_plain_image_has_no_bit_in_its_hash(value):
    """Else two images on the same ground were told apart by errors of rounding."""
    assert seen(Image.new("RGB", (61, 47), (value, 255 - value, value // 2))).perceptual_hash == 0


@pytest.mark.parametrize("size", [72, 216])
def test_the_hash_is_of_the_means_of_eight_by_nine_parts(size):
    noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    means = Image.fromarray(noise).convert("F").resize((9, 8), Image.Resampling.BOX)
    bits = np.diff(np.rint(np.asarray(means)), axis=1) > 0
    assert properties(noise).perceptual_hash == int.from_bytes(np.packbits(bits).tobytes(), "big")


@pytest.mark.parametrize("size", [4, 7, 9])
def test_of_the_smallest_images_all_properties_can_be_told(size):
    noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
    found = properties(noise)
    assert 0 < found.brightness < 1
    assert min(found.contrast, found.sharpness, found.perceptual_hash) > 0


def test_the_perceptual_hash_is_near_for_a_recompressed_image_and_far_for_another(
    photograph, encoded
):
    near = prepare(encoded(photograph, "JPEG", quality=60), WHOLE)
    other = Image.fromarray(photographs.coffee()).resize((200, 150))
    first, second, third = (
        properties(pixels).perceptual_hash for pixels in (centre(photograph), near, centre(other))
    )
    assert (first ^ second).bit_count() <= 4
    assert (first ^ third).bit_count() >= 16
    assert 0 <= third < 2**64


def _spec(size: int) -> InputSpec:
    return InputSpec(size=size, mean=(0, 0, 0), std=(1, 1, 1))


def _with_alpha(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(image.convert("L"))
    return with_alpha
