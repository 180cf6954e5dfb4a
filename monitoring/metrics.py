"""Prometheus metrics of the monitor, made from its status at every scrape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("ok", "drift", "cannot promise", "waiting")
SIDE_JOBS = ("reports", "retraining", "windows", "class mix", "feedback")


class MonitorCollector(Collector):
    """Gauges and counters of one status and its counters of records."""

    def __init__(self, status: dict[str, Any], records: dict[str, int], refused_files: int) -> None:
        self._status = status
        self._records = records
        self._refused_files = refused_files

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield from self._of_state()
        yield from self._of_evidence()
        yield from self._of_accuracy()
        yield from self._of_records()

    def _of_state(self) -> Iterator[Metric]:
        status = self._status
        state = GaugeMetricFamily(
            "plumbline_monitor_state", "1 for the state that the monitor is in.", labels=("state",)
        )
        for name in STATES:
            state.add_metric((name,), float(status["state"] == name))
        yield state
        side_jobs = GaugeMetricFamily(
            "plumbline_monitor_side_job_failing",
            "1 where a job beside the watching went wrong last time.",
            labels=("job",),
        )
        for name, failure in status.get("side_jobs", {}).items():
            side_jobs.add_metric((name,), float(failure is not None))
        yield side_jobs

    def _of_evidence(self) -> Iterator[Metric]:
        status = self._status
        evidence = GaugeMetricFamily(
            "plumbline_evidence_log10", "log10 of the evidence of drift.", labels=("stream",)
        )
        for name, value in status["log10_evidence"].items():
            evidence.add_metric((name,), -math.inf if value is None else value)
        yield evidence
        yield _gauge(
            "plumbline_alarm_line_log10", "Evidence that raises an alarm.", status["alarm_line"]
        )
        yield _gauge(
            "plumbline_labels_alarm_line_log10",
            "Evidence in the stream labelled_mistakes that raises an alarm.",
            status["labels"]["alarm_line"] if "labels" in status else None,
        )
        yield _gauge(
            "plumbline_sampled_images_per_day",
            "Images sampled as evidence in the last day.",
            status.get("sampled_a_day"),
        )

    def _of_accuracy(self) -> Iterator[Metric]:
        status = self._status
        yield _gauge(
            "plumbline_flagged_share", "Share flagged of the last images.", status["flagged_share"]
        )
        yield _gauge(
            "plumbline_accuracy_estimate",
            "Accuracy estimated without labels (CBPE); absent when it is not to be believed.",
            status["accuracy_estimate"]["cbpe"] if status["accuracy_estimate"]["valid"] else None,
        )
        feedback = status.get("accuracy_from_feedback") or {}
        yield _gauge(
            "plumbline_feedback_accuracy",
            "Accuracy of labelled images, micro F1 for several labels; absent without any.",
            feedback.get("value"),
        )
        yield _gauge(
            "plumbline_feedback_images",
            "Labelled images that it is of.",
            feedback.get("labelled"),
        )
        yield _gauge(
            "plumbline_prior_shift",
            "1 where a change of the class mix alone explains the last images.",
            float(bool((status.get("prior_shift") or {}).get("recognised"))),
        )

    def _of_records(self) -> Iterator[Metric]:
        status = self._status
        yield CounterMetricFamily(
            "plumbline_watched_images_total",
            "Recorded images of the champion.",
            value=status["images_served"],
        )
        yield CounterMetricFamily(
            "plumbline_sampled_images_total",
            "Of them those that count as evidence.",
            value=status["images_sampled"],
        )
        yield CounterMetricFamily(
            "plumbline_alarms_total", "Alarms raised for the champion.", value=len(status["alarms"])
        )
        records = CounterMetricFamily(
            "plumbline_monitor_records_total",
            "Records read: watched, other version, unknown version, refused, duplicate.",
            labels=("kind",),
        )
        for kind, count in self._records.items():
            records.add_metric((kind,), count)
        yield records
        yield CounterMetricFamily(
            "plumbline_refused_record_files_total",
            "Files among the records that hold none.",
            value=self._refused_files,
        )


def exposition(status: dict[str, Any], records: dict[str, int], refused_files: int) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(MonitorCollector(status, records, refused_files))
    return generate_latest(registry)


def _gauge(name: str, help_text: str, value: float | None) -> Metric:
    gauge = GaugeMetricFamily(name, help_text)
    if value is not None:
        gauge.add_metric((), value)
    return gauge
