"""Records are written whole or counted as dropped, and never hold anyone up."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet
import pytest

from monitoring.outlier import RECORD_COMPONENTS
from monitoring.records import SCHEMA, Record, RecordSink, read_records, to_table, write_records

NOW = datetime(2026, 3, 4, 5, 6, 7, 891_011, tzinfo=UTC)

# The fields that design.md names, and where they stand.
DESIGN = {
    "id": ["id"],
    "time": ["time"],
    "model version": ["model"],
    "stage": ["stage"],
    "client": ["client"],
    "image sha256 and perceptual hash": ["image_sha256", "perceptual_hash"],
    "bytes, width, height, format": ["bytes", "width", "height", "format"],
    "brightness, contrast, sharpness, aspect": ["brightness", "contrast", "sharpness", "aspect"],
    "logits": ["logits"],
    "labels": ["labels"],
    "confidence": ["confidence"],
    "outlier score and p-value": ["outlier_score", "p_value"],
    "32 principal components of the embedding": ["components"],
    "latency by step": ["decode_seconds", "queue_seconds", "compute_seconds"],
}


def a_record(number: int = 0, **changes) -> Record:
    fields = {
        "id": f"0190-{number:08d}",
        "time": NOW + timedelta(seconds=number),
        "model": "shapes:20260101-0123abcd",
        "stage": "champion",
        "client": "anna",
        "image_sha256": "ab" * 32,
        "perceptual_hash": 2**64 - 1 - number,
        "bytes": 12_345,
        "width": 640,
        "height": 480,
        "format": "jpeg",
        "brightness": 0.5,
        "contrast": 0.25,
        "sharpness": 0.125,
        "logits": np.array([1.5, -2.25, 3.0 + number], np.float32),
        "labels": ["star"],
        "confidence": 0.75,
        "outlier_score": -1.5,
        "p_value": 0.5,
        "flagged": False,
        "components": np.linspace(-2, 2, RECORD_COMPONENTS, dtype=np.float32),
        "decode_seconds": 0.003,
        "queue_seconds": 0.001,
        "compute_seconds": 0.007,
    }
    return Record(**(fields | changes))


def files_in(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


# The schema


@pytest.mark.parametrize("said", DESIGN)
def test_the_schema_has_every_field_of_the_design(said):
    assert set(DESIGN[said]) <= set(SCHEMA.names)


def test_a_record_has_exactly_the_fields_of_the_schema():
    assert set(Record.__slots__) == set(SCHEMA.names)


def test_components_take_two_bytes_each_and_there_are_32():
    assert str(SCHEMA.field("components").type) == "fixed_size_list<item: halffloat>[32]"


def test_values_come_back_as_they_were(tmp_path):
    write_records(tmp_path / "reference.parquet", [a_record(0), a_record(1, labels=[])])
    first, second = read_records(str(tmp_path)).to_pylist()
    assert first["time"] == NOW
    assert first["perceptual_hash"] == 2**64 - 1
    assert first["logits"] == [1.5, -2.25, 3.0]
    assert second["logits"] == [1.5, -2.25, 4.0]
    assert (first["labels"], second["labels"]) == (["star"], [])
    assert first["aspect"] == pytest.approx(640 / 480)
    assert first["components"] == np.linspace(-2, 2, 32).astype(np.float16).tolist()
    for name in ("id", "model", "stage", "client", "image_sha256", "bytes", "width", "height",
                 "format", "brightness", "contrast", "sharpness", "confidence", "outlier_score",
                 "p_value", "flagged"):  # fmt: skip
        assert first[name] == getattr(a_record(0), name), name


def test_records_of_models_with_other_numbers_of_classes_lie_in_one_table():
    logits = [np.arange(count, dtype=np.float32) for count in (2, 10, 3)]
    table = to_table([a_record(n, logits=given) for n, given in enumerate(logits)])
    assert table["logits"].to_pylist() == [given.tolist() for given in logits]


def test_fewer_components_than_32_are_filled_with_zeros():
    table = to_table([a_record(components=np.ones(5, np.float32))])
    assert table["components"].to_pylist() == [[1.0] * 5 + [0.0] * 27]


def test_the_files_say_their_schema_version(tmp_path):
    write_records(tmp_path / "one.parquet", [a_record()])
    metadata = pyarrow.parquet.read_schema(tmp_path / "one.parquet").metadata
    assert metadata[b"plumbline_schema"] == b"1"


# The sink


def test_what_was_offered_is_on_disk_after_closing(tmp_path):
    sink = RecordSink(str(tmp_path / "records"), flush_seconds=60)
    for number in range(7):
        sink.offer(a_record(number))
    sink.close()
    assert (sink.written, sink.dropped, sink.waiting) == (7, 0, 0)
    ids = read_records(str(tmp_path / "records"), ["id"])["id"].to_pylist()
    assert ids == [a_record(number).id for number in range(7)]


def test_records_lie_in_one_folder_for_each_day(tmp_path):
    sink = RecordSink(str(tmp_path))
    sink.offer(a_record())
    sink.close()
    (path,) = tmp_path.rglob("*.parquet")
    assert path.parent.name.startswith("date=20")
    assert path.parent.parent == tmp_path


def test_records_are_written_within_the_flush_time_without_closing(tmp_path):
    sink = RecordSink(str(tmp_path), flush_seconds=0.1)
    sink.offer(a_record())
    wait_for(lambda: sink.written == 1)
    assert read_records(str(tmp_path)).num_rows == 1
    sink.close()


def test_no_file_has_more_rows_than_its_limit(tmp_path):
    sink = RecordSink(str(tmp_path), file_rows=10, flush_seconds=60)
    for number in range(25):
        sink.offer(a_record(number))
    sink.close()
    rows = [pyarrow.parquet.read_metadata(path).num_rows for path in tmp_path.rglob("*.parquet")]
    assert sorted(rows) == [5, 10, 10]


@pytest.fixture
def held_up(tmp_path, monkeypatch):
    """A sink whose disk hangs until `go` is set, with room for five records."""
    go = threading.Event()
    writing = threading.Event()
    true_write = pyarrow.parquet.write_table

    def write_slowly(*given, **options):
        writing.set()
        assert go.wait(20)
        true_write(*given, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", write_slowly)
    sink = RecordSink(str(tmp_path), queue_rows=5, flush_seconds=0.01)
    sink.offer(a_record(0))
    assert writing.wait(10)
    yield sink, go
    go.set()
    sink.close()


def test_a_full_queue_drops_and_counts_and_never_waits(held_up, tmp_path):
    sink, go = held_up
    started = time.perf_counter()
    for number in range(1, 101):
        sink.offer(a_record(number))
    assert time.perf_counter() - started < 0.5
    assert sink.waiting == 5
    assert sink.dropped == 95
    go.set()
    sink.close()
    assert sink.written == 6
    assert read_records(str(tmp_path)).num_rows == 6


def test_a_file_appears_only_when_it_is_whole(held_up, tmp_path):
    sink, go = held_up
    (partial,) = files_in(tmp_path)
    assert partial.startswith(".")
    assert partial.endswith(".partial")
    assert read_records(str(tmp_path)).num_rows == 0
    go.set()
    sink.close()
    assert all(name.endswith(".parquet") for name in files_in(tmp_path))


def test_a_folder_that_cannot_be_made_drops_and_counts(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    sink = RecordSink(str(tmp_path / "file" / "records"))
    for number in range(3):
        sink.offer(a_record(number))
    sink.close()
    assert (sink.written, sink.dropped) == (0, 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bucket")])
def test_a_file_that_fails_half_way_is_dropped_and_removed_and_the_next_is_written(
    error, tmp_path, monkeypatch
):
    """Stores beyond the disk raise errors of their own kinds: none may end the thread."""
    true_write = pyarrow.parquet.write_table
    outcomes = iter([error])

    def fail_once(table, file, **options):
        failure = next(outcomes, None)
        if failure is not None:
            file.write(b"half")
            raise failure
        true_write(table, file, **options)

    monkeypatch.setattr(pyarrow.parquet, "write_table", fail_once)
    sink = RecordSink(str(tmp_path), flush_seconds=0.01)
    sink.offer(a_record(0))
    wait_for(lambda: sink.dropped == 1)
    assert files_in(tmp_path) == []
    sink.offer(a_record(1))
    sink.close()
    assert (sink.written, sink.dropped) == (1, 1)
    assert read_records(str(tmp_path), ["id"])["id"].to_pylist() == [a_record(1).id]


def test_a_record_that_cannot_be_written_does_not_end_the_sink(tmp_path):
    sink = RecordSink(str(tmp_path), flush_seconds=0.01)
    sink.offer(a_record(0, labels=3))
    wait_for(lambda: sink.dropped == 1)
    sink.offer(a_record(1))
    sink.close()
    assert (sink.written, sink.dropped) == (1, 1)


def test_two_sinks_write_beside_each_other(tmp_path):
    sinks = [RecordSink(str(tmp_path)) for _ in range(3)]
    for number, sink in enumerate(sinks):
        sink.offer(a_record(number))
    for sink in sinks:
        sink.close()
    assert read_records(str(tmp_path)).num_rows == 3


def test_records_go_to_any_file_system_that_fsspec_knows():
    sink = RecordSink("memory://records-of-a-test")
    sink.offer(a_record())
    sink.close()
    assert read_records("memory://records-of-a-test").num_rows == 1


# Reading


def test_no_folder_yet_reads_as_no_records(tmp_path):
    table = read_records(str(tmp_path / "none"))
    assert table.num_rows == 0
    assert table.schema.names == SCHEMA.names
    assert read_records(str(tmp_path / "none"), ["id", "p_value"]).schema.names == ["id", "p_value"]


def test_unfinished_files_are_skipped(tmp_path):
    write_records(tmp_path / "whole.parquet", [a_record()])
    (tmp_path / ".other.partial").write_bytes(b"PAR1 half of a file")
    assert read_records(str(tmp_path)).num_rows == 1


def test_records_are_read_oldest_file_first(tmp_path):
    for day, number in (("2026-03-05", 2), ("2026-03-04", 0), ("2026-03-04", 1)):
        folder = tmp_path / f"date={day}"
        folder.mkdir(exist_ok=True)
        write_records(folder / f"12000{number}-x.parquet", [a_record(number)])
    assert read_records(str(tmp_path), ["id"])["id"].to_pylist() == [
        a_record(number).id for number in range(3)
    ]


# Retention


def test_the_sink_removes_what_is_too_old_and_goes_on(tmp_path):
    old = tmp_path / "date=2020-01-01"
    old.mkdir()
    (old / "a.parquet").write_bytes(b"long past")
    sink = RecordSink(str(tmp_path), flush_seconds=0.01, keep_seconds=86_400)
    sink.offer(a_record(1))
    wait_for(lambda: not old.exists())
    wait_for(lambda: sink.written == 1)
    sink.close()
    assert len(read_records(str(tmp_path))) == 1
