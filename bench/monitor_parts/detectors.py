"""Outlier scores to hold ours against: those a training measures, and pytorch-ood's on features.

Each takes the fit images and gives a function from outputs to scores, higher for more foreign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_ood import detector as ood

from model.engines import Outputs
from monitoring.outlier import DETECTORS, EmbeddingChoice, OutlierModel
from training.baseline_detectors import Score, fit_baselines

Scores = NDArray[np.float32]
Scorer = Callable[[Outputs], Scores]


def ours(
    fit: Outputs, validation: Outputs, choices: Mapping[str, EmbeddingChoice], seed: int
) -> dict[str, Scorer]:
    """Every detector on every embedding that a training tries."""
    found: dict[str, Scorer] = {}
    for embedding, choice in choices.items():
        fitted = OutlierModel.fit(
            fit.embedding,
            fit.logits,
            choice=choice,
            scaled_on=(validation.embedding, validation.logits),
            seed=seed,
        )
        for detector in DETECTORS:
            model = fitted.with_detector(detector)
            found[f"{detector} on {embedding}"] = _scorer(model)
    return found


def _scorer(model: OutlierModel) -> Scorer:
    return lambda outputs: model.score(outputs.embedding, outputs.logits)[0]


def plain(fit: Outputs, targets: NDArray[np.int64], choice: EmbeddingChoice) -> dict[str, Scorer]:
    """MSP, Energy and Mahalanobis, as a training measures them."""
    baselines = fit_baselines(choice.of(fit.embedding), fit.logits, targets)
    return {name: _reading(choice, score) for name, score in baselines.items()}


def _reading(choice: EmbeddingChoice, score: Score) -> Scorer:
    return lambda outputs: score(choice.of(outputs.embedding), outputs.logits)


def pytorch_ood(
    fit: Outputs, targets: NDArray[np.int64], choice: EmbeddingChoice
) -> dict[str, Scorer]:
    """Those that take features or logits alone, as they are set by default."""
    features = torch.from_numpy(choice.of(fit.embedding).astype(np.float32))
    labels = torch.from_numpy(targets)
    found: dict[str, Scorer] = {}
    for name, made in {
        "KNN": ood.KNN(None),
        "Mahalanobis": ood.Mahalanobis(None),
        "relative Mahalanobis": ood.RMD(None),
    }.items():
        made.fit_features(features, labels)
        found[f"pytorch-ood {name}"] = _of_features(made, choice)
    for name, method in {
        "MSP": ood.MaxSoftmax.score,
        "Energy": ood.EnergyBased.score,
        "MaxLogit": ood.MaxLogit.score,
        "Entropy": ood.Entropy.score,
    }.items():
        found[f"pytorch-ood {name}"] = _of_logits(method)
    return found


def _of_features(made: ood.Detector, choice: EmbeddingChoice) -> Scorer:
    def score(outputs: Outputs) -> Scores:
        found = made.predict_features(torch.from_numpy(choice.of(outputs.embedding)))
        return np.asarray(found, np.float32)

    return score


def _of_logits(method: Callable[[torch.Tensor], torch.Tensor]) -> Scorer:
    return lambda outputs: np.asarray(method(torch.from_numpy(outputs.logits)), np.float32)
