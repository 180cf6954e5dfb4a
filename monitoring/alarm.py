"""The alarm: what is told of it, and kept."""

from __future__ import annotations

from dataclasses import dataclass

LABELLED_MISTAKES = "labelled_mistakes"  # the stream of the labelled images


@dataclass(frozen=True)
class Alarm:
    """An alarm: when, in which stream, after how many sampled images since the last reset.

    `labelled_images` is how many labelled images there had been by then; None in alarms of before
    they were counted. `mistaken` says how many of the last ones the model was wrong on, where the
    alarm is theirs.
    """

    time: str
    stream: str
    after_images: int
    log10_evidence: float
    labelled_images: int | None = None
    mistaken: str = ""

    @property
    def is_of_labels(self) -> bool:
        """Whether labels raised it, and not the images."""
        return self.stream == LABELLED_MISTAKES

    @property
    def sentence(self) -> str:
        """The alarm, for people."""
        if self.is_of_labels:
            return (
                f"What people say has drifted from what the model says, {self.labelled_images}"
                f" labelled images after the last reset: {self.mistaken}."
            )
        return (
            f"The domain has drifted: {self.stream.replace('_', ' ')} changed"
            f" {self.after_images} sampled images after the last reset."
        )
