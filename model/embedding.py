"""What an embedding is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

PENULTIMATE = "penultimate"


class EmbeddingPart(BaseModel):
    """One layer in an embedding that joins several, and how many of its columns it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int = Field(gt=0)
