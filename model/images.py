"""Bytes -> checked, decoded, resized uint8 image; and the properties of an image.

Training and serving both come through `prepare`, so that a model meets in production the very
pixels that it was trained on. No torch here.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import BaseModel, ConfigDict, Field

from model.errors import ImageError
from model.exif import orientation
from model.formats import Header, read_header, still_png, too_many_jpeg_scans
from model.limits import DEFAULT_LIMITS, ImageLimits

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


class InputSpec(BaseModel):
    """What a network takes: the size and the normalisation that its manifest names.

    `size` is the side of the square input in pixels; `crop` the share of the shorter side that
    the centre crop keeps; `mean` and `std` are in units of 0..1 and live inside the graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=4, le=4096)
    crop: float = Field(default=1.0, gt=0, le=1)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    decoder: Literal["simplejpeg+pillow/1"] = "simplejpeg+pillow/1"


@dataclass(frozen=True)
class ImageProperties:
    """What an image looks like, apart from what it shows; for records and drift.

    All are taken from the prepared image: `brightness` and `contrast` are mean and standard
    deviation of the luma in 0..1, `sharpness` is the root mean square of its Laplacian on some
    rows, `perceptual_hash` a 64-bit difference hash (near-duplicates differ in few bits).
    """

    brightness: float
    contrast: float
    sharpness: float
    perceptual_hash: int


