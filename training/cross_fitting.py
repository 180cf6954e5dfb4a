"""Conformal scores from every image of a small data set, each by a model that did not see it.

A calibration split of a few dozen images says little: n scores allow no rate under 1 / (n + 1).
Where the body of the network stayed as it was pretrained, images that were fitted on embed like
new ones, and only the head and the outlier bank know them. Both are cheap to fit anew without a
fifth of the images, which is then scored (Vovk 2015, "Cross-conformal predictors"). A body that was
fine-tuned knows its images by heart and would have to be trained five times: that is not done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.engines import Outputs
from monitoring.outlier import NEIGHBOURS, OutlierModel
from training.loss import Targets
from training.refitted_head import HeadRecipe

FOLDS = 5
MOST_CALIBRATION = 99  # images, from which a rate of 1 % can be told without cross-fitting


def can_cross_fit(calibration_images: int, fit_images: int) -> bool:
    """Whether the calibration split is too small by itself, and there is enough to fit folds on."""
    rows = calibration_images + fit_images
    return calibration_images < MOST_CALIBRATION and rows * (FOLDS - 1) // FOLDS > 2 * NEIGHBOURS


def cross_fitted_scores(
    embedding: NDArray[np.float32],
    targets: Targets,
    *,
    scaled_on: NDArray[np.float32],
    like: OutlierModel,
    detector: str,
    head: HeadRecipe,
) -> NDArray[np.float32]:
    """Outlier scores N of embeddings N x D, each by a head and a bank of the other folds.

    The score reads what `like` does, by the `detector`, and is scaled on embeddings M x D, as it
    was.
    """
    folds = np.random.default_rng(head.seed).permutation(len(embedding)) % FOLDS
    scores = np.empty(len(embedding), np.float32)
    for fold in range(FOLDS):
        held_out = folds == fold
        refitted = head.fit(embedding[~held_out], targets[~held_out])
        logits = refitted.logits(embedding)
        others = Outputs(logits[~held_out], embedding[~held_out])
        model = OutlierModel.fit(
            others.embedding,
            others.logits,
            choice=like.choice,
            detector=detector,
            scaled_on=(scaled_on, refitted.logits(scaled_on)),
            seed=head.seed,
        )
        scores[held_out] = model.score(embedding[held_out], logits[held_out])[0]
    return scores
