"""The last images' answers, and whether a change of the class mix alone explains them.

All images are looked at, not the sampled ones alone: near-duplicates, which the sampler leaves out,
belong to the class mix that is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import REFERENCE, Bundle, Manifest
from model.decision import probabilities
from monitoring.prior_shift import LEAST_IMAGES, PriorShift, untold
from monitoring.records import read_records
from monitoring.samples import Sample
from monitoring.streams import FloatArray, accepted_labels, components_of, logits_of, streams_of
from monitoring.truth import true_targets

WINDOW_IMAGES = 1_000
NUMBERS = ("outlier_score", "confidence", "brightness", "sharpness")
EXPLAINED_EVERY_IMAGES = 50


class ClassMix:
    """Keeps the last images; costs next to nothing until it is asked."""

    def __init__(self, bundle: Bundle, alpha: float) -> None:
        self._bundle = bundle
        self._alpha = alpha
        # With each image, how many images had been sampled before it.
        self._parts: deque[tuple[Sample, NDArray[np.int64]]] = deque()
        self._added = 0
        self._shift: PriorShift | None = None  # made when first needed
        self._made: tuple[int, dict[str, Any]] | None = None  # images added when it was made
        self._recognised: dict[str, Any] | None = None  # what was told before a restart

    def add(self, images: Sample, sampled_before: list[int]) -> None:
        """More images, the newest last, and how many had been sampled before each of them."""
        kept = slice(max(0, len(images) - WINDOW_IMAGES), None)
        self._parts.append((images.rows(kept), np.array(sampled_before[kept], np.int64)))
        self._added += len(images)
        while sum(len(its) for its, _ in self._parts) - len(self._parts[0][0]) >= WINDOW_IMAGES:
            self._parts.popleft()

    def clear(self) -> None:
        """Begin anew."""
        self._parts.clear()
        self._made = self._recognised = None

    @property
    def images(self) -> int:
        """How many are kept, since the start or since they were cleared."""
        return min(WINDOW_IMAGES, sum(len(its) for its, _ in self._parts))

    @property
    def has_too_few(self) -> bool:
        """Whether it is too early to tell, so that nothing may be concluded from silence."""
        return self._recognised is None and self.images < LEAST_IMAGES

    def to_state(self) -> dict[str, Any] | None:
        """What was told last, where it was recognised; the images are not kept."""
        told = self._recognised if self._made is None else self._made[1]
        return told if told is not None and told["recognised"] else None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `to_state`: what was told stands until as many images say otherwise."""
        self._recognised = None if state is None else dict(state)

    def explain(self, sampled: int) -> dict[str, Any]:
        """What `PriorShift.explain` says of the images since there were so many sampled ones.

        Renewed after every few images.
        """
        # Its time grows with the square of the classes, so with many of them it is rarer.
        every = max(EXPLAINED_EVERY_IMAGES, len(self._bundle.manifest.classes) ** 2 // 1_000)
        if self._made is None or self._added - self._made[0] >= every:
            self._made = self._added, self._unless_recognised_before(self._explain(sampled))
        return self._made[1]

    def _unless_recognised_before(self, now: dict[str, Any]) -> dict[str, Any]:
        """What was told before a restart, while there are too few images to take it back."""
        before = self._recognised
        if before is not None and self.images < before["images"] and not now["within_classes"]:
            return before
        self._recognised = None
        return now

    def _explain(self, sampled: int) -> dict[str, Any]:
        if not self._parts:
            return untold(0)
        if self._shift is None:
            self._shift = prior_shift_of(self._bundle, self._alpha)
        images = Sample.joined([its for its, _ in self._parts])
        before = np.concatenate([counts for _, counts in self._parts])
        rows = np.flatnonzero(before >= sampled)[-WINDOW_IMAGES:]
        try:
            return self._shift.explain(images.rows(rows))
        except np.linalg.LinAlgError as error:  # nothing else must fail for want of it
            return untold(len(rows), f"The class mix cannot be told: {error}.")


def is_exclusive(manifest: Manifest) -> bool:
    """Whether the probabilities of an image sum to one: those of a softmax do."""
    return manifest.task == "single" and manifest.calibration.method != "platt"


def prior_shift_of(bundle: Bundle, alpha: float) -> PriorShift:
    """Against the calibration split of a bundle."""
    manifest = bundle.manifest
    return PriorShift(
        reference_sample(bundle, alpha),
        manifest.classes,
        manifest.thresholds,
        task=manifest.task,
        exclusive=is_exclusive(manifest),
    )


def reference_sample(bundle: Bundle, alpha: float) -> Sample:
    """The calibration split, with its true labels where the bundle holds them."""
    manifest = bundle.manifest
    records = read_records(str(bundle.path(REFERENCE)))
    targets = true_targets(bundle)
    return sample_of(
        streams_of(records, manifest),
        components_of(records),
        probabilities(logits_of(records), manifest.calibration, manifest.task),
        accepted_labels(records, manifest.classes),
        records["p_value"].to_numpy() <= alpha,
        targets if targets is not None and len(targets) == len(records) else None,
    )


def sample_of(
    streams: dict[str, FloatArray],
    components: FloatArray,
    chances: NDArray[np.floating],
    given: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    targets: NDArray[Any] | None = None,
) -> Sample:
    """Of streams and components, calibrated probabilities N x C and labels given N x C."""
    return Sample(
        chances.astype(np.float64),
        given,
        {name: streams[name] for name in NUMBERS},
        components,
        flagged,
        targets,
    )
