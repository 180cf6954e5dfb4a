"""Prometheus metrics of the service. Label sets are bounded whatever clients ask for.

Each worker keeps its numbers in files of the server's folder, and whoever is asked for `/metrics`
adds them up. Counters and histograms outlive their worker; gauges are of live workers alone.
Requests use the children in `REQUEST`, `STEP` and so on, which are looked up once.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Generic, TypeVar, get_args

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

from service.errors import DropReason, ShedReason

Metric = TypeVar("Metric", bound=MetricWrapperBase)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


class Children(dict[Hashable, Metric], Generic[Metric]):
    """The children of a metric by the values of its labels; each is looked up once.

    Those of the values given are there from the start, so that a rate over them sees the first.
    """

    def __init__(self, metric: Metric, *values: Hashable) -> None:
        self._metric = metric
        for value in values:
            self[value]

    def __missing__(self, value: Hashable) -> Metric:
        values = value if isinstance(value, tuple) else (value,)
        child = self[value] = self._metric.labels(*values)
        return child


REQUESTS = Counter(
    "plumbline_requests_total",
    "Requests answered, by route (other: no such path or method) and status (499: the client hung "
    "up before).",
    ("route", "status"),
)
REQUEST = Children(REQUESTS)
REQUEST_SECONDS = Histogram(
    "plumbline_request_seconds",
    "Seconds from the head of a prediction request to its answer, where an image was judged.",
    buckets=_SECONDS,
)
STEP_SECONDS = Histogram(
    "plumbline_step_seconds",
    "Seconds by step of a prediction: decode, queue and compute of each image, respond of each "
    "request.",
    ("step",),
    buckets=_SECONDS,
)
STEP = Children(STEP_SECONDS, "decode", "queue", "compute", "respond")
BATCH_IMAGES = Histogram(
    "plumbline_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
QUEUE_IMAGES = Gauge(
    "plumbline_queue_images", "Images waiting for a batch.", multiprocess_mode="livesum"
)
INSIDE_IMAGES = Gauge(
    "plumbline_inside_images",
    "Images of requests not yet answered; what PLUMBLINE_QUEUE_IMAGES bounds in each worker.",
    multiprocess_mode="livesum",
)
SHED_REQUESTS = Counter(
    "plumbline_shed_requests_total",
    "Requests turned away with 429 or 503, by reason: queue_full, memory_full, share_full, "
    "starting, stopping, state_database.",
    ("reason",),
)
SHED = Children(SHED_REQUESTS, *get_args(ShedReason))
DROPPED_IMAGES = Counter(
    "plumbline_dropped_images_total",
    "Images given up before they were computed, by reason: deadline, client_gone, stopping.",
    ("reason",),
)
DROPPED = Children(DROPPED_IMAGES, *get_args(DropReason))
IMAGES = Counter(
    "plumbline_images_total", "Images by outcome: ok, or the code of the error.", ("outcome",)
)
OUTCOME = Children(IMAGES, "ok")
FLAGGED = Counter("plumbline_flagged_total", "Images flagged as out of domain.")
LABELS = Counter("plumbline_labels_total", "Labels given, by class.", ("label",))
LABEL = Children(LABELS)
UNLABELLED = Counter("plumbline_unlabelled_total", "Images that none of the classes applied to.")
CONFIDENCE = Histogram(
    "plumbline_confidence", "Confidence of predictions, from 0 to 1.", buckets=_CONFIDENCES
)
P_VALUE = Histogram(
    "plumbline_outlier_p_value",
    "Conformal p-value of the outlier score, from 0 to 1: even for images like those learned from.",
    buckets=_P_VALUES,
)
FEEDBACK = Counter("plumbline_feedback_total", "Feedback taken.")
RECORDS_WRITTEN = Counter("plumbline_records_written_total", "Records written to files.")
RECORDS_DROPPED = Counter(
    "plumbline_records_dropped_total",
    "Records dropped because their queue was full or their file could not be written.",
)
RECORDS_WAITING = Gauge(
    "plumbline_records_waiting", "Records waiting to be written.", multiprocess_mode="livesum"
)
IMAGES_DROPPED = Counter(
    "plumbline_stored_images_dropped_total", "Images that were to be kept and were not."
)
MODEL_LOAD_FAILURES = Counter(
    "plumbline_model_load_failures_total", "Champions that could not be loaded."
)
MODEL = Gauge(
    "plumbline_model_info",
    "1 for the model version in force, in each live worker.",
    ("model",),
    multiprocess_mode="livesum",
)
WORKERS_READY = Gauge(
    "plumbline_workers_ready",
    "Live workers that have a model loaded and are not about to stop.",
    multiprocess_mode="livesum",
)
WORKER = Gauge(
    "plumbline_worker_info",
    "1 for the engine and precision that each live worker (pid) runs.",
    ("engine", "precision"),
    multiprocess_mode="liveall",
)
WORKER_START_SECONDS = Gauge(
    "plumbline_worker_start_time_seconds",
    "When each live worker (pid) started, in seconds since 1970.",
    multiprocess_mode="liveall",
)
WORKER_MEMORY_BYTES = Gauge(
    "plumbline_worker_resident_memory_bytes",
    "Resident memory of each live worker (pid).",
    multiprocess_mode="liveall",
)
WORKER_CPU_SECONDS = Counter("plumbline_worker_cpu_seconds_total", "CPU time of all workers.")


class Total:
    """Keeps a counter up with a total that something else counts."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._seen = 0.0

    def reach(self, total: float) -> None:
        """The total is so much now."""
        self._counter.inc(total - self._seen)
        self._seen = total


def drop(reason: DropReason, count: int) -> None:
    """Count images that were given up before they were computed."""
    DROPPED[reason].inc(count)


def exposition() -> bytes:
    """The metrics of all workers, in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
