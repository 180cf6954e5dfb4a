"""What the outlier score of one image costs, and what fewer dimensions cost in AUROC.

    .venv/bin/python bench/monitor.py score

One thread. The largest score there is: a bank of 5,000 images and an embedding of 1,280 numbers,
made at random, since time does not depend on what they are. Asked for: at most 1 ms for a single
image and 0.12 ms each in batches of 32. Dimensions: the emoji version of `foreign` scored again
with the neighbours sought in fewer and in more dimensions than the 256 that ship.
"""

from __future__ import annotations

import time

import numpy as np

from monitor_parts.detectors import ours
from monitor_parts.emoji import emoji_of
from monitor_parts.figures import Figures, parser_of
from monitor_parts.foreign import foreign_to_drawings, kinds_of
from monitoring import outlier
from monitoring.outlier import KNN_AND_RESIDUAL, KNN_AND_VIM, OutlierModel
from training.outlier_choice import auroc, embedding_choices
from training.splits import Split

SIZE, CLASSES, FIT = 1_280, 1_000, 6_000
BATCHES = {1: 1.0, 32: 0.12}  # images: milliseconds an image asked for
DIMENSIONS = (32, 64, 128, 256, 512)


def main() -> None:
    """Measure and print; the libraries' threads have to be one (OMP_NUM_THREADS=1)."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of each measurement.")
    options = parser.parse_args()
    figures = Figures("score", options)
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((FIT, SIZE), np.float32) @ np.diag(
        np.linspace(1, 0.05, SIZE, dtype=np.float32)
    )
    logits = rng.standard_normal((FIT, CLASSES), np.float32)
    model = OutlierModel.fit(embedding, logits)
    for images, most in BATCHES.items():
        taken = milliseconds(model, embedding[:images], logits[:images], options.seconds)
        figures.add(f"batches of {images}: ms an image", taken, ".3f", most=most)
    dimensions(figures, options.home)
    figures.end()


def milliseconds(
    model: OutlierModel,
    embedding: outlier.FloatArray,
    logits: outlier.FloatArray,
    seconds: float,
) -> list[float]:
    """Of an image, in ten parts of the time."""
    found = []
    for _ in range(10):
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 10:
            model.score(embedding, logits)
            runs += 1
        found.append(1_000 * (time.perf_counter() - start) / runs / len(embedding))
    return found


def dimensions(figures: Figures, home) -> None:
    """Mean AUROC over the kinds, by how many dimensions the neighbours are sought in."""
    version = emoji_of(home)
    kinds = kinds_of(version, foreign_to_drawings(version, home))
    fit, _ = version.fit_rows()
    validation, test = (version.split(its).outputs for its in (Split.VALIDATION, Split.TEST))
    choices = embedding_choices(version.manifest.embedding_parts, fit.embedding)
    seed = int(version.manifest.training["seed"])
    shipped = outlier.KNN_DIMENSIONS
    for count in DIMENSIONS:
        outlier.KNN_DIMENSIONS = count
        scorers = ours(fit.outputs, validation, choices, seed)
        row = {
            name: float(np.mean([auroc(scorer(its), scorer(test)) for its in kinds.values()]))
            for name, scorer in scorers.items()
            if name.startswith((KNN_AND_VIM, KNN_AND_RESIDUAL))
        }
        print(f"{count} dimensions: {', '.join(f'{k} {v:.3f}' for k, v in row.items())}")
        figures.keep(f"mean AUROC, emoji, {count} dimensions", row)
    outlier.KNN_DIMENSIONS = shipped
