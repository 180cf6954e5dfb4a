"""Settings of recording and watching."""

from __future__ import annotations

from pydantic import Field

from model.settings import ModelSettings


class MonitoringSettings(ModelSettings):
    """Records, outlier flag."""

    records_url: str | None = Field(
        default=None,
        description="Folder or fsspec URL that prediction records are written to. "
        "Default: `records` in the home folder.",
    )
    record_queue_rows: int = Field(
        default=10_000,
        ge=1,
        description="Records that may wait to be written, per worker. When it is full, records "
        "are dropped and counted; requests never wait.",
    )
    record_flush_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Longest time in seconds that a record waits in memory before it is written.",
    )
    record_file_rows: int = Field(
        default=5_000, ge=1, description="Most records in one Parquet file."
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of in-domain images that may be flagged as out of domain. "
        "Default: what the model's manifest says (0.01).",
    )

    @property
    def records(self) -> str:
        """The records' URL with its default filled in."""
        return self.records_url or str(self.home.absolute() / "records")
