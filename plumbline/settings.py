"""Settings of the command line as a client."""

from __future__ import annotations

from pydantic import Field

from model.settings import PlumblineSettings


class ClientSettings(PlumblineSettings):
    """What `plumbline predict --url` needs."""

    api_key: str | None = Field(
        default=None, description="API key that `plumbline predict --url` sends."
    )
