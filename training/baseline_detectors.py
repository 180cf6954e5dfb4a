"""What other outlier scores would have told, beside the one that a model uses.

Scores that read logits alone collapse on one network or another, which is why none of these is
shipped; that they are measured in every self-check shows what is gained, and what is not.

- MSP: the most probable class is improbable (Hendrycks and Gimpel 2017, "A Baseline for Detecting
  Misclassified and Out-of-Distribution Examples in Neural Networks"); of several labels, each with
  its own sigmoid.
- Energy: less the log-sum-exp of the logits (Liu et al. 2020, "Energy-based Out-of-distribution
  Detection"); of several labels the sum of the labels' own energies (Wang et al. 2021, "Can
  multi-label classification networks know what they don't know?").
- Mahalanobis: squared distance of the embedding to the nearest class mean under the covariance that
  all classes share (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution
  Samples and Adversarial Attacks"); of several labels to the mean of all images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Score = Callable[[FloatArray, FloatArray], FloatArray]
"""Embedding (N x D) and logits (N x C) to scores (N), higher for more foreign images."""

MSP, ENERGY, MAHALANOBIS = "MSP", "Energy", "Mahalanobis"
_RIDGE = 1e-6  # of the mean variance, for directions in which nothing varies


def fit_baselines(
    embedding: FloatArray, logits: FloatArray, targets: NDArray[np.int64]
) -> dict[str, Score]:
    """The scores by name, fitted on images of the fit split.

    `embedding` N x D, `logits` N x C; `targets` N class indices, or N x C of 0 and 1. Rows of no
    class (-1) are left out.
    """
    is_multi = targets.ndim == 2
    known = slice(None) if is_multi else np.flatnonzero(targets >= 0)
    groups = np.zeros(len(targets), np.int64) if is_multi else targets
    return {
        MSP: _several_msp if is_multi else _single_msp,
        ENERGY: _several_energy if is_multi else _single_energy,
        MAHALANOBIS: _mahalanobis(embedding[known], groups[known]),
    }


def _single_msp(embedding: FloatArray, logits: FloatArray) -> FloatArray:
    return np.asarray(-np.exp(logits.max(axis=1) - _log_sum_exp(logits)), np.float32)


def _several_msp(embedding: FloatArray, logits: FloatArray) -> FloatArray:
    return np.asarray(-logits.max(axis=1), np.float32)  # a sigmoid does not change the order


def _single_energy(embedding: FloatArray, logits: FloatArray) -> FloatArray:
    return np.asarray(-_log_sum_exp(logits), np.float32)


def _several_energy(embedding: FloatArray, logits: FloatArray) -> FloatArray:
    return np.asarray(-np.logaddexp(0, logits).sum(axis=1), np.float32)


def _mahalanobis(embedding: FloatArray, groups: NDArray[np.int64]) -> Score:
    rows = embedding.astype(np.float64)
    present = np.unique(groups)
    means = np.stack([rows[groups == group].mean(axis=0) for group in present])
    centred = rows - means[np.searchsorted(present, groups)]
    covariance = centred.T @ centred / len(rows)
    size = len(covariance)
    variance = max(float(np.trace(covariance)) / size, float(np.finfo(np.float32).tiny))
    ridge = _RIDGE * variance
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(size))).T
    white_means = means @ whiten

    def score(embedding: FloatArray, logits: FloatArray) -> FloatArray:
        white = embedding.astype(np.float64) @ whiten
        squared = (
            (white**2).sum(axis=1)[:, None]
            - 2 * white @ white_means.T
            + (white_means**2).sum(axis=1)
        )
        return np.asarray(squared.min(axis=1), np.float32)

    return score


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp.reduce(logits, axis=1))
