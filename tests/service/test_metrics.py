"""Metrics of several workers add up, also after one has died; their labels are bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.metrics import Children, Total
from service.supervisor import forget_dead_workers

HOUSE = Path(__file__).parent.parent.parent

# What a worker counts; it says that it is done, and lives until its input ends.
WORKER = """
import sys
from service import metrics
images, engine = int(sys.argv[1]), sys.argv[2]
metrics.OUTCOME["ok"].inc(images)
metrics.SHED["queue_full"].inc()
for _ in range(images):
    metrics.STEP["compute"].observe(0.02)
    metrics.CONFIDENCE.observe(0.97)
metrics.QUEUE_IMAGES.set(images)
metrics.MODEL.labels("shapes:1").set(1)
metrics.WORKERS_READY.set(1)
metrics.WORKER.labels(engine, "bf16").set(1)
print("done", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process that counts into the folder."""

    def __init__(self, folder: Path, images: int, engine: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(images), engine],
            cwd=HOUSE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def two_workers(tmp_path):
    workers = [Worker(tmp_path, 3, "openvino"), Worker(tmp_path, 4, "torch")]
    yield workers
    for worker in workers:
        worker.end()


@pytest.fixture
def told(tmp_path, monkeypatch):
    """`told()`: value by series, as whoever is asked for `/metrics` tells it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def read() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(metrics.exposition().decode())
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    return read


def series(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_what_several_workers_count_adds_up(two_workers, told):
    found = told()
    assert found[series("plumbline_images_total", outcome="ok")] == 7
    assert found[series("plumbline_shed_requests_total", reason="queue_full")] == 2
    assert found[series("plumbline_step_seconds_count", step="compute")] == 7
    assert found[series("plumbline_step_seconds_bucket", step="compute", le="0.025")] == 7
    assert found[series("plumbline_confidence_bucket", le="0.95")] == 0
    assert found[series("plumbline_confidence_bucket", le="0.99")] == 7
    assert found[series("plumbline_queue_images")] == 7
    assert found[series("plumbline_model_info", model="shapes:1")] == 2
    assert found[series("plumbline_workers_ready")] == 2
    first, second = (str(worker.process.pid) for worker in two_workers)
    engine = "plumbline_worker_info"
    assert found[series(engine, engine="openvino", precision="bf16", pid=first)] == 1
    assert found[series(engine, engine="torch", precision="bf16", pid=second)] == 1


def test_a_dead_worker_is_gone_and_what_it_counted_stays(two_workers, told, tmp_path):
    dead, living = two_workers
    dead.end()
    watcher = SimpleNamespace(processes={living.process.pid: None})
    forget_dead_workers(tmp_path, SimpleNamespace(watchers=[watcher]))
    found = told()
    assert found[series("plumbline_images_total", outcome="ok")] == 7
    assert found[series("plumbline_step_seconds_count", step="compute")] == 7
    assert found[series("plumbline_queue_images")] == 4
    assert found[series("plumbline_workers_ready")] == 1
    pids = [dict(labels)["pid"] for name, labels in found if name == "plumbline_worker_info"]
    assert pids == [str(living.process.pid)]


def test_reasons_are_there_before_they_happen(two_workers, told):
    found = told()
    for reason in ("memory_full", "starting", "stopping", "state_database"):
        assert found[series("plumbline_shed_requests_total", reason=reason)] == 0
    for reason in ("deadline", "client_gone"):
        assert found[series("plumbline_dropped_images_total", reason=reason)] == 0
    for step in ("decode", "queue", "respond"):
        assert found[series("plumbline_step_seconds_count", step=step)] == 0


OWN = [
    its
    for its in vars(metrics).values()
    if isinstance(its, MetricWrapperBase) and its._name.startswith("plumbline_")
]


@pytest.mark.parametrize("metric", OWN, ids=lambda its: its._name)
def test_a_name_tells_its_unit(metric):
    assert "_total" not in metric._name, "the library puts it behind counters, and only them"
    told = metric._documentation.lower()
    if "seconds" in told or "cpu time" in told:
        assert metric._name.endswith("_seconds")
    if "memory" in told and metric._type == "gauge":
        assert metric._name.endswith("_bytes")


# Each of these has few values whatever clients send: routes and "other", statuses of the contract,
# fixed words, and what the models that were served are called and know.
BOUNDED = {"route", "status", "step", "reason", "outcome", "label", "model", "engine", "precision"}


def test_no_label_takes_what_clients_send():
    assert {label for metric in OWN for label in metric._labelnames} == BOUNDED


class Looked:
    """A metric that counts how often its children are looked up."""

    def __init__(self) -> None:
        self.values: list[tuple] = []

    def labels(self, *values):
        self.values.append(values)
        return object()


def test_a_child_is_looked_up_once():
    metric = Looked()
    children = Children(metric, "early")
    assert metric.values == [("early",)]
    for _ in range(3):
        assert children["early"] is children["early"]
        assert children["/v1/predict", 200] is children["/v1/predict", 200]
    assert metric.values == [("early",), ("/v1/predict", 200)]


def test_a_counter_keeps_up_with_a_total_kept_elsewhere():
    grown = []
    total = Total(SimpleNamespace(inc=grown.append))
    for reached in (3, 3, 10):
        total.reach(reached)
    assert grown == [3, 0, 7]
