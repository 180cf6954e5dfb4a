"""What an embedding is made of."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

PENULTIMATE = "penultimate"


class EmbeddingPart(BaseModel):
    """One layer in an embedding that joins several, and how many of its columns it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int = Field(gt=0)


def penultimate_columns(parts: Sequence[EmbeddingPart]) -> slice:
    """Which columns of a joined embedding the head reads; of no parts, and of its own, all.

    >>> joined = [EmbeddingPart(name="layer 1", size=2), EmbeddingPart(name=PENULTIMATE, size=3)]
    >>> penultimate_columns(joined)
    slice(2, 5, None)
    """
    size = sum(part.size for part in parts)
    if parts and parts[-1].name == PENULTIMATE:
        return slice(size - parts[-1].size, size)
    return slice(None)
