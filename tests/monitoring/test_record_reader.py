"""Every record file is read once, and what is none is named and left out."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from monitoring import record_decoding, record_reader
from monitoring.record_reader import RecordReader
from monitoring.records import write_file, write_records
from monitoring.streams import COLUMNS


@pytest.fixture
def put(tmp_path, draw):
    """`put(day, name, count, seed)`: a file of records."""

    def write(day: str, name: str, count: int = 10, seed: int = 0) -> Path:
        folder = tmp_path / "records" / f"date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / name, draw("shapes:1", count, seed))
        return folder / name

    return write


@pytest.fixture
def reader(tmp_path):
    return RecordReader(str(tmp_path / "records"), COLUMNS)


def test_no_folder_yet_reads_as_nothing(reader):
    assert len(reader.read_new()) == 0


def test_each_file_is_read_once_and_records_come_by_time(reader, put):
    put("2026-03-04", "b.parquet", seed=1)
    put("2026-03-04", "a.parquet", seed=2)
    first = reader.read_new()
    times = first["time"].to_pylist()
    assert (len(first), times) == (20, sorted(times))
    assert len(reader.read_new()) == 0
    put("2026-03-04", "0.parquet", seed=3)  # an earlier name, written later
    assert len(reader.read_new()) == 10


def test_the_last_records_of_a_version_are_found_without_reading_the_rest(
    tmp_path, put, draw, caplog
):
    torn(put("2026-03-03", "a.parquet"))  # would be named in the log
    put("2026-03-04", "a.parquet", 10, seed=1)
    put("2026-03-05", "a.parquet", 10, seed=2)
    write_records(tmp_path / "records" / "date=2026-03-05" / "b.parquet", draw("other:1", 10, 3))
    reader = RecordReader(str(tmp_path / "records"), ("model", *COLUMNS))
    last = reader.read_last("shapes:1", 15)
    assert (len(last), set(last["model"].to_pylist()), caplog.text) == (15, {"shapes:1"}, "")
    every = reader.read_last("shapes:1", 100)
    assert (len(every), every.slice(5)["time"]) == (20, last["time"])
    assert "a.parquet is left out" in caplog.text
    assert len(reader.read_last("none:1", 5)) == 0


def test_it_goes_on_where_it_was(reader, put, tmp_path):
    put("2026-03-04", "a.parquet")
    reader.read_new()
    put("2026-03-05", "b.parquet", 7)
    other = RecordReader(str(tmp_path / "records"), COLUMNS)
    other.restore(json.loads(json.dumps(reader.to_state())))
    assert len(other.read_new()) == 7


def test_a_large_backlog_comes_in_parts(reader, put):
    for number in range(6):
        put("2026-03-04", f"{number}.parquet", seed=number)
    assert [len(reader.read_new(limit_rows=25)) for _ in range(3)] == [30, 30, 0]


def test_days_long_past_are_forgotten_and_not_read_again(reader, put):
    days = [f"2026-03-{day:02d}" for day in range(1, 9)]
    for number, day in enumerate(days):
        put(day, "a.parquet", seed=number)
    assert len(reader.read_new()) == 80
    assert len(reader.read_new()) == 0
    assert len(reader.to_state()["read"]) == 3


def test_what_is_remembered_does_not_grow_with_the_files(reader, put):
    sizes = []
    for hour in range(4):
        for minute in range(60):
            put("2026-03-04", f"{hour:02d}{minute:02d}00000000-a.parquet", 1)
        assert len(reader.read_new()) == 60
        assert len(reader.read_new()) == 0
        sizes.append(len(json.dumps(reader.to_state())))
    assert sizes == [sizes[0]] * 4
    assert sum(map(len, reader.to_state()["read"].values())) <= 11


def test_a_file_that_comes_late_is_read_once(reader, put, tmp_path):
    put("2026-03-05", "000200000000-a.parquet")
    put("2026-03-03", "120000000000-a.parquet")
    assert len(reader.read_new()) == 20
    put("2026-03-04", "235300000000-b.parquet", 5)  # nine minutes late, and of the day before
    again = RecordReader(str(tmp_path / "records"), COLUMNS)
    again.restore(json.loads(json.dumps(reader.to_state())))
    assert [len(again.read_new()) for _ in range(2)] == [5, 0]
    put("2026-03-04", "235100000000-c.parquet", 5)  # eleven
    assert len(again.read_new()) == 0


def test_a_name_of_the_future_hides_no_file_of_the_present(reader, put):
    now = datetime.now(UTC)
    tomorrow = now + timedelta(hours=20)
    put(f"{tomorrow:%Y-%m-%d}", f"{tomorrow:%H%M%S%f}-a.parquet")
    assert len(reader.read_new()) == 10
    put(f"{now:%Y-%m-%d}", f"{now:%H%M%S%f}-b.parquet", 7)
    assert [len(reader.read_new()) for _ in range(2)] == [7, 0]


def test_days_before_the_first_are_left_out(put, tmp_path):
    for number, day in enumerate(("2026-03-04", "2026-03-05")):
        put(day, "a.parquet", seed=number)
    reader = RecordReader(str(tmp_path / "records"), COLUMNS, date(2026, 3, 5))
    assert len(reader.read_new()) == 10


def test_folders_of_the_future_do_not_hide_the_present(reader, put):
    for day in ("9999-12-29", "9999-12-30", "9999-12-31", "no-day"):
        put(day, "a.parquet")
    put("2026-03-04", "a.parquet", 7)
    assert len(reader.read_new()) == 7


def test_a_store_that_cannot_be_read_now_is_tried_again(reader, put, monkeypatch):
    put("2026-03-04", "a.parquet")
    content = reader._store.content
    fail = lambda *given: (_ for _ in ()).throw(OSError("x"))  # noqa: E731
    monkeypatch.setattr(reader._store, "content", fail)
    with pytest.raises(OSError, match="x"):
        reader.read_new()
    monkeypatch.setattr(reader._store, "content", content)
    assert (len(reader.read_new()), reader.refused_files) == (10, 0)


def test_files_being_written_are_not_looked_at(reader, put):
    put("2026-03-04", ".x.partial")
    put("2026-03-04", ".hidden.parquet")
    assert (len(reader.read_new()), reader.refused_files) == (0, 0)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def junk(path: Path) -> None:
    path.write_bytes(b"no Parquet at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"id": ["a"], "price": [1.0]}), path)


def mistyped(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index("confidence")
    strings = pa.array(["sure"] * len(table))
    pyarrow.parquet.write_table(table.set_column(place, "confidence", strings), path)


def of_another_version(path: Path) -> None:
    """Columns of the same names and types, that may mean something else."""
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"plumbline_schema": "2"}), path)


def holed(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index("perceptual_hash")
    values = pa.array([None] * len(table), pa.uint64())
    pyarrow.parquet.write_table(table.set_column(place, "perceptual_hash", values), path)


def exchanged(path: Path, name: str, values: pa.Array) -> None:
    table = pyarrow.parquet.read_table(path)
    place = table.schema.get_field_index(name)
    table = table.set_column(place, table.schema.field(name), values)
    pyarrow.parquet.write_table(table, path, compression="zstd")


def misspelt(path: Path) -> None:
    """Texts that are no UTF-8."""
    plain = pa.array(["ab"] * 10)
    buffers = [None, plain.buffers()[1], pa.py_buffer(b"\xff\xfe" * 10)]
    exchanged(path, "image_sha256", pa.Array.from_buffers(pa.string(), 10, buffers))


def holed_within(path: Path) -> None:
    exchanged(path, "labels", pa.array([[None, "star"]] * 10, pa.list_(pa.string())))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def long_winded(path: Path) -> None:
    exchanged(path, "client", pa.array(["x" * 2_000] * 10))


def overlong(path: Path) -> None:
    """As many logits as no model has, though few bytes in the file."""
    logits = np.zeros(200_000, np.float32)
    exchanged(path, "logits", pa.array([logits] + [logits[:3]] * 9, pa.list_(pa.float32())))


@pytest.mark.parametrize(
    "damage",
    [
        *(torn, junk, empty, foreign, mistyped, of_another_version, holed, misspelt, holed_within),
        *(folder, dangling, pipe, long_winded, overlong),
    ],
)
def test_what_holds_no_records_is_left_out_once(reader, put, damage, caplog):
    damage(put("2026-03-04", "bad.parquet", seed=1))
    put("2026-03-04", "good.parquet", seed=2)
    assert len(reader.read_new()) == 10
    assert len(reader.read_new()) == 0
    assert reader.refused_files == 1
    assert caplog.text.count("bad.parquet is left out") == 1


@pytest.mark.parametrize("damage", [torn, mistyped, of_another_version, misspelt, holed_within])
def test_one_bad_file_among_many_small_ones_is_found_and_the_others_are_whole(
    reader, put, damage, caplog
):
    """They are checked together."""
    for number in range(40):
        put("2026-03-04", f"{number:02d}.parquet", 3, seed=number)
    damage(put("2026-03-04", "20.parquet", 10, seed=20))
    found = reader.read_new()
    assert (len(found), reader.refused_files) == (39 * 3, 1)
    assert caplog.text.count("is left out") == caplog.text.count("20.parquet is left out") == 1
    found.validate(full=True)


def test_small_files_are_read_as_large_ones_are(put, tmp_path, draw):
    records = [
        replace(its, labels=labels, model=f"shapes:{number}", client=f"client {number}")
        for number, (its, labels) in enumerate(
            zip(draw("shapes:1", 30, 1), [["star"], [], ["a", "b"]] * 10, strict=True)
        )
    ]
    whole, parts = tmp_path / "whole" / "date=2026-03-04", tmp_path / "parts" / "date=2026-03-04"
    whole.mkdir(parents=True)
    parts.mkdir(parents=True)
    write_records(whole / "a.parquet", records)
    for number in range(10):
        with (parts / f"{number}.parquet").open("wb") as file:
            write_file(file, records[3 * number : 3 * number + 3])
    one, other = (
        RecordReader(str(folder.parent), ("model", *COLUMNS)).read_new()
        for folder in (whole, parts)
    )
    assert one.equals(other.combine_chunks())


def test_many_small_files_are_looked_through_one_by_one_only_to_find_a_fault(
    reader, put, monkeypatch
):
    for number in range(30):
        put("2026-03-04", f"{number:02d}.parquet", 3, seed=number)
    looked = []
    whole = record_decoding.Decoder.whole
    monkeypatch.setattr(
        record_decoding.Decoder, "whole", lambda *its: looked.append(1) or whole(*its)
    )
    assert (len(reader.read_new()), len(looked)) == (90, 1)


def test_a_small_file_that_says_it_unfolds_is_looked_through_by_itself(reader, put):
    """Few rows, and lists of more values than a file among many may have."""
    put("2026-03-04", "a.parquet", 3, seed=1)
    path = put("2026-03-04", "b.parquet", 3, seed=2)
    exchanged(path, "logits", pa.array([np.zeros(60_000, np.float32)] * 3, pa.list_(pa.float32())))
    assert (len(reader.read_new()), reader.refused_files) == (6, 0)


def test_a_file_that_must_not_be_read_holds_up_no_other(reader, put, monkeypatch):
    """As root every file may be read, so this one's refusal is stood in for."""
    bad = str(put("2026-03-04", "bad.parquet", seed=1))
    put("2026-03-04", "good.parquet", seed=2)
    content = reader._store.content

    def forbid(path: str, limit_bytes: int) -> bytes:
        if path == bad:
            raise PermissionError(path)
        return content(path, limit_bytes)

    monkeypatch.setattr(reader._store, "content", forbid)
    assert [len(reader.read_new()) for _ in range(2)] == [10, 0]
    assert reader.refused_files == 1


