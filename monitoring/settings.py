"""Settings of recording and watching."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from model.settings import ModelSettings, address, split_address

# The client that asks on the service's own machine where no keys are wanted (`service.clients`).
THIS_MACHINE = "this-machine"
_WRITING_SECONDS = 1.0  # until a file that is begun can be seen, and what clocks differ by


class MonitoringSettings(ModelSettings):
    """Records, outlier flag, monitor."""

    records_url: str | None = Field(
        default=None,
        description="Folder or fsspec URL that prediction records are written to. "
        "Default: `records` in the home folder.",
    )
    record: bool = Field(
        default=True,
        description="Write a record of every prediction; without records nothing is watched.",
    )
    record_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the predictions that a record is written of, drawn at random.",
    )
    record_keep_seconds: float | None = Field(
        default=None,
        ge=86_400,
        description="Records of days that ended longer ago are removed. Not set: all are kept.",
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

    monitor_on: str = Field(
        default="127.0.0.1:3001", description="Address and port that the monitor listens on."
    )
    monitor_seconds: float = Field(
        default=1.0, gt=0, description="How often the monitor looks for new records, in seconds."
    )
    record_merge_seconds: float | None = Field(
        default=None,
        ge=0,
        description="How long the monitor waits for the records of other workers and replicas, in "
        "seconds, so that all count in order of time; 0: it takes what is there. Default: "
        "PLUMBLINE_RECORD_FLUSH_SECONDS and one second.",
    )
    false_alarm_images: float = Field(
        default=100_000,
        ge=100,
        description="c: the chance of a false alarm within m sampled images is at most m / c, "
        "anew after every reset.",
    )
    sample_window_images: int = Field(
        default=1_000,
        ge=1,
        description="How many images back the sampler looks for a near-duplicate.",
    )
    sample_near_bits: int = Field(
        default=2,
        ge=-1,
        le=64,
        description="Perceptual hashes that differ in so many of 64 bits are near-duplicates; "
        "-1: only equal bytes are.",
    )
    sample_client_images: int = Field(
        default=100,
        ge=1,
        description="Most images of one client that count as evidence in an interval; not "
        "applied while there is one client alone.",
    )
    sample_client_seconds: float = Field(
        default=60.0, gt=0, description="Length of that interval, in seconds."
    )

    labelled_at_random: bool = Field(
        default=False,
        description="Whether the images that feedback comes for are drawn at random, whatever was "
        "predicted. Then the model's mistakes on them are held to those on its calibration split; "
        "otherwise to the labelled images before them alone.",
    )

    store_images: bool = Field(
        default=False,
        description="Keep predicted images in `images` in the home folder, for the monitor's page "
        "and for retraining. `make up` switches it on.",
    )
    store_images_bytes: int = Field(
        default=2**30,
        ge=0,
        description="Most bytes of images kept; unflagged ones go first, the oldest before others.",
    )
    store_images_seconds: float = Field(
        default=7 * 86_400.0, gt=0, description="How long images are kept, in seconds."
    )

    report_images: int = Field(
        default=1_000,
        ge=0,
        description="After so many images the monitor writes an Evidently report of them into "
        "`evidently` in the home folder; 0: never.",
    )
    retrain_on_alarm: bool = Field(
        default=True,
        description="Whether an alarm starts a retraining, once there are labels enough.",
    )
    retrain_least_labels: int = Field(
        default=300,
        ge=2,
        description="Fewest images with new labels, since the alarm and kept by "
        "PLUMBLINE_STORE_IMAGES, that a retraining starts with.",
    )
    retrain_cooldown_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="Least time between two retrainings that alarms start, in seconds.",
    )

    retrain_trusted_clients: str = Field(
        default="",
        description="Clients, separated by commas, whose labels count in full toward "
        "PLUMBLINE_RETRAIN_LEAST_LABELS; what any other labelled alone makes up at most half of "
        "it. `this-machine` is whoever asks on the service's own machine without API keys; "
        "`plumbline up` trusts it where nothing else is said.",
    )

    @field_validator("monitor_on", mode="after")
    @classmethod
    def _monitor_has_a_port(cls, value: str) -> str:
        return address(value)

    @property
    def monitor_address(self) -> tuple[str, int]:
        """Host and port that the monitor listens on."""
        return split_address(self.monitor_on)

    @property
    def merge_seconds(self) -> float:
        """How long records wait for others of their time, with its default filled in."""
        if self.record_merge_seconds is None:
            return self.record_flush_seconds + _WRITING_SECONDS
        return self.record_merge_seconds

    @property
    def trusted_clients(self) -> frozenset[str]:
        """Whose labels count in full."""
        names = (its.strip() for its in self.retrain_trusted_clients.split(","))
        return frozenset(its for its in names if its)

    @property
    def images(self) -> Path:
        """Folder of stored images."""
        return self.home.absolute() / "images"

    @property
    def evidently(self) -> Path:
        """Evidently's workspace, which `plumbline monitor reports` shows."""
        return self.home.absolute() / "evidently"

    @property
    def records(self) -> str:
        """The records' URL with its default filled in."""
        return self.records_url or str(self.home.absolute() / "records")
