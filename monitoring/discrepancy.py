"""How far images lie from a reference, and how often chance would bring so many as far.

The distance is the maximum mean discrepancy (Gretton et al. 2012) of a Gaussian kernel as wide as
the median distance, by random Fourier features (Rahimi and Recht 2007): it sees a change of any
component, and of how they depend on each other. What chance does is drawn from the reference
itself: a part of it, in 500 draws for every number of images, against the rest. A p-value is the
tail of the gamma distribution, shifted, that has the mean, variance and skewness of those squared
distances (Pearson's type III): by counting draws none could be less than 1/501, and without the
skewness small ones come more often than they say. Where about a third of the reference is compared,
draws lie a little further away than new images do, and p-values are rather too large.

It is drawn when a version is packed and kept in its bundle. All random numbers are seeded by the
reference itself, so what is drawn anew for the same images is what is kept, to the bit on the same
machine.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from model.bundle import DISCREPANCY, REFERENCE, Bundle, save_arrays
from model.errors import BundleError
from monitoring.sampling import Sampler
from monitoring.streams import components_of, sampled_records

FloatArray = NDArray[np.float64]

FEATURES = 256
DRAWS = 500
SIZES = (10, 20, 50, 100, 200, 400, 700, 1_000)  # images; as much of a window is compared
_LEAST_SKEWNESS = 1e-3  # as good as none
_PAIRED = 500  # images whose distances to each other give the width


@dataclass(frozen=True)
class Discrepancy:
    """What one reference of N images, of P components each, is compared by.

    `location` and `scale` (float64, P) bring components to mean 0 and deviation 1; `directions`
    (float32, P x F) and `phases` (float32, F) are those of the features, `mean` (float64, F) is
    that of the reference's. `null` (float32, S x DRAWS) are distances of parts of the reference
    from the rest of it, for the numbers of images `sizes` (int64, S). The draws are kept, not their
    three moments, so that the curve can be held against them; they are 16 KB. `images` (int64, 1)
    is N, and `digest` (uint8, 32) the SHA-256 of the components.
    """

    location: FloatArray
    scale: FloatArray
    directions: NDArray[np.float32]
    phases: NDArray[np.float32]
    mean: FloatArray
    sizes: NDArray[np.int64]
    null: NDArray[np.float32]
    images: NDArray[np.int64]
    digest: NDArray[np.uint8]

    @classmethod
    def fit(cls, reference: FloatArray) -> Self:
        """Of components, N x P, all finite; N is at least 1."""
        digest = _digest(reference)
        rng = np.random.default_rng(_seed(digest))
        location, deviation = reference.mean(axis=0), reference.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        some = ((reference - location) / scale)[rng.permutation(len(reference))[:_PAIRED]]
        directions = rng.standard_normal((reference.shape[1], FEATURES)) / _median_distance(some)
        unfinished = cls(
            location=location,
            scale=scale,
            directions=directions.astype(np.float32),
            phases=rng.uniform(0, 2 * math.pi, FEATURES).astype(np.float32),
            mean=np.zeros(FEATURES),
            sizes=np.array(null_sizes(len(reference)), np.int64),
            null=np.zeros((0, DRAWS), np.float32),
            images=np.array([len(reference)], np.int64),
            digest=digest,
        )
        features = unfinished._features(reference)
        return cls(
            **unfinished.to_arrays()
            | {
                "mean": features.mean(axis=0, dtype=np.float64),
                "null": _null(features, unfinished.sizes, rng),
            }
        )

    def compare(self, window: FloatArray) -> tuple[float, float]:
        """P-value and distance of a window's components, M x P, at least `sizes[0]` of them.

        As many of them, drawn at random, as the largest of `sizes` that is not more than M.
        """
        place = int(np.searchsorted(self.sizes, len(window), side="right")) - 1
        if place < 0:
            raise ValueError(f"{len(window)} images; at least {self.sizes[0]} can be compared")
        order = np.random.default_rng(_seed(self.digest)).permutation(len(window))
        features = self._features(window[np.sort(order[: self.sizes[place]])])
        found = float(np.linalg.norm(features.mean(axis=0, dtype=np.float64) - self.mean))
        return _tail(self.null[place].astype(np.float64), found), found

    def is_of(self, reference: FloatArray) -> bool:
        """Whether it is what `fit` of these components, N x P, would give."""
        return (
            np.array_equal(self.digest, _digest(reference))
            and (self.images[0], self.location.size) == reference.shape
            and self.sizes.tolist() == null_sizes(len(reference))
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """Back from `to_arrays`; other keys are ignored.

        Raises ValueError that names the array where one is missing, of another type or shape, not
        finite, or of impossible values.
        """
        missing = sorted(set(cls.__dataclass_fields__) - set(arrays))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        its = cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        its._check_shapes()
        if not (its.scale > 0).all():
            raise ValueError("scale is to be above 0")
        if (its.null < 0).any():
            raise ValueError("null holds distances, and some are below 0")
        if its.sizes.tolist() != sorted(set(its.sizes.tolist())) or its.sizes[0] < 1:
            raise ValueError(f"sizes are to be numbers of images that rise: {its.sizes.tolist()}")
        return its

    def _check_shapes(self) -> None:
        components, sizes = self.location.size, self.sizes.size
        features, draws = self.phases.size, self.null.shape[-1] if self.null.ndim else 0
        if not (components and sizes and features and draws):
            raise ValueError("location, sizes, phases and null are not to be empty")
        valid: dict[str, tuple[type, tuple[int, ...]]] = {
            "location": (np.float64, (components,)),
            "scale": (np.float64, (components,)),
            "directions": (np.float32, (components, features)),
            "phases": (np.float32, (features,)),
            "mean": (np.float64, (features,)),
            "sizes": (np.int64, (sizes,)),
            "null": (np.float32, (sizes, draws)),
            "images": (np.int64, (1,)),
            "digest": (np.uint8, (32,)),
        }
        for name, (dtype, shape) in valid.items():
            its = getattr(self, name)
            if its.dtype != dtype or its.shape != shape:
                raise ValueError(
                    f"{name} is {its.dtype} {its.shape}; valid is {np.dtype(dtype)} {shape}"
                )
            if not np.isfinite(its).all():
                raise ValueError(f"{name} has values that are no numbers")

    def _features(self, components: FloatArray) -> NDArray[np.float32]:
        """M x F."""
        scaled = (components - self.location) / self.scale
        waves = np.cos(scaled @ self.directions + self.phases)
        return np.asarray(waves * math.sqrt(2 / len(self.phases)), np.float32)


def null_sizes(images: int) -> list[int]:
    """Numbers of images that parts of a reference are drawn in: at most a third of it.

    >>> null_sizes(300), null_sizes(20)
    ([10, 20, 50, 100], [6])
    """
    most = max(1, images // 3)
    return [size for size in SIZES if size <= most] or [most]


def load_discrepancy(bundle: Bundle, reference: FloatArray) -> Discrepancy | None:
    """What a bundle keeps; None where it keeps none, or one of other images than the reference.

    Raises `BundleError` where its file is none such.
    """
    if DISCREPANCY not in bundle.manifest.files:
        return None
    try:
        kept = Discrepancy.from_arrays(bundle.arrays(DISCREPANCY))
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(
            f"{bundle.path(DISCREPANCY)} cannot be used: {error}. Restore the file, or train again"
        ) from error
    return kept if kept.is_of(reference) else None


def write_discrepancy(directory: Path, sampler: Sampler) -> None:
    """Into a bundle that is being written, of the reference that is in it already.

    Of the images of it that the sampler takes, which is a new one.
    """
    components = components_of(sampled_records(directory / REFERENCE, sampler))
    save_arrays(directory / DISCREPANCY, Discrepancy.fit(components).to_arrays())


def _digest(components: FloatArray) -> NDArray[np.uint8]:
    content = np.ascontiguousarray(components, "<f8")
    its = hashlib.sha256(repr(content.shape).encode())
    its.update(content.tobytes())
    return np.frombuffer(its.digest(), np.uint8)


def _seed(digest: NDArray[np.uint8]) -> int:
    return int.from_bytes(digest[:8].tobytes())


def _median_distance(points: FloatArray) -> float:
    """Of pairs of points, N x P, that are not the same; 1 where all are."""
    from scipy.spatial.distance import pdist

    distances = pdist(points)
    apart = distances[distances > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def _null(
    features: NDArray[np.float32], sizes: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Distances of so many images of the reference from the rest of it, S x DRAWS."""
    count = len(features)
    total = features.sum(axis=0, dtype=np.float64)
    starts = [0, *sizes[:-1].tolist()]
    drawn, rest = sizes[:, None], np.maximum(count - sizes, 1)[:, None]
    null = np.zeros((len(sizes), DRAWS), np.float32)
    for draw in range(DRAWS):
        # In random order, so the first of them are a draw as well.
        some = features[rng.choice(count, int(sizes[-1]), replace=False)]
        sums = np.add.reduceat(some, starts, axis=0).cumsum(axis=0, dtype=np.float64)
        null[:, draw] = np.linalg.norm(sums / drawn - (total - sums) / rest, axis=1)
    return null


def _tail(null: FloatArray, found: float) -> float:
    """The chance of such a distance or a larger one, by three moments of the null's squares."""
    from scipy.stats import gamma

    squares = null**2
    mean, deviation = float(squares.mean()), float(squares.std())
    if deviation == 0:
        return float(found <= math.sqrt(mean))
    skewness = max(float((((squares - mean) / deviation) ** 3).mean()), _LEAST_SKEWNESS)
    least = mean - 2 * deviation / skewness
    return float(gamma.sf(found**2, 4 / skewness**2, loc=least, scale=deviation * skewness / 2))
