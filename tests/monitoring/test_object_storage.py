"""Records in a bucket, of a real server that speaks S3 as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import fsspec
import pytest
from fsspec.registry import _registry

from model.errors import SettingsError
from monitoring.monitor import Monitor
from monitoring.record_reader import RecordReader
from monitoring.record_store import RecordStore
from monitoring.records import RecordSink, read_records
from monitoring.settings import MonitoringSettings

COLUMNS = ("id", "time", "model")


class S3Server:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/moto-api/").close()
                return
            except OSError:
                assert time.monotonic() < deadline
                assert self._process.poll() is None
                time.sleep(0.05)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    running = S3Server()
    yield running
    running.close()


@pytest.fixture(params=["AWS", "FSSPEC"])
def bucket(server, request, monkeypatch, tmp_path) -> str:
    """The URL of a new bucket, that is found by the variables of AWS, or of fsspec."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    if request.param == "AWS":
        given = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "anna"}
        for name, value in (given | {"AWS_SECRET_ACCESS_KEY": "s3cret"}).items():
            monkeypatch.setenv(name, value)
    else:
        # As fsspec reads them from the environment when it is imported.
        environment = {
            "FSSPEC_S3_ENDPOINT_URL": server.url,
            "FSSPEC_S3_KEY": "anna",
            "FSSPEC_S3_SECRET": "s3cret",
        }
        found: dict[str, dict[str, str]] = {}
        fsspec.config.set_conf_env(found, environment)
        monkeypatch.setitem(fsspec.config.conf, "s3", found["s3"])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"bucket-{time.monotonic_ns()}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}/deep/records"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def write(url: str, records) -> RecordSink:
    sink = RecordSink(url, flush_seconds=60)
    for record in records:
        sink.offer(record)
    sink.close()
    return sink


@pytest.mark.slow
def test_what_a_sink_writes_is_read_as_it_comes_and_once(bucket, draw):
    sink = write(bucket, draw("shapes:1", 70, 1))
    assert (sink.written, sink.dropped) == (70, 0)
    reader = RecordReader(bucket, COLUMNS)
    assert [len(reader.read_new()) for _ in range(2)] == [70, 0]
    write(bucket, draw("shapes:1", 7, 2))
    assert [len(reader.read_new()) for _ in range(2)] == [7, 0]
    assert len(reader.read_last("shapes:1", 5)) == 0
    assert len(RecordReader(bucket, COLUMNS).read_last("shapes:1", 5)) == 5
    assert len(read_records(bucket)) == 77


@pytest.mark.slow
def test_nothing_but_whole_files_ever_stands_in_the_bucket(bucket, draw, monkeypatch):
    """A move is a copy there: what is written goes straight to its name."""
    store = RecordStore(bucket)
    broken = draw("shapes:1", 1, 2)
    broken[0].labels = 3
    assert write(bucket, broken).dropped == 1
    assert store.files.find(bucket) == []
    write(bucket, draw("shapes:1", 3, 1))
    (path,) = store.files.find(bucket)
    assert path.endswith(".parquet")


@pytest.mark.slow
def test_a_look_asks_for_the_names_of_about_now_alone(bucket, draw, monkeypatch):
    write(bucket, draw("shapes:1", 3, 1))
    reader = RecordReader(bucket, COLUMNS)
    reader.read_new()
    store = reader._store
    now = datetime.now(UTC)
    day = f"date={now:%Y-%m-%d}"
    long_ago = f"{now - timedelta(hours=3):%H%M%S%f}-x.parquet"
    store.files.pipe_file(f"{store.root}/{day}/{long_ago}", b"of long ago")
    since = f"{now - timedelta(minutes=10):%H%M%S%f}"
    if since < f"{now:%H%M%S%f}" and long_ago < since:  # not in the first hours of a day
        assert len(store.names(day)) == 2
        assert len(store.names(day, since, now)) == 1


