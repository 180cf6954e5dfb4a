"""Whatever the writers, their clocks and their files' order: each record once, and in order."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import record_merge
from monitoring.record_merge import MergedRecords
from monitoring.record_reader import RecordReader
from monitoring.records import RecordSink, write_records

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
HOLD = 3.0
COLUMNS = ("id", "time", "labels")


class World:
    """A folder of records, a clock that only tests move, and a monitor that may be killed."""

    def __init__(self, folder: Path, monkeypatch, draw, hold: float = HOLD) -> None:
        self._folder, self._hold = folder, hold
        self.seconds = 0.0  # since noon
        self._files = 0
        self._draw = draw
        world = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return world.now

        class Steady:
            monotonic = staticmethod(lambda: world.seconds)

        for name in ("record_merge", "record_reader"):
            monkeypatch.setattr(f"monitoring.{name}.time", Steady)
            monkeypatch.setattr(f"monitoring.{name}.datetime", Clock)
        self.records = MergedRecords(RecordReader(str(folder), COLUMNS), hold)

    @property
    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def write(self, *said: tuple[str, float]) -> None:
        """One more file, begun now: ids, and seconds after noon."""
        drawn = self._draw("shapes:1", len(said), 1)
        records = [
            replace(its, id=name, time=NOON + timedelta(seconds=seconds))
            for its, (name, seconds) in zip(drawn, said, strict=True)
        ]
        folder = self._folder / f"date={self.now:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        write_records(folder / f"{self.now:%H%M%S%f}-{self._files:012x}.parquet", records)

    def look(self, **limits: int) -> list[str]:
        return self.records.read_new(**limits)["id"].to_pylist()

    def kill(self) -> None:
        """Go on in a new process, from what was saved after the last look."""
        state = json.loads(json.dumps(self.records.to_state()))
        self.records = MergedRecords(RecordReader(str(self._folder), COLUMNS), self._hold)
        self.records.restore(state)


@pytest.fixture
def world(tmp_path, monkeypatch, draw):
    return World(tmp_path / "records", monkeypatch, draw)


def test_the_records_of_a_file_that_appears_later_come_in_their_place(world):
    world.seconds = 2.0
    world.write(("a", 0.5), ("c", 1.5))
    assert world.look() == []
    world.seconds = 3.0
    world.write(("b", 1.0), ("d", 2.5))  # of another worker, whose turn came a second later
    world.seconds = 5.0
    assert world.look() == ["a", "b", "c"]
    world.seconds = 6.0
    assert world.look() == ["d"]


def test_a_record_that_comes_too_late_is_given_at_once_and_once(world):
    world.seconds = 9.0
    world.write(("b", 8.0))
    world.seconds = 12.0
    assert world.look() == ["b"]
    world.write(("a", 1.0))
    assert [world.look(), world.look()] == [["a"], []]


def test_without_a_wait_all_is_given_as_it_comes(tmp_path, monkeypatch, draw):
    world = World(tmp_path, monkeypatch, draw, hold=0.0)
    world.write(("a", 0.0), ("b", 60.0))  # and of a clock that is ahead
    assert world.look() == ["a", "b"]


def test_a_writer_whose_clock_is_ahead_is_waited_for_no_longer_than_others(world):
    world.write(("b", 3_000.0), ("a", 0.0))
    seen = []
    for world.seconds in (1.0, 2.0, 4.0):
        seen.append(world.look())
    assert seen == [[], [], ["a", "b"]]


def test_a_clock_that_is_set_back_loses_nothing_and_repeats_nothing(world):
    world.seconds = 100.0
    world.write(("a", 99.0))
    world.seconds = 104.0
    assert world.look() == ["a"]
    world.seconds = 40.0  # this machine's, with the writers'
    world.write(("b", 39.0), ("c", 39.5))
    world.seconds = 41.0
    assert world.look() == ["b", "c"]
    world.kill()
    assert world.look() == []


def test_a_sink_whose_clock_is_set_back_names_its_files_on_and_they_are_read(
    tmp_path, monkeypatch, draw
):
    """By an hour; readers look for files of ten minutes back at most."""
    true_now = datetime.now(UTC)
    shift = timedelta()

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return true_now + shift

    monkeypatch.setattr("monitoring.records.datetime", Clock)
    sink = RecordSink(str(tmp_path), flush_seconds=60)
    one, other = draw("shapes:1", 2, 1)
    reader = RecordReader(str(tmp_path), COLUMNS)
    sink._write([one])
    assert len(reader.read_new()) == 1
    shift = timedelta(hours=-1)
    sink._write([other])
    assert reader.read_new()["id"].to_pylist() == [other.id]
    sink.close()


def test_a_record_in_two_files_counts_once_also_after_a_restart(world):
    world.write(("a", 0.0), ("b", 0.1), ("a", 0.2))
    world.write(("b", 0.1), ("c", 0.3))
    world.seconds = 5.0
    assert world.look() == ["a", "b", "c"]
    world.kill()
    world.write(("c", 0.3), ("d", 0.4))
    world.seconds = 9.0
    assert (world.look(), world.records.duplicates) == (["d"], 3)


def test_ids_are_remembered_in_bounded_number(world, monkeypatch):
    monkeypatch.setattr(record_merge, "IDS_KEPT", 2)
    for number, name in enumerate("abca"):
        world.seconds = 10.0 * number
        world.write((name, world.seconds))
        world.seconds += 5.0
        assert world.look() == [name]
    assert len(world.records.to_state()["last_ids"]) == 24  # two of eight bytes, in base64


def test_what_was_saved_by_a_monitor_of_before_is_gone_on_with(world):
    world.write(("a", 0.0))
    world.seconds = 5.0
    world.look()
    state = world.records.to_state()
    for name in ("open", "given_until", "last_ids", "duplicates"):
        del state[name]
    world.records.restore(state)
    world.write(("b", 4.0))
    world.seconds = 9.0
    assert world.look() == ["b"]


def test_an_open_file_that_cannot_be_read_after_a_restart_is_read_later(world, monkeypatch):
    world.write(("a", -5.0), ("b", 1.0))
    assert world.look() == ["a"]
    world.kill()
    reader = world.records._reader
    content = reader._store.content
    fail = lambda *given: (_ for _ in ()).throw(OSError("away"))  # noqa: E731
    monkeypatch.setattr(reader._store, "content", fail)
    with pytest.raises(OSError, match="away"):
        world.look()
    monkeypatch.setattr(reader._store, "content", content)
    world.seconds = 5.0
    assert [world.look(), world.look()] == [["b"], []]


def milliseconds(least: float, most: float) -> st.SearchStrategy[float]:
    """In seconds."""
    return st.integers(int(1000 * least), int(1000 * most)).map(lambda its: its / 1000)


@st.composite
def histories(draw_value):
    """Files of up to three writers, each with its clock; looks and kills between them."""
    steps = []
    names = iter(range(10_000))
    skews = draw_value(st.lists(st.sampled_from([0.0, -0.4, 0.3, -20.0, 40.0]), min_size=3))
    for _ in range(draw_value(st.integers(1, 12))):
        match draw_value(st.sampled_from(["write", "write", "wait", "look", "kill"])):
            case "write":
                writer = draw_value(st.integers(0, 2))
                ages = draw_value(st.lists(milliseconds(0, 2), min_size=1, max_size=4))
                steps.append(("write", [(f"{next(names)}", skews[writer] - age) for age in ages]))
            case "wait":
                steps.append(("wait", draw_value(milliseconds(0.1, 2.5))))
            case other:
                steps.append((other, draw_value(st.integers(1, 5))))
    return steps


@settings(max_examples=40)
@given(histories())
def test_each_record_is_given_once_and_each_look_is_in_order(draw, history):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "records", patch, draw)
        times: dict[str, float] = {}
        looks: list[list[str]] = []
        for step, what in history:
            match step:
                case "write":
                    said = [(name, world.seconds + age) for name, age in what]
                    times.update(said)
                    world.write(*said)
                case "wait":
                    world.seconds += what
                case "look":
                    looks.append(world.look(limit_rows=what))
                case "kill":
                    world.kill()
        for _ in range(3):
            world.seconds += HOLD
            looks.append(world.look())
        assert sorted(name for look in looks for name in look) == sorted(times)
        for look in looks:
            assert [times[name] for name in look] == sorted(times[name] for name in look)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(milliseconds(0, 6), milliseconds(0, HOLD - 1.2)), min_size=1, max_size=12),
    milliseconds(0.5, 1.0),
)
def test_where_no_file_is_late_the_whole_stream_is_in_order(draw, records, every):
    """Each record in a file that appears within the wait, less the time between two looks."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "records", patch, draw)
        appear = sorted(
            (time + late, f"{number}", time) for number, (time, late) in enumerate(records)
        )
        seen: list[str] = []
        while world.seconds < 13:
            while appear and appear[0][0] <= world.seconds:
                _, name, time = appear.pop(0)
                world.write((name, time))
            seen += world.look()
            world.seconds += every
        times = [records[int(name)][0] for name in seen]
        assert len(times) == len(records)
        assert times == sorted(times)