def test_a_few_bytes_do_not_unfold_into_all_the_memory(reader, put):
    """A megabyte of text that 40,000 rows name, and 40,000 lists of 1,000 zeros."""
    text, lists = (put("2026-03-04", name, 1) for name in ("a.parquet", "b.parquet"))
    one = pyarrow.parquet.read_table(text)
    rows = pa.concat_tables([one] * 40_000).combine_chunks()
    client = pa.DictionaryArray.from_arrays(np.zeros(40_000, np.int32), ["x" * 2**20])
    named = rows.drop_columns("client").append_column("client", client)
    pyarrow.parquet.write_table(named, text, store_schema=False)
    logits = pa.ListArray.from_arrays(
        np.arange(0, 40_000_001, 1_000, np.int32), np.zeros(40_000_000, np.float32)
    )
    pyarrow.parquet.write_table(rows, lists)
    exchanged(lists, "logits", logits)
    del logits
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    default = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert (len(reader.read_new()), reader.refused_files) == (0, 2)
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 200 * 2**20


def test_a_file_of_too_many_bytes_is_not_even_opened(reader, put, monkeypatch):
    monkeypatch.setattr(record_reader, "LIMIT_FILE_BYTES", 99)
    put("2026-03-04", "a.parquet")
    monkeypatch.setattr("builtins.open", lambda path, mode: pytest.fail(path))
    assert (len(reader.read_new()), reader.refused_files) == (0, 1)


def test_records_of_times_that_cannot_be_are_left_out(reader, put):
    day = 86_400 * 10**6
    path = put("2026-03-04", "a.parquet")
    now = int(time.time() * 10**6)
    times = [20_000 * 365 * day, -day, 0, now + 2 * day, -(2**63) + 1, *[now] * 5]
    exchanged(path, "time", pa.array(times, pa.timestamp("us", tz="UTC")))
    assert (len(reader.read_new()), reader.refused_records, reader.refused_files) == (5, 5, 0)


def test_a_file_of_too_many_rows_is_left_out(reader, put, monkeypatch):
    monkeypatch.setattr(record_decoding, "LIMIT_FILE_ROWS", 9)
    put("2026-03-04", "a.parquet")
    assert (len(reader.read_new()), reader.refused_files) == (0, 1)
