"""Settings of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from model.engine_names import EngineName, Precision
from model.limits import ImageLimits
from model.settings import address, split_address
from monitoring.settings import MonitoringSettings
from service.default_engine import likely_engine

MEBIBYTE = 2**20
# The supervisor's process number, told to its workers; no setting, so not named like one.
SUPERVISOR_VARIABLE = "_PLUMBLINE_SUPERVISOR"


class ServiceSettings(MonitoringSettings):
    """Where to listen, how to run the network, and the limits of the door."""

    serve_on: str = Field(
        default="127.0.0.1:3000", description="Address and port that the service listens on."
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Worker processes. Default: one per core, or one per GPU where torch runs on "
        "GPUs. Each sees one GPU alone; beyond one per GPU they share.",
    )
    engine: EngineName = Field(
        default_factory=likely_engine,
        description="Engine that runs the network: openvino or torch. Default: torch where there "
        "is an NVIDIA GPU that torch can use, else openvino.",
    )
    precision: Precision | None = Field(
        default=None,
        description="Precision that the engine runs in: f32, bf16 or int8 (openvino alone). "
        "Default: the one that its figures were measured in; the fastest other one whose gate it "
        "passed where the processor would emulate that.",
    )
    engine_threads: int = Field(
        default=1, ge=1, description="Compute threads of the engine, per worker."
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File of API keys, made by `plumbline keys add`. With one, `/v1/*` and "
        "`/metrics` need a key of their scope.",
    )
    allow_without_keys: bool = Field(
        default=False,
        description="Serve beyond loopback without API keys, to whoever reaches the port.",
    )
    batch_images: int | None = Field(
        default=None,
        ge=1,
        description="Most images in one batch. Default: measured when the first model of its kind "
        "is loaded (architecture, input, embedding, engine, precision), the most that come within "
        "3 % of the best pace and take at most a tenth of a second. On a GPU its memory has to "
        "hold the batch.",
    )
    queue_images: int = Field(
        default=256,
        ge=1,
        description="Most images inside a worker, from the head of the request to its answer.",
    )
    deadline_seconds: float = Field(
        default=5.0,
        gt=0,
        description="Longest time from a whole request to its answer, where the request itself "
        "names none by `X-Request-Deadline-Ms`.",
    )
    limit_deadline_seconds: float | None = Field(
        default=None,
        ge=0.001,
        description="Longest time that a request may name by `X-Request-Deadline-Ms`, from its "
        "arrival to its answer. Not set: that of `PLUMBLINE_DEADLINE_SECONDS`.",
    )
    body_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Longest time for the head of a request to arrive, and for its body.",
    )
    limit_part_bytes: int = Field(
        default=10 * MEBIBYTE, ge=1, description="Largest image, in bytes."
    )
    limit_request_bytes: int = Field(
        default=64 * MEBIBYTE, ge=1, description="Largest request body, in bytes."
    )
    limit_parts: int = Field(default=64, ge=1, description="Most images in one request.")
    limit_pixels: int = Field(
        default=40_000_000, ge=1, description="Largest image, in pixels before decoding."
    )
    limit_least_side_pixels: int = Field(
        default=4, ge=1, description="Smallest side of an image, in pixels."
    )
    limit_aspect: float = Field(
        default=100.0, ge=1, description="Largest ratio of an image's sides."
    )
    limit_decoded_bytes: int = Field(
        default=256 * MEBIBYTE,
        ge=1,
        description="Most bytes of decoded images at any moment, per worker. An image that needs "
        "more counts as all of them, and is decoded alone.",
    )
    limit_bytes_in_flight: int = Field(
        default=512 * MEBIBYTE,
        ge=1,
        description="Most bytes of request bodies in memory at any moment, per worker.",
    )
    drain_grace_seconds: float = Field(
        default=0.0,
        ge=0,
        description="Seconds after the signal to stop in which requests are still answered while "
        "`/readyz` says 503, for load balancers to look elsewhere; then new work gets 503.",
    )
    stop_seconds: float = Field(
        default=20.0,
        gt=0,
        description="Longest time, after that grace, for what is in flight when the service stops. "
        "What is not done by then gets 503; a worker that hangs is killed a little later.",
    )
    access_log: bool = Field(
        default=False,
        description="Log a line for every request: its method, route, status and time. Costs CPU "
        "time in every request; metrics count them anyway.",
    )
    decode_threads: int = Field(
        default=2,
        ge=1,
        description="Decoding threads, per worker. Where `plumbline serve` runs on GPUs and it is "
        "not set: the worker's share of the cores less one, 2 to 16.",
    )
    follow_seconds: float = Field(
        default=1.0, gt=0, description="How often a worker looks for a new champion, in seconds."
    )
    feedback_rows: int = Field(
        default=100_000,
        ge=0,
        description="Most rows of feedback kept; the oldest go first.",
    )

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.queue_images < self.limit_parts:
            raise ValueError(
                f"queue_images={self.queue_images} is less than limit_parts={self.limit_parts}:"
                " a full request could never be taken"
            )
        return self

    @field_validator("serve_on")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        return address(value)

    def listening_on(self, host: str | None, port: int | None) -> ServiceSettings:
        """The same settings with another address or port."""
        serve_on = f"{host or self.host}:{port or self.port}"
        return self.model_copy(update={"serve_on": serve_on})

    @property
    def engine_is_given(self) -> bool:
        """Whether the engine was chosen by somebody, not by default."""
        return "engine" in self.model_fields_set

    @property
    def host(self) -> str:
        """The address to listen on."""
        return split_address(self.serve_on)[0]

    @property
    def port(self) -> int:
        """The port to listen on."""
        return split_address(self.serve_on)[1]

    @property
    def image_limits(self) -> ImageLimits:
        """The limits that are checked before an image is decoded."""
        return ImageLimits(
            part_bytes=self.limit_part_bytes,
            pixels=self.limit_pixels,
            least_side_pixels=self.limit_least_side_pixels,
            aspect=self.limit_aspect,
        )

    @property
    def longest_deadline_seconds(self) -> float:
        """That a request may name."""
        given = self.limit_deadline_seconds
        return self.deadline_seconds if given is None else given

    @property
    def request_limits(self) -> dict[str, int]:
        """What clients have to keep to, as `/v1/model` tells them."""
        return {
            "parts": self.limit_parts,
            "part_bytes": self.limit_part_bytes,
            "request_bytes": self.limit_request_bytes,
        }