def check(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Header:
    """Check bytes, type and size without decoding; return the header.

    Raises `ImageError` with the code that the HTTP contract names for the fault.
    """
    if len(data) > limits.part_bytes:
        raise ImageError(
            "too_large", f"the image has {len(data)} bytes; at most {limits.part_bytes} are taken"
        )
    header = read_header(data)
    _check_size(header, limits)
    return header


def _check_size(header: Header, limits: ImageLimits) -> None:
    shorter, longer = sorted((header.width, header.height))
    given = f"the image has {header.width} x {header.height} pixels"
    if header.width * header.height > limits.pixels:
        raise ImageError("too_large", f"{given}; at most {limits.pixels} in all are taken")
    if shorter < limits.least_side_pixels:
        raise ImageError(
            "undecodable", f"{given}; each side needs at least {limits.least_side_pixels}"
        )
    if longer > limits.aspect * shorter:
        raise ImageError(
            "too_large", f"{given}; one side may be at most {limits.aspect:g} times the other"
        )


def prepare(
    data: bytes,
    spec: InputSpec,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    place: float = 0.5,
) -> Pixels:
    """The one path from image bytes to network input: uint8 of shape size x size x 3.

    `place` is that of `fit_to`. Raises `ImageError`; nothing else, whatever the bytes.
    """
    return prepare_checked(data, check(data, limits), spec, place)


def prepare_checked(data: bytes, header: Header, spec: InputSpec, place: float = 0.5) -> Pixels:
    """`prepare` for bytes whose `header` came from `check`, which is not repeated."""
    return fit_to(decode(data, header, math.ceil(spec.size / spec.crop)), spec, place)


def decode(data: bytes, header: Header, least_side: int) -> Pixels:
    """Bytes to upright pixels, uint8 H x W or H x W x 3. Raises `ImageError`; nothing else.

    A JPEG is decoded at the smallest DCT scale that keeps both sides at `least_side` or more.
    """
    try:
        match header.format:
            case "jpeg":
                pixels = _decode_jpeg(data, header, least_side)
            case "png":
                pixels = _decode_png(data, header)
            case "webp":
                pixels = _decode_webp(data, header)
        return _upright(pixels, orientation(data, header))
    except ImageError:
        raise
    except Exception as error:
        if "arithmetic coding" in str(error):  # whole, but this build of libjpeg leaves it out
            raise ImageError("unsupported_type", f"the JPEG cannot be decoded: {error}") from error
        raise ImageError(
            "undecodable", f"the {header.format.upper()} is broken or truncated: {error}"
        ) from error


def fit_to(pixels: Pixels, spec: InputSpec, place: float = 0.5) -> Pixels:
    """Resize a square crop of decoded pixels to the input size, antialiased.

    Takes uint8 of shape H x W, H x W x 1 or H x W x 3; gives size x size x 3. `place` is where
    in the room along the longer side the crop lies, 0 to 1: the centre, but for training.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    height, width = pixels.shape[:2]
    side = min(height, width) * spec.crop
    if not (height == width == spec.size and spec.crop == 1):
        left, top = (width - side) * place, (height - side) * place
        resized = Image.fromarray(pixels).resize(
            (spec.size, spec.size),
            _RESAMPLING[spec.interpolation],
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(resized)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def properties(pixels: Pixels) -> ImageProperties:
    """Brightness, contrast, sharpness and perceptual hash of a prepared image.

    It is computed for every image that is served: numpy in float32 takes a third of the time of
    Pillow's `convert` and `resize`, and dot products a tenth of that of `ndarray.std`.
    """
    luma = pixels.astype(np.float32) @ LUMA  # H x W
    height, width = luma.shape
    cells = _averages(height, 8) @ luma @ _averages(width, 9).T  # 8 x 9
    edges = _laplacian(luma).ravel()
    mean = float(cells.sum()) / cells.size
    values = np.subtract(luma, np.float32(mean), out=luma).ravel()
    # 64 comparisons of neighbours; rounded, as errors of sums are no difference in a plain area.
    whole = np.rint(cells)
    bits = whole[:, 1:] > whole[:, :-1]
    return ImageProperties(
        brightness=mean / 255,
        contrast=math.sqrt(float(np.dot(values, values)) / values.size) / 255,
        sharpness=math.sqrt(float(np.dot(edges, edges)) / edges.size) / 255,
        perceptual_hash=int.from_bytes(np.packbits(bits).tobytes(), "big"),
    )


@cache
def _averages(side: int, count: int) -> Floats:
    """Weights, count x side, of the means of `count` equal parts of `side` rows or columns."""
    edges = np.linspace(0, side, count + 1)
    rows = np.arange(side)
    inside = np.minimum(edges[1:, None], rows + 1) - np.maximum(edges[:-1, None], rows)
    return np.asarray(inside.clip(0) * (count / side), np.float32)


def _laplacian(luma: Floats) -> Floats:
    """Of about 28 rows spread over the image, or every second: no scale of blur is lost."""
    step = max(2, len(luma) // 28)
    laplacian = -4 * luma[1:-1:step, 1:-1]
    above, below = luma[:-2:step, 1:-1], luma[2::step, 1:-1]
    for neighbour in (above, below, luma[1:-1:step, :-2], luma[1:-1:step, 2:]):
        laplacian += neighbour
    return laplacian


def _decode_jpeg(data: bytes, header: Header, least_side: int) -> Pixels:
    """Decode at the smallest DCT scale that keeps both sides at `least_side` or more."""
    if too_many_jpeg_scans(data):
        raise ImageError("undecodable", "the JPEG has more scans than any encoder writes")
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    _check_same_size(header, width, height)
    kind = {"GRAY": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(space.upper(), "RGB")
    pixels = simplejpeg.decode_jpeg(
        data, kind, min_height=least_side, min_width=least_side, min_factor=1
    )
    return _cmyk_to_rgb(pixels) if kind == "CMYK" else pixels


def _cmyk_to_rgb(pixels: Pixels) -> Pixels:
    # Adobe's programs, and so nearly all, write the inks inverted.
    height, width = pixels.shape[:2]
    image = Image.frombuffer("CMYK", (width, height), (255 - pixels).tobytes(), "raw", "CMYK", 0, 1)
    return np.asarray(image.convert("RGB"))


def _check_same_size(header: Header, width: int, height: int) -> None:
    """The limits were checked on `header`: a decoder must not have found another size."""
    if (width, height) != (header.width, header.height):
        raise ImageError(
            "undecodable",
            f"the image says {header.width} x {header.height} pixels in one place and"
            f" {width} x {height} in another",
        )


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation 2..8; other values mean none."""
    match orientation:
        case 2:
            turned = pixels[:, ::-1]
        case 3:
            turned = pixels[::-1, ::-1]
        case 4:
            turned = pixels[::-1]
        case 5:
            turned = pixels.swapaxes(0, 1)
        case 6:
            turned = np.rot90(pixels, -1)
        case 7:
            turned = pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = np.rot90(pixels, 1)
        case _:
            turned = pixels
    return np.ascontiguousarray(turned)


# The plugins are called by name: Pillow's forty other formats stay out of reach of a client.


def _decode_png(data: bytes, header: Header) -> Pixels:
    with PngImageFile(io.BytesIO(still_png(data))) as image:
        clear, depth = image.info.get("transparency"), data[24]
        # The one transparent colour is stored at the depth of the PNG; Pillow compares at 8 bits.
        if isinstance(clear, tuple):
            image.info["transparency"] = tuple(value >> depth - 8 for value in clear)
        elif isinstance(clear, int) and image.mode == "L":
            image.info["transparency"] = clear * 255 // (2**depth - 1)
        return _load(image, header)


def _decode_webp(data: bytes, header: Header) -> Pixels:
    with WebPImageFile(io.BytesIO(data)) as image:
        return _load(image, header)


def _load(image: Image.Image, header: Header) -> Pixels:
    _check_same_size(header, *image.size)
    image.load()
    return np.asarray(_to_grey_or_rgb(image))


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey with 16 bits a sample
        wide = np.asarray(image).astype(np.float32)
        grey = np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8)
        grey[wide == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")
