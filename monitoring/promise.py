"""Whether the sampled images can be promised anything about: do they depend on each other?

The false-alarm rate of the evidence holds for exchangeable images. What can be seen of dependence
is measured here, and past a limit the promise is withdrawn; while it is, there is no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monitoring.sampling import Dependence, FloatArray, Repeats, Sampler

DEPENDENCE_IMAGES = 400
# Fewer say too little of dependence, so no alarm is raised on them: on 60 to 80 images class runs
# of ten looked independent in one of nine orders, and raised one.
LEAST_DEPENDENCE_IMAGES = 120
LEAST_DEPENDENCE_LABELS = 60  # of one stream, not the largest of seven
# Correlation of neighbours past which nothing is promised, beside three standard errors of its
# estimate; the promise comes back under half of it.
DEPENDENCE_LIMIT = 0.15
# In standard errors, past which no alarm is raised either. It is the largest over streams and
# distances: independent images reach it in a look or two of a hundred, too many for the promise.
DEPENDENCE_ERRORS_AT_ALARM = 3.6
FAR_DEPENDENCE_LIMIT = 0.15  # beside what chance does, which is taken off already
REPEATS_BACK = 1_000  # sampled images that an answer is compared with
# Share of them answered as another past which nothing is promised; it comes back under half of it.
REPEATED_ANSWERS_LIMIT = 0.1
REPEATED_LIMIT = 0.9  # share of near-duplicates past which what is left is no sample


class Promise:
    """Follows the sampled images; `holds` is as it was found when `renew` was last called."""

    def __init__(self, *, least_images: int = LEAST_DEPENDENCE_IMAGES) -> None:
        """On fewer than `least_images` nothing is said of dependence."""
        self._least_images = least_images
        self.dependence = Dependence(DEPENDENCE_IMAGES)
        self.repeats = Repeats(back=REPEATS_BACK, window_images=DEPENDENCE_IMAGES)
        self.holds = True
        self._why_no_sample: str | None = None

    def add(self, p_values: Sequence[float] | FloatArray, answer: str) -> None:
        """One sampled image: its p-values, one per stream, and what the model answered."""
        self.dependence.add(p_values)
        self.repeats.add(answer)

    def renew(self, sampler: Sampler | None = None) -> str | None:
        """Look again, at the sampler too where it is given; why nothing can be promised, or None.

        The sampler may have seen images that are no evidence yet: it is to be looked at in between,
        so that it makes no difference how many come at once.
        """
        if sampler is not None:
            self._why_no_sample = _why_no_sample(sampler)
        why = self.why_not
        self.holds = why is None
        return why

    def allows_alarm(self) -> bool:
        """Whether an alarm may be raised, by a stricter limit; if not, the promise is withdrawn."""
        near, images = self.dependence.correlation, self.dependence.images
        limit = DEPENDENCE_ERRORS_AT_ALARM / math.sqrt(max(1, images))
        self.holds = self.holds and (near is None or near <= limit)
        return self.holds

    @property
    def has_too_few(self) -> bool:
        """Whether there are too few images to say whether they depend on each other."""
        return self.dependence.images < self._least_images

    @property
    def why_not(self) -> str | None:
        """Why the sampled stream cannot be taken as images independent of each other, or None."""
        if self._why_no_sample is not None:
            return self._why_no_sample
        if self.has_too_few:
            return None
        strictness = 1 if self.holds else 0.5
        if self.repeats.share > REPEATED_ANSWERS_LIMIT * strictness:
            return f"{self.repeats.share:.0%} of the last sampled images come again as they were"
        return why_dependent(self.dependence, strictness)

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "dependence": self.dependence.to_state(),
            "repeats": self.repeats.to_state(),
            "promising": self.holds,
            "no_sample": self._why_no_sample,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self.dependence.restore(state["dependence"])
        self.repeats.restore(state["repeats"])
        self.holds = bool(state["promising"])
        self._why_no_sample = state.get("no_sample")  # states of before have none


def _why_no_sample(sampler: Sampler) -> str | None:
    if not sampler.window_is_full or sampler.repeated_share <= REPEATED_LIMIT:
        return None
    return (
        f"{sampler.repeated_share:.0%} of the last images repeat others; what is left is no sample"
    )


def why_dependent(dependence: Dependence, strictness: float = 1.0) -> str | None:
    """How images depend on each other that are correlated past the limits, or None.

    `strictness` under 1 lowers the limits, as for a promise that is to come back.
    """
    far = dependence.far_correlation
    if far is not None and far > FAR_DEPENDENCE_LIMIT * strictness:
        return f"images depend on others further away (correlation {far:.2f})"
    near, images = dependence.correlation, dependence.images
    if near is not None and near > (DEPENDENCE_LIMIT + 3 / math.sqrt(images)) * strictness:
        return f"neighbouring images depend on each other (correlation {near:.2f})"
    return None
