"""One loaded model version: images in, judgements out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import OUTLIER, Bundle
from model.conformal_sets import label_set, load_sets, no_sets
from model.decision import confidence, decide, probabilities
from model.engines import Engine
from model.images import InputSpec, Pixels
from model.views import mean_over_views, means_the_same_mirrored
from monitoring.outlier import OutlierModel
from service.batch_size import choose_batch_size, take_over


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the model says of one image.

    `labels` is empty when none of the classes applies; `p_value` is the conformal p-value of
    the outlier `score`, which is higher for more foreign images.
    """

    labels: list[str]
    probabilities: NDArray[np.float32]
    confidence: float
    score: float
    p_value: float
    flagged: bool
    logits: NDArray[np.float32]
    components: NDArray[np.float32]

    @property
    def is_finite(self) -> bool:
        """Whether score and probabilities are numbers: where one of these is NaN, confidence is."""
        return isfinite(self.score) and isfinite(self.confidence)

    def as_answer(
        self, classes: Sequence[str], least_probability: float | None = None
    ) -> dict[str, Any]:
        """The judgement as the HTTP contract writes it, without id and error.

        With a least probability also the prediction set: the classes that reach it.
        """
        chances = [round(float(chance), 6) for chance in self.probabilities]
        answer: dict[str, Any] = {
            "labels": self.labels,
            "probabilities": dict(zip(classes, chances, strict=True)),
            "out_of_domain": {
                "flagged": self.flagged,
                "p_value": round(self.p_value, 6),
                "score": round(self.score, 4),
            },
        }
        if least_probability is not None:
            answer["set"] = label_set(self.probabilities, least_probability, classes)
        return answer


class Predictor:
    """A verified bundle with its network loaded into an engine."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        stage: str,
        alpha: float | None = None,
        augment: bool = False,
    ) -> None:
        """`augment` averages over several views of an image; see `model.views`."""
        self.bundle = bundle
        self.engine = engine
        self.stage = stage
        self.batch_images = 1  # until it is warm
        self.alpha = bundle.manifest.outlier.alpha if alpha is None else alpha
        self._augment = augment
        self._outlier = OutlierModel.from_arrays(bundle.arrays(OUTLIER))
        self._sets = load_sets(bundle)

    @property
    def input(self) -> InputSpec:
        """How images have to be prepared."""
        return self.bundle.manifest.input

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.bundle.manifest.classes

    def least_probability(self, coverage: float) -> float:
        """Of a class in a prediction set of this coverage.

        Raises `CoverageError` when the version cannot promise it, or has no sets.
        """
        if self._sets is None:
            raise no_sets(self.bundle)
        return self._sets.threshold(coverage)

    def warm_up(self, batch_images: int | None = None, *, measured: int | None = None) -> None:
        """Run batches, so that the first requests do not pay for it; choose the largest.

        `batch_images` is the largest, where it is given. Else `measured` is, where that is known
        of a model whose batches take as long.
        """
        size = self.input.size
        black = np.zeros((size, size, 3), np.uint8)

        def run(count: int) -> None:
            self.predict([black] * count)

        if batch_images is not None:
            self.batch_images = batch_images
            for count in sorted({1, min(2, batch_images), batch_images}):
                run(count)
        elif measured is not None:
            self.batch_images = take_over(run, measured)
        else:
            self.batch_images = choose_batch_size(run)

    def predict(self, images: Sequence[Pixels]) -> list[Judgement]:
        """Judge prepared images, each uint8 of shape size x size x 3, in one batch."""
        manifest, batch = self.bundle.manifest, np.stack(images)
        logits, embedding = self.engine.run(batch)
        chances = probabilities(logits, manifest.calibration, manifest.task)
        if self._augment:
            chances = self._mean_over_views(chances, batch)
        labels = decide(chances, manifest.thresholds, self.classes, manifest.task)
        sure = confidence(chances, manifest.task)
        scores, components = self._outlier.score(embedding, logits)
        p_values = self._outlier.p_value(scores)
        return [
            Judgement(
                labels=labels[row],
                probabilities=chances[row],
                confidence=float(sure[row]),
                score=float(scores[row]),
                p_value=float(p_values[row]),
                flagged=bool(p_values[row] <= self.alpha),
                logits=logits[row],
                components=components[row],
            )
            for row in range(len(images))
        ]

    def _mean_over_views(self, chances: NDArray[np.float32], batch: Pixels) -> NDArray[np.float32]:
        manifest = self.bundle.manifest

        def chances_of(view: Pixels) -> NDArray[np.float32]:
            return probabilities(self.engine.run(view).logits, manifest.calibration, manifest.task)

        mirror = means_the_same_mirrored(manifest.training)
        return mean_over_views(chances, batch, chances_of, mirror=mirror)
