"""The outlier self-check: is the score of this very model worth anything?

Every training ends with it. The score is measured on made foreign images, which need no
download, and on real ones where they are given, against validation images. Fine-tuning can break
the embedding that the score reads (on 1,143 emoji AUROC fell to 0.36), so layers and detector are
chosen by the same kind of evidence (`training.outlier_choice`), on other images: of each kind one
half chooses, and the other half is what is reported. A model whose self-check fails says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.bundle import Metric
from model.engines import Outputs
from model.images import Pixels
from training.outlier_choice import (
    CLASSES_LEFT_OUT,
    CLASSES_NEVER_LEARNED,
    Candidate,
    OutlierChoice,
)

LEAST_AUROC = 0.70  # of every kind
LEAST_MEAN_AUROC = 0.85
WEAK_AUROC = 0.90  # under which the statement names a kind
GIVEN = "given"  # the kind of real foreign images
IMAGES_PER_KIND = 500  # half of which choose
LEAST_TO_CHOOSE = 4  # images of a kind
_PATCHES = 4  # per side


@dataclass(frozen=True)
class ForeignKind:
    """How one kind of foreign images was told from validation images."""

    kind: str
    measured: Metric
    flagged_share: float
    images: int

    @property
    def auroc(self) -> float:
        """Without its interval."""
        return float(self.measured.value or 0)


@dataclass(frozen=True)
class SelfCheck:
    """What the self-check saw, and its verdict in one sentence."""

    kinds: tuple[ForeignKind, ...]
    passed: bool
    statement: str
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    baselines: tuple[Candidate, ...] = ()  # other scores, measured and never chosen


def deal_halves(
    foreign: Mapping[str, Outputs], seed: int
) -> tuple[dict[str, Outputs], dict[str, Outputs]]:
    """Of each kind the images that choose, and the others, which are reported.

    Of a kind of fewer than LEAST_TO_CHOOSE images none chooses: half of them would speak for
    little, and a figure on images that chose would flatter.
    """
    chooses: dict[str, Outputs] = {}
    reported: dict[str, Outputs] = {}
    for kind, its in foreign.items():
        count = len(its.logits)
        order = np.random.default_rng(seed).permutation(count)
        choosing = count // 2 if count >= LEAST_TO_CHOOSE else 0
        first, others = (np.sort(part) for part in np.split(order, [choosing]))
        if choosing:
            chooses[kind] = Outputs(its.logits[first], its.embedding[first])
        reported[kind] = Outputs(its.logits[others], its.embedding[others])
    return chooses, reported


def check_outlier_score(
    choice: OutlierChoice, measured: Mapping[str, Metric], flags: Mapping[str, NDArray[np.bool_]]
) -> SelfCheck:
    """The verdict on the score that was chosen, by images that did not choose.

    `measured` is its AUROC and `flags` the flags, N, of the images of every foreign kind.
    """
    kinds = tuple(
        ForeignKind(kind, measured[kind], float(its.mean()), len(its))
        for kind, its in flags.items()
    )
    passed, statement = _verdict(kinds, choice.chosen)
    return SelfCheck(kinds, passed, statement, choice.chosen, choice.candidates, choice.baselines)


def made_foreign_images(
    validation: Pixels, rng: np.random.Generator, count: int = IMAGES_PER_KIND
) -> dict[str, Pixels]:
    """Noise, shuffled patches of validation images, and rendered shapes; uint8, `count` each."""
    size = validation.shape[1]
    chosen = validation[rng.integers(len(validation), size=count)]
    shapes = np.stack([_rendered_shapes(size, rng) for _ in range(count)])
    return {
        "noise": rng.integers(0, 256, (count, size, size, 3), np.uint8),
        "shuffled patches": np.stack([_shuffled_patches(image, rng) for image in chosen]),
        "rendered shapes": shapes,
    }


def _shuffled_patches(image: Pixels, rng: np.random.Generator) -> Pixels:
    side = image.shape[0] // _PATCHES
    cut = image[: side * _PATCHES, : side * _PATCHES]
    grid = cut.reshape(_PATCHES, side, _PATCHES, side, 3).swapaxes(1, 2)
    patches = grid.reshape(-1, side, side, 3)[rng.permutation(_PATCHES**2)]
    shuffled = image.copy()
    shuffled[: side * _PATCHES, : side * _PATCHES] = (
        patches.reshape(_PATCHES, _PATCHES, side, side, 3).swapaxes(1, 2).reshape(cut.shape)
    )
    return shuffled


def _rendered_shapes(size: int, rng: np.random.Generator) -> Pixels:
    def colour() -> tuple[int, int, int]:
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        return red, green, blue

    # Drawn large and reduced, for smooth edges at any size.
    image = Image.new("RGB", (4 * size, 4 * size), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 7))):
        (left, right), (top, bottom) = np.sort(rng.integers(0, 4 * size, (2, 2)), axis=1)
        box = (int(left), int(top), int(right), int(bottom))
        if rng.random() < 0.5:
            draw.ellipse(box, fill=colour())
        else:
            draw.rectangle(box, fill=colour())
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _verdict(kinds: tuple[ForeignKind, ...], chosen: Candidate) -> tuple[bool, str]:
    mean = sum(kind.auroc for kind in kinds) / len(kinds)
    worst = min(kinds, key=lambda kind: kind.auroc)
    passed = mean >= LEAST_MEAN_AUROC and worst.auroc >= LEAST_AUROC
    seen = (
        f"{chosen.detector} on {chosen.embedding}: mean AUROC {mean:.3f} on foreign images, worst"
        f" {worst.auroc:.3f} ({worst.kind})"
    )
    left_out = chosen.auroc.get(CLASSES_LEFT_OUT)
    if left_out is not None:
        seen += f", {left_out:.3f} on classes that the score was fitted without"
    never_learned = chosen.auroc.get(CLASSES_NEVER_LEARNED)
    if never_learned is not None:
        seen += f", {never_learned:.3f} on classes that a second network was trained without"
    weak = [f"{kind.kind} ({kind.auroc:.2f})" for kind in kinds if kind.auroc < WEAK_AUROC]
    but = f" It is weak on {', '.join(weak)}." if weak else ""
    if not passed:
        return False, (
            f"Do not rely on the outlier flag of this model: {seen}; at least {LEAST_MEAN_AUROC} on"
            f" average and {LEAST_AUROC} on every kind are asked for.{but}"
        )
    return True, f"The outlier flag can be used: {seen}.{but}"
