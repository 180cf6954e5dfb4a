"""A linear head fitted anew on some of the images, where only the head of a network was fitted.

Where the body of a network stayed as it was pretrained, what the network would say without some
images, or without a class, can be known: the head is all that has seen them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.decision import Task
from training.linear_head import FittedHead, fit_head
from training.loss import Targets
from training.settings import HeadName

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeadRecipe:
    """How the head of a version was fitted; it reads the `penultimate` columns of an embedding."""

    penultimate: slice
    class_count: int
    task: Task
    weight_decay: float
    head: HeadName = "softmax"
    learn_none: bool = False
    seed: int = 0

    def without_a_class(self) -> Self:
        """The same for one class less."""
        return replace(self, class_count=self.class_count - 1)

    def fit(self, embedding: Floats, targets: Targets) -> RefittedHead:
        """On embeddings N x D and their targets."""
        given = np.ascontiguousarray(embedding[:, self.penultimate]), np.asarray(targets)
        fitted = fit_head(
            *(*given, *given),
            class_count=self.class_count,
            task=self.task,
            weight_decay=self.weight_decay,
            head=self.head,
            learn_none=self.learn_none,
            seed=self.seed,
            device="cpu",
        )
        return RefittedHead(fitted, self.penultimate)


@dataclass(frozen=True)
class RefittedHead:
    """What a `HeadRecipe` gives."""

    fitted: FittedHead
    penultimate: slice

    def logits(self, embedding: Floats) -> Floats:
        """N x C of embeddings N x D."""
        features = torch.from_numpy(np.ascontiguousarray(embedding[:, self.penultimate]))
        given = features @ self.fitted.weight.T + self.fitted.bias
        return np.asarray(given.numpy(), np.float32)
