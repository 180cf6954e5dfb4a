"""How foreign one image is to a model: KNN + ViM score and conformal p-value. numpy only.

The score is the sum of some robust z-scores, or the largest of them (`DETECTORS`), higher for more
foreign images:

- KNN: cosine distance of the embedding to its k-th nearest neighbour in a bank of embeddings of
  the fit split (Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors").
- ViM: length of the embedding outside the principal subspace, scaled to logits, less their
  log-sum-exp (Wang et al. 2022, "ViM: Out-Of-Distribution with Virtual-logit Matching").
- Residual: that length alone (the same paper's "Residual").
- Energy: less the log-sum-exp of the logits (Liu et al. 2020, "Energy-based Out-of-distribution
  Detection").

A head whose logits are large is sure of some foreign images, and in ViM's difference that hides how
far outside the subspace they lie. So "energy or residual" takes the larger of both: foreign is what
the head knows no class for, and what the embedding has no room for. Where several labels may apply
the logits say how many do; there scores without them are used (`WITHOUT_LOGITS`).

All read an embedding that may join several layers, or a part of it (`EmbeddingChoice`).

The p-value is conformal: for an image that is exchangeable with the calibration split, the
chance of p <= alpha is at most alpha, whatever the score is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

NEIGHBOURS = 10
BANK_LIMIT = 5_000
USUAL_BANK = 2_500  # more only for so many classes that they would have fewer than NEIGHBOURS each
KNN_DIMENSIONS = 256
RECORD_COMPONENTS = 32
CHUNK_ROWS = 1024  # compared with the whole bank at a time: 20 MB
KNN_AND_VIM = "KNN + ViM"
ENERGY_OR_RESIDUAL = "energy or residual"
KNN_AND_RESIDUAL = "KNN + residual"
PARTS = ("KNN", "ViM", "residual", "energy")
# Weights of the parts; in the order of what fails on the fewest networks.
DETECTORS = {
    KNN_AND_VIM: (1.0, 1.0, 0.0, 0.0),
    ENERGY_OR_RESIDUAL: (0.0, 0.0, 1.0, 1.0),
    "ViM": (0.0, 1.0, 0.0, 0.0),
    KNN_AND_RESIDUAL: (1.0, 0.0, 1.0, 0.0),
    "KNN": (1.0, 0.0, 0.0, 0.0),
    "residual": (0.0, 0.0, 1.0, 0.0),
}
TAKES_LARGEST = (ENERGY_OR_RESIDUAL,)  # the others add up
WITHOUT_LOGITS = (KNN_AND_RESIDUAL, "residual", "KNN")
_TO_DEVIATION = 1.4826  # median absolute deviation of a normal distribution to its deviation


@dataclass(frozen=True)
class EmbeddingChoice:
    """Which columns of an embedding the score reads, and what each is multiplied with.

    `columns` int64 K, `column_scale` float32 K; both empty: all of them, as they are.
    """

    columns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    column_scale: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, embedding: FloatArray) -> FloatArray:
        """The chosen columns, N x K, of an embedding N x D.

        >>> last = EmbeddingChoice(np.array([2]), np.array([10], np.float32))
        >>> last.of(np.array([[1, 2, 3]], np.float32)).tolist()
        [[30.0]]
        """
        if not len(self.columns):
            return embedding
        return np.asarray(embedding[:, self.columns] * self.column_scale, np.float32)


@dataclass(frozen=True)
class OutlierModel:
    """A fitted score. All arrays are float32; D is the size of what is read of the embedding.

    `center` (D) and `basis` (D x K, orthonormal, by falling variance) span the principal
    subspace; `bank` (K x B) holds unit embeddings in its coordinates, transposed for the matrix
    product; `vim_dimensions` of the K count as principal for ViM. `location` and `scale`
    (4) are median and robust deviation of the PARTS, `weights` (4) how much each counts; older
    bundles have the first 2 alone. `largest` (1) is 1 where the largest part counts, not the sum.
    `columns` and `column_scale` are those of the `EmbeddingChoice`. `calibration` holds the sorted
    scores of the calibration split; it is empty until `calibrated` is called.
    """

    center: FloatArray
    basis: FloatArray
    bank: FloatArray
    vim_dimensions: NDArray[np.int64]
    vim_scale: FloatArray
    location: FloatArray
    scale: FloatArray
    calibration: FloatArray
    weights: FloatArray = field(default_factory=lambda: _weights(KNN_AND_VIM))
    largest: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    columns: NDArray[np.int64] = field(default_factory=lambda: EmbeddingChoice().columns)
    column_scale: FloatArray = field(default_factory=lambda: EmbeddingChoice().column_scale)

    @classmethod
    def fit(
        cls,
        embedding: FloatArray,
        logits: FloatArray,
        *,
        choice: EmbeddingChoice | None = None,
        detector: str = KNN_AND_VIM,
        scaled_on: tuple[FloatArray, FloatArray] | None = None,
        seed: int = 0,
        bank_limit: int | None = None,
    ) -> Self:
        """Fit on embeddings (N x D) and logits (N x C) of the fit split.

        `choice` None reads the whole embedding; `detector` is one of DETECTORS. The bank is a
        random sample of `bank_limit` rows, None for `bank_rows`. Location and scale come from
        `scaled_on`, embeddings and logits of images that neither network nor score was fitted on: a
        subspace leaves little of its own images outside, and a head is surer of them. Without them,
        or with too few, they come from the rows outside the bank, or of the bank itself with each
        row's own entry left out.
        Raises ValueError for fewer than 2 * NEIGHBOURS rows.
        """
        if len(embedding) < 2 * NEIGHBOURS:
            raise ValueError(
                f"the outlier score needs at least {2 * NEIGHBOURS} fit images,"
                f" {len(embedding)} were given"
            )
        choice = choice or EmbeddingChoice()
        embedding = choice.of(embedding)
        bank_limit = bank_limit or bank_rows(logits.shape[1])
        order = np.random.default_rng(seed).permutation(len(embedding))
        in_bank, outside = order[:bank_limit], order[bank_limit : 2 * bank_limit]
        center = embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
        basis, vim_dimensions = _principal_subspace(embedding - center)
        bank, residual = _coordinates(embedding[in_bank], center, basis, vim_dimensions)[1:]
        vim_scale = logits.max(axis=1).mean() / max(float(residual.mean()), 1e-6)
        unscaled = cls(
            center=center,
            basis=basis,
            bank=np.ascontiguousarray(bank.T),
            vim_dimensions=np.array([vim_dimensions], np.int64),
            vim_scale=np.array([abs(vim_scale)], np.float32),
            location=np.zeros(len(PARTS), np.float32),
            scale=np.ones(len(PARTS), np.float32),
            calibration=np.zeros(0, np.float32),
        )
        if scaled_on is not None and len(scaled_on[0]) >= 2 * NEIGHBOURS:
            parts = unscaled._parts(choice.of(scaled_on[0]), scaled_on[1])[0]
        else:
            rows, own = (outside, 0) if len(outside) >= 200 else (in_bank, 1)
            parts = unscaled._parts(embedding[rows], logits[rows], skip=own)[0]
        location, scale = _robust_scale(parts)
        return replace(
            unscaled.with_detector(detector),
            location=location,
            scale=scale,
            columns=choice.columns,
            column_scale=choice.column_scale,
        )

    def with_detector(self, detector: str) -> Self:
        """The same model with other weights, one of DETECTORS, and no calibration scores."""
        return replace(
            self,
            weights=_weights(detector),
            largest=np.array([detector in TAKES_LARGEST], np.int64),
            calibration=self.calibration[:0],
        )

    def calibrated(self, scores: FloatArray) -> Self:
        """The same model with the scores of the calibration split, in any order."""
        return replace(self, calibration=np.sort(scores.astype(np.float32)))

    def score(self, embedding: FloatArray, logits: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Score a batch: scores (N), higher for more foreign, and principal components (N x P).

        P is RECORD_COMPONENTS or less; the components go into the prediction record.
        """
        parts, components = self._parts(self.choice.of(embedding), logits)
        known = parts[:, : len(self.weights)]
        z_scores = (known - self.location) / self.scale
        if self.largest.any():
            scores = z_scores[:, self.weights > 0].max(axis=1)
        else:
            scores = z_scores @ self.weights
        return scores.astype(np.float32), components[:, :RECORD_COMPONENTS]

    def p_value(self, scores: FloatArray) -> NDArray[np.float64]:
        """Conformal p-values (N): (1 + number of calibration scores >= score) / (n + 1).

        In float64: rounded to float32, 1 / 20 would lie above an alpha of 0.05.
        """
        if not len(self.calibration):
            raise ValueError("the outlier model has no calibration scores; call calibrated() first")
        return conformal_p_values(self.calibration, scores)

    @property
    def smallest_alpha(self) -> float:
        """The smallest rate at which anything can be flagged: 1 / (n + 1)."""
        return 1 / (len(self.calibration) + 1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays, for safetensors."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """Back from `to_arrays`; other keys are ignored.

        Bundles of schema 1 lack what was added with a default, and score by KNN + ViM.
        """
        found = {name: arrays[name] for name in cls.__dataclass_fields__ if name in arrays}
        found.setdefault("weights", _weights(KNN_AND_VIM)[: len(found["location"])])
        return cls(**found)

    @property
    def choice(self) -> EmbeddingChoice:
        """What it reads of an embedding."""
        return EmbeddingChoice(self.columns, self.column_scale)

    def _parts(
        self, embedding: FloatArray, logits: FloatArray, skip: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """The PARTS (N x 4), and principal components (N x K); in chunks."""
        starts = range(0, max(1, len(embedding)), CHUNK_ROWS)
        chunks = [
            self._parts_of_chunk(
                embedding[start : start + CHUNK_ROWS], logits[start : start + CHUNK_ROWS], skip
            )
            for start in starts
        ]
        parts, components = zip(*chunks, strict=True)
        return np.concatenate(parts), np.concatenate(components)

    def _parts_of_chunk(
        self, embedding: FloatArray, logits: FloatArray, skip: int
    ) -> tuple[FloatArray, FloatArray]:
        components, unit, residual = _coordinates(
            embedding, self.center, self.basis, int(self.vim_dimensions[0])
        )
        similarity = unit @ self.bank  # N x B
        kth = _kth_largest(similarity, min(NEIGHBOURS + skip, similarity.shape[1]))
        energy = -_log_sum_exp(logits)
        vim = self.vim_scale[0] * residual + energy
        return np.stack([1 - kth, vim, residual, energy], axis=1), components


def bank_rows(classes: int) -> int:
    """How many images the bank holds where there are enough.

    >>> [bank_rows(classes) for classes in (2, 400, 1000)]
    [2500, 4000, 5000]
    """
    return min(BANK_LIMIT, max(USUAL_BANK, NEIGHBOURS * classes))


def conformal_p_values(calibration: FloatArray, scores: FloatArray) -> NDArray[np.float64]:
    """Of scores, N, beside the sorted scores of a calibration split; see `OutlierModel.p_value`.

    >>> conformal_p_values(np.array([1, 2, 3], np.float32), np.array([0, 2.5, 4])).tolist()
    [1.0, 0.5, 0.25]
    """
    count = len(calibration)
    at_least = count - np.searchsorted(calibration, scores, side="left")
    return np.asarray((1 + at_least) / (count + 1))


def _weights(detector: str) -> FloatArray:
    return np.array(DETECTORS[detector], np.float32)


def _principal_subspace(centred: FloatArray) -> tuple[FloatArray, int]:
    """Basis (D x K) by falling variance, and how many of the K are principal for ViM."""
    rows, size = centred.shape
    if rows < size:  # few images of a large network: seconds less
        vectors = np.linalg.svd(centred, full_matrices=False)[2].T[:, ::-1]
    else:
        _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    # With fewer rows than dimensions the basis must not span every row, or no residual is left.
    dimensions = min(KNN_DIMENSIONS, size, max(2, rows // 2))
    basis = vectors[:, ::-1][:, :dimensions].astype(np.float32)
    return np.ascontiguousarray(basis), min(dimensions, max(1, size // 2))


def _coordinates(
    embedding: FloatArray, center: FloatArray, basis: FloatArray, vim_dimensions: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Principal components (N x K), those of the unit embedding (N x K), residual length (N)."""
    centred = embedding - center
    components = np.asarray(centred @ basis, np.float32)
    squared = np.einsum("nd,nd->n", centred, centred)
    length = np.sqrt(np.maximum(squared, 1e-12))
    principal = components[:, :vim_dimensions]
    inside = np.einsum("nk,nk->n", principal, principal)
    residual = np.sqrt(np.maximum(squared - inside, 0))
    unit = np.asarray(components / length[:, None], np.float32)
    return components, unit, np.asarray(residual, np.float32)


def _kth_largest(values: FloatArray, k: int) -> FloatArray:
    """The k-th largest value of each row (N x B to N), three times as fast as np.partition.

    The k largest lie in the k groups with the largest maxima; only those are partitioned. A group
    is of values that lie far apart, so that maxima of neighbouring groups are taken at once.
    """
    rows, count = values.shape
    width = math.isqrt(count // k)
    if width < 2:
        return np.asarray(np.partition(values, -k, axis=1)[:, -k])
    whole = count - count % width
    groups = values[:, :whole].reshape(rows, width, whole // width)
    best = np.argpartition(groups.max(axis=1), -k, axis=1)[:, None, -k:]
    few = np.take_along_axis(groups, best, axis=2).reshape(rows, k * width)
    rest = values[:, whole:]
    return np.asarray(np.partition(np.concatenate([few, rest], axis=1), -k, axis=1)[:, -k])


def _robust_scale(parts: FloatArray) -> tuple[FloatArray, FloatArray]:
    location = np.median(parts, axis=0)
    deviation = _TO_DEVIATION * np.median(np.abs(parts - location), axis=0)
    return location.astype(np.float32), np.maximum(deviation, 1e-6).astype(np.float32)


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    largest = logits.max(axis=1)
    total = np.exp(logits - largest[:, None]).sum(axis=1)
    return np.asarray(largest + np.log(total), np.float32)
