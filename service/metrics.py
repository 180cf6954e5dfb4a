"""Prometheus metrics of the service. Label sets are bounded whatever clients ask for."""

from __future__ import annotations

import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Counter(
    "plumbline_requests_total", "Requests answered, by route and status.", ("route", "status")
)
REQUEST_SECONDS = Histogram(
    "plumbline_request_seconds",
    "Seconds from the head of a prediction request to its answer.",
    buckets=_SECONDS,
)
STEP_SECONDS = Histogram(
    "plumbline_step_seconds", "Seconds by step of a prediction.", ("step",), buckets=_SECONDS
)
BATCH_IMAGES = Histogram(
    "plumbline_batch_images", "Images in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64)
)
QUEUE_IMAGES = Gauge(
    "plumbline_queue_images", "Images waiting for a batch.", multiprocess_mode="livesum"
)
IMAGES = Counter(
    "plumbline_images_total", "Images by outcome: ok, or the code of the error.", ("outcome",)
)
FLAGGED = Counter("plumbline_flagged_total", "Images flagged as out of domain.")
LABELS = Counter("plumbline_labels_total", "Labels given, by class.", ("label",))
FEEDBACK = Counter("plumbline_feedback_total", "Feedback taken.")
RECORDS_DROPPED = Gauge(
    "plumbline_records_dropped",
    "Records dropped since the worker started.",
    multiprocess_mode="livesum",
)
RECORDS_WAITING = Gauge(
    "plumbline_records_waiting", "Records waiting to be written.", multiprocess_mode="livesum"
)
IMAGES_DROPPED = Gauge(
    "plumbline_stored_images_dropped",
    "Images that were to be kept and were not, since the worker started.",
    multiprocess_mode="livesum",
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


def exposition() -> bytes:
    """The metrics of all workers, in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