@pytest.mark.slow
def test_records_of_days_long_past_are_removed(bucket, draw):
    files = RecordStore(bucket).files
    old = [f"{bucket}/date=2020-01-0{day}/{name}.parquet" for day in (1, 2) for name in "ab"]
    for path in old:
        files.pipe_file(path, b"long past")
    sink = RecordSink(bucket, flush_seconds=0.05, keep_seconds=86_400)
    sink.offer(draw("shapes:1", 1, 1)[0])
    deadline = time.monotonic() + 20
    while any(map(files.exists, old)):
        files.invalidate_cache()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sink.close()
    assert len(read_records(bucket)) == 1


@pytest.mark.slow
def test_the_monitor_follows_records_in_a_bucket(store, watched, bucket, draw):
    tag = watched()
    settings = MonitoringSettings(home=store.home, records_url=bucket, record_merge_seconds=0.0)
    monitor = Monitor(settings, store)
    monitor.poll()
    write(bucket, draw(tag, 300, 1))
    assert monitor.poll() == []
    write(bucket, draw(tag, 200, 2, darker=0.3))
    (alarm,) = Monitor(settings, store).poll()  # of another process, that goes on from the state
    assert alarm.stream == "brightness"
    monitor = Monitor(settings, store)
    assert monitor.poll() == []
    assert monitor.status()["images_served"] == 500


@pytest.mark.slow
def test_a_torn_object_is_named_and_left_out(bucket, draw, caplog):
    write(bucket, draw("shapes:1", 5, 1))
    files = RecordStore(bucket).files
    (path,) = files.find(bucket)
    content = files.cat_file(path)
    files.pipe_file(path.replace(".parquet", "-torn.parquet"), content[:-100])
    files.pipe_file(path.replace(".parquet", "-empty.parquet"), b"")
    reader = RecordReader(bucket, COLUMNS)
    assert ([len(reader.read_new()) for _ in range(2)], reader.refused_files) == ([5, 0], 2)
    assert "-torn.parquet is left out" in caplog.text


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A bucket at an address where nothing listens."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anna")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://bucket/records"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
def test_while_nothing_answers_records_are_dropped_and_counted_and_nobody_waits(nobody, draw):
    records = draw("shapes:1", 50, 1)
    sink = RecordSink(nobody, flush_seconds=60, queue_rows=20)
    started = time.perf_counter()
    for record in records:
        sink.offer(record)
    assert time.perf_counter() - started < 0.5
    sink.close()
    assert (sink.written, sink.dropped) == (0, 50)


@pytest.mark.slow
def test_while_nothing_answers_the_monitor_says_so_and_takes_nothing_for_read(
    nobody, store, watched
):
    watched()
    monitor = Monitor(MonitoringSettings(home=store.home, records_url=nobody), store)
    for _ in range(2):
        with pytest.raises(OSError, match=r"records in s3://bucket/records cannot be reached"):
            monitor.poll()


def test_without_the_package_one_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(SettingsError, match=r"s3://bucket.*s3fs.*pip install 'plumbline\[s3\]'"):
        RecordStore("s3://bucket/records")


@pytest.mark.parametrize("url", ["nothing://bucket/records", "s4://bucket"])
def test_a_url_of_no_kind_is_refused_with_what_is_valid(url):
    with pytest.raises(SettingsError, match=r"valid is a folder, or a URL that fsspec knows"):
        RecordStore(url)


def test_a_store_that_hangs_does_not_hold_up_the_end(tmp_path, monkeypatch, draw):
    go = threading.Event()
    monkeypatch.setattr("monitoring.records._CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(RecordStore, "put", lambda *given: go.wait(20))
    sink = RecordSink(str(tmp_path), flush_seconds=60)
    for record in draw("shapes:1", 3, 1):
        sink.offer(record)
    started = time.monotonic()
    sink.close()
    assert (time.monotonic() - started < 5, sink.dropped) == (True, 3)
    go.set()
    sink._thread.join()
