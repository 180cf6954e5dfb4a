"""One retraining at a time, on what people said; whatever becomes of it, the champion stays."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from model.errors import MonitorError
from model.state import alarms, feedback, retrainings, write_transaction
from model.store import ModelStore
from monitoring import labels as labels_module
from monitoring import retrain as retraining
from monitoring import retraining_lock
from monitoring.alarm import LABELLED_MISTAKES
from monitoring.image_store import FOLDERS
from monitoring.labels import BEGINNING, LabelCounter, forget_unjoined, labelled_images
from monitoring.launcher import Launcher, in_words
from monitoring.monitor import Monitor
from monitoring.records import to_table, write_records
from monitoring.retrain import (
    COST_MATRIX,
    Comparison,
    NoNewLabelsError,
    _none_arguments,
    _threshold_arguments,
    _training_arguments,
    new_labels,
    retrain,
)
from monitoring.retraining_images import remove_unneeded
from monitoring.retraining_lock import close_dead, last_retraining, stop_here
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch
from training.cost_matrix import read_cost_matrix

LEAST = 10
TRUSTED = "anna"
BEGINNING_OF_TESTS = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(store):
    return MonitoringSettings(
        home=store.home, retrain_least_labels=LEAST, retrain_trusted_clients=TRUSTED
    )


@pytest.fixture
def production(store, settings, draw):
    """`production(tag, count)`: recorded, stored images, with labels where `labels` are given."""

    def put(tag: str, count: int, seed: int = 1, labels=("star",), stored=True, client=TRUSTED):
        records = draw(tag, count, seed)
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{seed}.parquet", records)
        images = settings.images / FOLDERS[0]
        images.mkdir(parents=True, exist_ok=True)
        for record in records:
            if stored:
                (images / f"{record.id}.png").write_bytes(b"image of " + record.id.encode())
            say(store, record.id, labels, client)
        return records

    return put


def say(store, prediction_id: str, labels, client: str = TRUSTED) -> None:
    with write_transaction(store.state) as connection:
        connection.execute(
            feedback.insert().values(
                prediction_id=prediction_id,
                client=client,
                labels=json.dumps(list(labels)),
                model="m",
                received_at=datetime.now(UTC),
            )
        )


@pytest.fixture
def commands(store, make_manifest, fill_bundle, monkeypatch):
    """Stands in for the command line: what was asked, and what accuracies it finds.

    The challengers that it trains are registered.
    """
    asked = []

    def run(settings, arguments):
        asked.append(list(arguments))
        if arguments[0] != "train":
            learned = "more" in store.load(store.find(arguments[1])).manifest.training
            return {"accuracy": 0.8 if learned else 0.6}
        more = arguments[arguments.index("--more") + 1]
        with store.registering("shapes") as (version, directory, seal):
            fill_bundle(directory)
            seal(make_manifest(version=version, training={"more": more}))
        return {"version": f"shapes:{version}"}

    monkeypatch.setattr(retraining, "_plumbline", run)
    return asked


def wait_for(condition, seconds: float = 20):
    """What the condition gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


def rows(store):
    with store.state.connect() as connection:
        return connection.execute(select(retrainings).order_by(retrainings.c.id)).all()


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_trains_on_labels_and_compares_on_the_newest(
    store, settings, watched, production, commands
):
    tag = watched()
    records = production(tag, 20)
    found = retrain(settings, "a test")
    train = dict(zip(commands[0][1::2], commands[0][2::2], strict=False))
    assert (train["--weights"], train["--data"], train["--name"]) == (tag, "made up", "shapes")
    learned = table(train["--more"])
    assert [row["fname"] for row in learned] == [f"{its.id}.png" for its in records[:16]]
    assert {row["labels"] for row in learned} == {"star"}
    held_out = next(its for its in commands if "held-out" in " ".join(its))
    path = held_out[held_out.index("--data") + 1]
    assert [row["fname"] for row in table(path)] == [f"{its.id}.png" for its in records[16:]]
    assert all((Path(path).parent / row["fname"]).is_file() for row in table(path))
    assert found.production == found.test == {"champion": 0.6, "challenger": 0.8}
    assert found.production_images == 4
    assert "0.800 against 0.600 on the 4 newest" in found.in_words()
    (row,) = rows(store)
    assert (row.outcome, row.why) == ("challenger", "a test")
    assert in_words(row) == found.in_words()
    assert store.champion("shapes").tag == tag


def test_a_champion_in_int8_is_followed_by_one(make_manifest):
    for settings, asked in (({"int8": True}, True), ({"int8": False}, False), ({}, False)):
        champion = make_manifest(training=settings)
        assert ("--int8" in _training_arguments(champion, Path("labels.csv"), " ")) is asked


def test_without_new_labels_it_does_not_train_and_says_so(
    store, settings, watched, production, commands
):
    tag = watched()
    production(tag, LEAST - 1)
    with pytest.raises(NoNewLabelsError, match=r"9 images with new labels, and .* is 10"):
        retrain(settings, "a test")
    assert (commands, rows(store)) == ([], [])
    production(tag, 2, seed=2)
    retrain(settings, "enough now")
    with pytest.raises(NoNewLabelsError, match="0 images with new labels"):
        retrain(settings, "nothing came since")


def test_a_label_that_comes_while_a_retraining_begins_is_new_the_next_time(
    store, settings, watched, production, commands, monkeypatch
):
    tag = watched()
    records = production(tag, 20)
    begin = retraining.begin

    def begin_late(*arguments):
        say(store, records[3].id, ["star"], client="ben")
        return begin(*arguments)

    monkeypatch.setattr(retraining, "begin", begin_late)
    retrain(settings, "a test")
    found = new_labels(settings, store, store.load(store.find(tag)).manifest)
    assert [its.prediction_id for its in found.recent] == [records[3].id]


def test_after_an_alarm_only_what_came_since_counts_as_enough(
    store, settings, watched, production, commands
):
    tag = watched()
    production(tag, 50, seed=1)
    later = production(tag, LEAST - 1, seed=2)
    with write_transaction(store.state) as connection:
        connection.execute(
            alarms.insert().values(
                model=tag, time=later[0].time.isoformat(), stream="brightness", after_images=7
            )
        )
    with pytest.raises(NoNewLabelsError, match=r"9 images with new labels since 2026-03-04"):
        retrain(settings, "a test")
    production(tag, 1, seed=3)
    found = retrain(settings, "a test")
    assert found.production_images == 2  # a fifth of the ten, though sixty are learned from


def test_an_alarm_of_labels_does_not_leave_out_the_images_that_raised_it(
    store, settings, watched, production
):
    """Its time is when a label came; their images were predicted before."""
    tag = watched()
    images = production(tag, 12, seed=1)
    late = images[-1].time + timedelta(hours=1)
    with write_transaction(store.state) as connection:
        connection.execute(
            alarms.insert().values(
                model=tag, time=late.isoformat(), stream=LABELLED_MISTAKES, after_images=7
            )
        )
    assert len(new_labels(settings, store, store.load(store.find(tag)).manifest).recent) == 12


def test_labels_that_cannot_be_used_are_left_out_by_reason(store, settings, watched, production):
    tag = watched()
    good = production(tag, 4, seed=1)
    production(tag, 3, seed=2, stored=False)
    production(tag, 2, seed=3, labels=("triangle",))
    production(tag, 5, seed=4, labels=("star", "circle"))  # one of each image, in a single task
    say(store, good[0].id, ["circle"], client="ben")  # two clients, two answers
    say(store, good[1].id, ["star"], client="ben")  # two clients, one answer
    say(store, str(uuid.UUID(int=5)), ["star"])
    manifest = store.load(store.find(tag)).manifest
    labels = new_labels(settings, store, manifest)
    assert [its.prediction_id for its in labels.images] == [its.id for its in good[1:]]
    assert labels.left_out == (
        "1 have no record, 3 have no stored image, 1 are contradicted,"
        " 2 name classes that the model has not, 5 have labels that the task cannot learn from"
    )


def test_a_second_retraining_is_refused_while_the_first_lives(
    store, settings, watched, production, commands, monkeypatch
):
    tag = watched()
    production(tag, 20)

    def train(*arguments):
        with pytest.raises(MonitorError, match=f"running since .*process {os.getpid()}"):
            retrain(settings, "the second")
        return Comparison(tag, "b", None, {"champion": 0.0, "challenger": 0.0}, 1)

    monkeypatch.setattr(retraining, "_train_and_compare", train)
    retrain(settings, "the first")
    assert [row.why for row in rows(store)] == ["the first"]


def test_a_killed_retraining_is_noticed_and_does_not_bar_the_next(
    store, settings, watched, production, commands
):
    tag = watched()
    production(tag, 20)
    code = (
        "import os, signal\n"
        "from model.settings import read_settings\n"
        "from monitoring import retrain\n"
        "from monitoring.settings import MonitoringSettings\n"
        "retrain._train_and_compare = lambda *its: os.kill(os.getpid(), signal.SIGKILL)\n"
        "retrain.retrain(read_settings(MonitoringSettings), 'to be killed')\n"
    )
    environment = {
        **os.environ,
        "PLUMBLINE_HOME": str(store.home),
        "PLUMBLINE_RETRAIN_LEAST_LABELS": str(LEAST),
        "PLUMBLINE_RETRAIN_TRUSTED_CLIENTS": TRUSTED,
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -9
    assert rows(store)[0].outcome is None
    assert close_dead(store.state) == [1]
    assert "its process was killed; the champion is untouched" in in_words(rows(store)[0])
    assert retrain(settings, "again").production_images == 4
    assert store.champion("shapes").tag == tag


def put_row(store, **fields) -> None:
    own = f"{retraining_lock._place()}:{retraining_lock._start(os.getpid())}"
    values = {
        "model": "shapes",
        "why": "long ago",
        "started_at": datetime.now(UTC),
        "host": "here",
        "process": os.getpid(),
        "process_started": own,
        "detail": "",
    }
    with write_transaction(store.state) as connection:
        connection.execute(retrainings.insert().values(values | fields))


def alive_at(time: datetime) -> str:
    return json.dumps({"alive_at": time.isoformat()})


class TestCounting:
    """While the monitor waits for labels it counts them every few seconds."""

    @pytest.fixture
    def counting(self, store, settings, watched):
        """`counting(since)`: a counter, and a function that gives what a retraining would find."""
        manifest = store.load(store.find(watched())).manifest

        def make(since=BEGINNING_OF_TESTS, **options):
            counter = LabelCounter(settings, store.state, manifest, since=since, **options)
            return counter, lambda: len(labelled_images(settings, store.state, manifest).recent)

        make.tag = manifest.tag
        return make

    def test_it_agrees_with_the_retraining_however_late_labels_come(
        self, store, counting, production
    ):
        counter, recent = counting()
        assert counter.count().images == recent() == 0
        early = production(counting.tag, 6, seed=1)
        production(counting.tag, 3, seed=2, stored=False)
        production(counting.tag, 2, seed=3, labels=("triangle",))
        say(store, early[0].id, ["circle"], client="ben")
        say(store, str(uuid.UUID(int=5)), ["star"])
        assert counter.count().images == recent() == 5
        with write_transaction(store.state) as connection:
            connection.execute(feedback.delete())
        assert counter.count().images == recent() == 0
        production(counting.tag, 4, seed=4)
        say(store, early[0].id, ["star"])
        assert counter.count().images == recent() == 5

    def test_only_what_was_predicted_and_labelled_since_counts(self, store, counting, production):
        production(counting.tag, 3, seed=1)
        later = production(counting.tag, 4, seed=2)
        assert counting(later[0].time)[0].count().images == 4
        now = datetime.now(UTC)
        counter, _ = counting(later[0].time, received_after=now)
        assert counter.count().images == 0
        say(store, later[1].id, ["star"], client="ben")
        assert counter.count().images == 1

    def test_each_file_of_records_is_read_once_and_none_without_labels(
        self, store, settings, counting, production, caplog
    ):
        counter, _ = counting()
        torn = Path(settings.records) / "date=2026-03-04" / "torn.parquet"
        torn.parent.mkdir(parents=True)
        torn.write_bytes(b"PAR1")
        counter.count()
        assert "torn.parquet" not in caplog.text
        production(counting.tag, 3)
        for _ in range(3):
            assert counter.count().images == 3
        assert caplog.text.count("torn.parquet") == 1

    def test_it_keeps_a_bounded_part_of_the_records_and_reads_them_piece_by_piece(
        self, counting, production, monkeypatch
    ):
        monkeypatch.setattr(labels_module, "_ROWS_AT_ONCE", 10)
        monkeypatch.setattr(labels_module, "_IDS_KEPT", 30)
        counter, _ = counting()
        for seed in range(1, 6):
            production(counting.tag, 10, seed=seed)
        assert [counter.count().images for _ in range(6)] == [10, 20, 30, 30, 30, 30]
        assert len(counter._predicted) == 30


def id_at(time: datetime, number: int = 1) -> str:
    """A UUIDv7, as the service gives."""
    milliseconds = int(time.timestamp() * 1000)
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | number))


@pytest.fixture
def predicted(store, settings, draw, watched):
    """`predicted(time, number)`: a prediction with a record, a stored image and an id of ours."""
    tag = watched()

    def put(time: datetime, number: int = 1) -> str:
        (its,) = draw(tag, 1, number)
        its = replace(its, id=id_at(time, number), time=time)
        folder = store.home / "records" / f"date={time:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_records(folder / f"{number}.parquet", [its])
        images = settings.images / FOLDERS[0]
        images.mkdir(parents=True, exist_ok=True)
        (images / f"{its.id}.png").write_bytes(b"image of " + its.id.encode())
        return its.id

    put.tag = tag
    return put


def test_a_retraining_reads_no_records_of_days_without_a_labelled_image(
    store, settings, predicted, caplog
):
    now = datetime.now(UTC)
    torn = Path(settings.records) / f"date={now - timedelta(days=3):%Y-%m-%d}" / "torn.parquet"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"PAR1")
    say(store, predicted(now), ["star"])
    say(store, id_at(now - timedelta(days=3)), ["star"])
    found = new_labels(settings, store, store.load(store.find(predicted.tag)).manifest)
    assert "torn.parquet" not in caplog.text
    assert len(found.images) == 1
    assert found.left_out == "1 have no stored image"


class TestForgetting:
    def said(self, store) -> set[str]:
        with store.state.connect() as connection:
            return set(connection.scalars(select(feedback.c.prediction_id)))

    @pytest.fixture
    def say_days_ago(self, store):
        def put(prediction_id: str, days: float) -> str:
            say(store, prediction_id, ["star"])
            received = datetime.now(UTC) - timedelta(days=days)
            with write_transaction(store.state) as connection:
                same = feedback.c.prediction_id == prediction_id
                connection.execute(feedback.update().where(same).values(received_at=received))
            return prediction_id

        return put

    def test_labels_of_ids_that_no_record_has_go_after_a_day(
        self, store, settings, predicted, say_days_ago
    ):
        now = datetime.now(UTC)
        predicted(now - timedelta(days=9), 1)
        joined = say_days_ago(predicted(now - timedelta(days=3), 2), 3)
        fresh = say_days_ago(id_at(now, 3), 0.9)
        removed = say_days_ago(id_at(now - timedelta(days=30), 4), 3)  # as its record was
        say_days_ago(id_at(now - timedelta(days=3), 5), 3)
        say_days_ago(id_at(now + timedelta(days=10**6), 6), 1.1)
        say_days_ago(str(uuid.uuid4()), 1.1)
        until = forget_unjoined(settings, store.state, BEGINNING)
        assert self.said(store) == {joined, fresh, removed}
        again = say_days_ago(id_at(now - timedelta(days=3), 7), 3)
        forget_unjoined(settings, store.state, until)
        assert again in self.said(store)  # it was looked at before `until`

    def test_where_there_are_no_records_nothing_goes(self, store, settings, say_days_ago):
        """They may be looked for in the wrong place."""
        kept = say_days_ago(id_at(datetime.now(UTC)), 5)
        assert forget_unjoined(settings, store.state, BEGINNING) == BEGINNING
        assert self.said(store) == {kept}

    def test_the_monitor_sees_to_it(self, store, settings, predicted, say_days_ago):
        predicted(datetime.now(UTC), 1)
        say_days_ago(id_at(datetime.now(UTC), 2), 2)
        Launcher(settings, store).consider(None)
        wait_for(lambda: not self.said(store))


def test_what_an_alarm_started_here_can_be_stopped_and_nothing_else(store):
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(4)]
    names = [f"{retraining_lock._place()}:{retraining_lock._start(its.pid)}" for its in processes]
    for process, name, fields in zip(
        processes,
        names,
        (
            {"why": "alarm: brightness at noon"},
            {"why": "by hand"},
            {"why": "alarm: brightness at noon", "model": "others"},
            {"why": "alarm: brightness at noon", "process_started": f"{TestLock.ELSEWHERE}:1"},
        ),
        strict=True,
    ):
        put_row(store, **{"process": process.pid, "process_started": name, **fields})
    try:
        assert stop_here(store.state, "shapes") == [1]
        assert processes[0].wait(20) == -signal.SIGTERM
        assert [its.poll() for its in processes[1:]] == [None] * 3
        assert stop_here(store.state, "shapes") == []
    finally:
        for process in processes:
            process.kill()
            process.wait()


class TestLock:
    ELSEWHERE = "00000000-0:77"

    def test_a_process_that_lives_holds_it_whatever_the_clocks_say(self, store):
        long_ago = datetime.now(UTC) - timedelta(days=400)
        put_row(store, started_at=long_ago, detail=alive_at(long_ago), host="renamed since")
        assert close_dead(store.state) == []

    def test_a_process_of_the_same_number_is_not_taken_for_it(self, store):
        put_row(store, process_started=f"{retraining_lock._place()}:1")
        assert close_dead(store.state) == [1]
        assert "its process was killed" in rows(store)[0].detail

    def test_one_that_ended_and_was_not_waited_for_is_dead(self, store):
        child = subprocess.Popen(["sleep", "60"])
        start = retraining_lock._start(child.pid)
        put_row(store, process=child.pid, process_started=f"{retraining_lock._place()}:{start}")
        assert close_dead(store.state) == []
        child.kill()
        wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert close_dead(store.state) == [1]
        child.wait()

    @pytest.mark.parametrize("minutes", [-400, -6, 6])
    def test_one_elsewhere_that_is_silent_is_dead(self, store, minutes):
        """As after the restart of a container, or a clock that was set back."""
        beat = datetime.now(UTC) + timedelta(minutes=minutes)
        put_row(store, process_started=self.ELSEWHERE, detail=alive_at(beat))
        assert close_dead(store.state) == [1]
        assert "nothing was heard of its process on here for 5 minutes" in rows(store)[0].detail

    def test_one_elsewhere_that_says_so_lives(self, store, settings, watched, production, commands):
        beat = datetime.now(UTC) - timedelta(minutes=4)
        begun = datetime.now(UTC) - timedelta(hours=4)
        put_row(
            store, process_started=self.ELSEWHERE, detail=alive_at(beat), started_at=begun, host="b"
        )
        assert close_dead(store.state) == []
        production(watched(), 20)
        with pytest.raises(MonitorError, match=r"on b, last heard of at .* for 5 minutes at most"):
            retrain(settings, "another")

    def test_one_that_was_never_heard_of_is_dead_minutes_after_it_began(self, store):
        put_row(store, process_started="1780000000.25", started_at=datetime(2026, 1, 1, tzinfo=UTC))
        assert close_dead(store.state) == [1]

    def test_a_running_one_says_that_it_lives(
        self, store, settings, watched, production, monkeypatch
    ):
        monkeypatch.setattr(retraining_lock, "_BEAT_SECONDS", 0.01)
        tag = watched()
        production(tag, 20)

        def train(*arguments):
            first = rows(store)[0].detail
            wait_for(lambda: rows(store)[0].detail > first)
            return Comparison(tag, "b", None, {"champion": 0.0, "challenger": 0.0}, 1)

        monkeypatch.setattr(retraining, "_train_and_compare", train)
        found = retrain(settings, "a test")
        assert in_words(rows(store)[0]) == found.in_words()


def test_a_training_that_fails_is_told_with_its_last_words(store, settings, watched, production):
    tag = watched()
    production(tag, 20)
    with pytest.raises(MonitorError, match=r"plumbline train ended with code 2: error: --data"):
        retrain(settings, "the data is gone")
    (row,) = rows(store)
    assert row.outcome == "failed"
    assert "made up" in in_words(row)
    assert store.champion("shapes").tag == tag


def test_what_is_held_out_was_never_learned_though_its_label_came_late(
    store, settings, watched, production, commands
):
    """A label for an old picture is new; a newer picture that was learned is not held out again."""
    tag = watched()
    early = production(tag, 10, seed=1)
    with write_transaction(store.state) as connection:
        connection.execute(feedback.delete())
    production(tag, 10, seed=2)
    retrain(settings, "the first")
    commands.clear()
    for record in early:
        say(store, record.id, ["star"])
    retrain(settings, "the second")
    held_out = next(its for its in commands if "held-out" in " ".join(its))
    names = [row["fname"] for row in table(held_out[held_out.index("--data") + 1])]
    assert names == [f"{its.id}.png" for its in early[-2:]]


def test_a_training_ends_with_a_retraining_that_was_killed(store):
    """Else it would go on beside the next one, whose way the lock is then free for."""
    code = (
        "from model.settings import read_settings\n"
        "from monitoring import retrain\n"
        "from monitoring.settings import MonitoringSettings\n"
        "retrain._plumbline(read_settings(MonitoringSettings), ['monitor', '--port', '%d'])\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PLUMBLINE_HOME": str(store.home)}
    parent = subprocess.Popen([sys.executable, "-c", code % port], env=environment)

    def training() -> psutil.Process | None:
        """The child, once it is no copy of its parent any more."""
        assert parent.poll() is None
        for child in psutil.Process(parent.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "plumbline" in child.cmdline():
                    return child
        return None

    child = wait_for(training)
    parent.kill()
    parent.wait()
    child.wait(20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a training outlives its parent")
def test_a_training_whose_retraining_was_killed_before_it_could_ask_ends_at_once():
    """A child asks to be told of its parent's end; if that came before, nobody tells."""
    not_the_parent = partial(retraining._end_with_parent, os.getpid() + 1)
    child = subprocess.Popen(["sleep", "60"], preexec_fn=not_the_parent)
    assert child.wait(20) == retraining._ORPHANED


class TestLauncher:
    @pytest.fixture
    def started(self, monkeypatch):
        """Commands that were started; each is over at once."""
        commands = []
        start = subprocess.Popen

        def note(command, **options):
            commands.append(command)
            child = start(["true"])
            child.wait()
            return child

        monkeypatch.setattr("monitoring.launcher.subprocess.Popen", note)
        monkeypatch.setattr("monitoring.launcher._LOOK_SECONDS", 0.0)
        return commands

    @pytest.fixture
    def drifting(self, store, settings, watched, production, draw):
        """A watch in drift, whose images since the alarm are labelled."""
        tag = watched()
        monitor = Monitor(settings, store)
        records = draw(tag, 200, 1, darker=0.4)
        folder = store.home / "records" / f"date={records[0].time:%Y-%m-%d}"
        folder.mkdir(parents=True)
        write_records(folder / "dark.parquet", records)
        monitor.poll()
        assert monitor.watch.drift is not None
        return monitor.watch

    def test_an_alarm_waits_for_labels_and_starts_one_retraining(
        self, store, settings, drifting, production, started
    ):
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert (
            launcher.waiting_for
            == "waiting for labels: 0 of 10 images since the alarm are labelled"
        )
        production(drifting.manifest.tag, LEAST, seed=2)
        launcher.consider(drifting)
        (command,) = started
        assert command[-2:] == ["--why", f"alarm: brightness at {drifting.drift.time}"]

    def test_a_change_of_the_class_mix_alone_starts_none_and_says_what_to_do(
        self, store, settings, drifting, production, started, monkeypatch
    ):
        production(drifting.manifest.tag, LEAST, seed=2)
        explained = {"recognised": True}
        monkeypatch.setattr(drifting, "class_mix_change", lambda: explained)
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert started == []
        assert "not needed: a change of the class mix alone explains" in launcher.waiting_for
        explained["recognised"] = False
        Launcher(settings, store).consider(drifting)
        assert len(started) == 1

    @pytest.mark.parametrize("is_told_before", [True, False])
    def test_a_restart_does_not_start_what_was_not_needed(
        self, store, settings, champion, of_world, production, started, is_told_before
    ):
        """Whether or not the last saved state knows that the class mix alone explains the alarm."""
        watch = Watch(champion(), settings)
        made, _ = of_world(watch.manifest.tag, 1_200, 1, (0.6, 0.3, 0.1))
        watch.take(to_table(made))
        assert watch.drift is not None
        production(watch.manifest.tag, LEAST, seed=2)
        before = watch.to_state()
        launcher = Launcher(settings, store)
        launcher.consider(watch)
        assert launcher.waiting_for.startswith("not needed")
        again = Watch(watch.bundle, settings)
        again.restore(json.loads(json.dumps(watch.to_state() if is_told_before else before)))
        launcher = Launcher(settings, store)
        launcher.consider(again)
        few = "waiting for images: 0 of 200 have come since the start"
        assert launcher.waiting_for.startswith("not needed" if is_told_before else few)
        more, _ = of_world(watch.manifest.tag, 600, 3, (0.6, 0.3, 0.1))
        again.take(to_table(more))
        launcher.consider(again)
        assert launcher.waiting_for.startswith("not needed")
        assert started == []

    def test_a_flood_from_one_client_starts_none_and_is_told_until_somebody_trusts_it(
        self, store, settings, drifting, production, started, commands, caplog
    ):
        caplog.set_level("INFO")
        production(drifting.manifest.tag, 5 * LEAST, seed=2, client="mallory")
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert started == []
        what_waits = (
            "45 more wait for trust: of what one client alone labelled, at most 5 count, and"
            " 'mallory' labelled 50; name those that you trust in PLUMBLINE_RETRAIN_TRUSTED_CLIENTS"
        )
        assert launcher.waiting_for.startswith(
            f"waiting for trust: 5 of 10 images since the alarm are labelled; {what_waits}"
        )
        assert launcher.waiting_for in caplog.text
        with pytest.raises(NoNewLabelsError, match=r"^5 images with new labels") as refusal:
            retrain(settings, "a test")
        assert what_waits in str(refusal.value)
        trusting = settings.model_copy(update={"retrain_trusted_clients": "mallory"})
        Launcher(trusting, store).consider(drifting)
        assert len(started) == 1
        assert retrain(trusting, "a test").production_images == LEAST

    def test_labels_of_another_client_too_start_one(
        self, store, settings, drifting, production, started
    ):
        production(drifting.manifest.tag, 5 * LEAST, seed=2, client="mallory")
        production(drifting.manifest.tag, 4, seed=3, client="anna")
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert launcher.waiting_for.startswith("waiting for trust: 9 of 10 images")
        production(drifting.manifest.tag, 1, seed=4, client="anna")
        Launcher(settings, store).consider(drifting)
        assert len(started) == 1

    def test_while_trust_would_not_do_it_waits_for_labels(
        self, store, settings, drifting, production, started
    ):
        production(drifting.manifest.tag, LEAST - 1, seed=2, client="mallory")
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert launcher.waiting_for.startswith("waiting for labels: 5 of 10 images")
        assert "4 more wait for trust" in launcher.waiting_for

    def test_the_same_alarm_does_not_start_another(
        self, store, settings, drifting, production, started, commands
    ):
        production(drifting.manifest.tag, LEAST, seed=2)
        retrain(settings, f"alarm: brightness at {drifting.drift.time}")
        production(drifting.manifest.tag, LEAST, seed=3)
        Launcher(settings, store).consider(drifting)
        assert started == []

    def test_the_next_alarm_waits_for_the_cooldown(
        self, store, settings, drifting, production, started, commands
    ):
        production(drifting.manifest.tag, LEAST, seed=2)
        retrain(settings, "alarm: another")
        production(drifting.manifest.tag, LEAST, seed=3)
        launcher = Launcher(settings, store)
        launcher.consider(drifting)
        assert launcher.waiting_for.startswith("cooling down until")
        assert started == []
        hasty = settings.model_copy(update={"retrain_cooldown_seconds": 0.0})
        Launcher(hasty, store).consider(drifting)
        assert len(started) == 1

    def test_it_starts_nothing_where_that_is_switched_off_or_all_is_well(
        self, store, settings, drifting, production, started
    ):
        production(drifting.manifest.tag, LEAST, seed=2)
        off = settings.model_copy(update={"retrain_on_alarm": False})
        Launcher(off, store).consider(drifting)
        drifting.drift = None
        Launcher(settings, store).consider(drifting)
        Launcher(settings, store).consider(None)
        assert started == []


@pytest.fixture
def learned_before(monkeypatch, tmp_path):
    """`learned_before({name: content})`: the champion has learned these images, as circles."""

    def put(images: dict[str, bytes]) -> Path:
        earlier = tmp_path / "earlier"
        earlier.mkdir()
        for name, content in images.items():
            (earlier / name).write_bytes(content)
        lines = ["fname,labels", *(f"{name},circle" for name in images)]
        (earlier / "items.csv").write_text("\n".join(lines) + "\n")
        load = ModelStore.load

        def with_more(self, version):
            bundle = load(self, version)
            training = {"more": str(earlier / "items.csv"), **bundle.manifest.training}
            manifest = bundle.manifest.model_copy(update={"training": training})
            return replace(bundle, manifest=manifest)

        monkeypatch.setattr(ModelStore, "load", with_more)
        return earlier

    return put


def held_out_names(commands) -> list[str]:
    command = next(its for its in commands if "held-out" in " ".join(its))
    return [row["fname"] for row in table(command[command.index("--data") + 1])]


def test_what_the_champion_learned_from_production_is_learned_again(
    settings, watched, production, commands, learned_before
):
    learned_before({"old.png": b"old"})
    production(watched(), 20)
    retrain(settings, "the second time")
    path = commands[0][commands[0].index("--more") + 1]
    assert table(path)[-1] == {"fname": "old.png", "labels": "circle"}
    assert (Path(path).parent / "old.png").read_bytes() == b"old"


def test_what_the_champion_learned_is_not_held_out_under_another_id(
    settings, watched, production, commands, learned_before
):
    records = production(watched(), 20)
    learned_before({"old.png": b"image of " + records[-1].id.encode()})
    found = retrain(settings, "the second time")
    assert held_out_names(commands) == [f"{its.id}.png" for its in records[-5:-1]]
    assert found.production_images == 4


def test_it_is_still_known_when_the_images_are_gone(
    store, settings, watched, production, commands, learned_before
):
    """The table of a champion's champion may go; what was learned has been written down."""
    tag = watched()
    records = production(tag, 20)
    earlier = learned_before({"old.png": b"image of " + records[-1].id.encode()})
    manifest = store.load(store.find(tag)).manifest
    retraining.note_learned(earlier, manifest)
    (earlier / "old.png").unlink()
    (earlier / "items.csv").unlink()
    retrain(settings, "the second time")
    assert f"{records[-1].id}.png" not in held_out_names(commands)


def test_where_the_champion_has_learned_all_of_them_there_is_nothing_to_compare_on(
    settings, watched, production, commands, learned_before
):
    records = production(watched(), LEAST)
    learned_before({f"{its.id}.png": b"image of " + its.id.encode() for its in records})
    with pytest.raises(NoNewLabelsError, match=r"has learned all of the 10 images"):
        retrain(settings, "a test")
    assert commands == []


def test_copies_of_one_image_are_held_out_once_and_not_learned(
    settings, watched, production, commands
):
    records = production(watched(), 20)
    for its in records[-3:]:
        (settings.images / FOLDERS[0] / f"{its.id}.png").write_bytes(b"the same")
    assert retrain(settings, "a test").production_images == 4
    names = [f"{its.id}.png" for its in records]
    assert held_out_names(commands) == [*names[-6:-3], names[-1]]
    learned = table(commands[0][commands[0].index("--more") + 1])
    assert [row["fname"] for row in learned] == names[:-6]


def test_the_comparison_counts_the_images_that_there_still_were(
    settings, watched, production, commands, monkeypatch
):
    """Retention goes on while a retraining begins."""
    records = production(watched(), 20)
    begin = retraining.begin

    def begin_late(*arguments):
        (settings.images / FOLDERS[0] / f"{records[-1].id}.png").unlink()
        return begin(*arguments)

    monkeypatch.setattr(retraining, "begin", begin_late)
    found = retrain(settings, "a test")
    assert found.production_images == 3
    assert "on the 3 newest" in found.in_words()


def test_what_was_left_out_is_told_with_the_comparison(settings, watched, production, commands):
    tag = watched()
    production(tag, 20)
    production(tag, 2, seed=2, labels=("triangle",))
    found = retrain(settings, "a test")
    assert "Of the labelled images, 2 name classes that the model has not" in found.in_words()


class TestCopies:
    """Images that were copied for a retraining go with the last version that needs them."""

    @pytest.fixture
    def learn(self, store, settings, watched, production, commands):
        """`learn(number)`: a retraining on new images; gives the challenger."""
        tags = [watched()]

        def retrain_once(number: int) -> str:
            production(tags[0], 20, seed=number)
            return retrain(settings, f"retraining {number}").challenger

        return retrain_once

    def kept(self, store) -> list[int]:
        """Numbers of the retrainings whose images are there."""
        folders = (store.home / "retraining").glob("shapes-*")
        return sorted(int(its.name.split("-")[1]) for its in folders if list(its.rglob("*.png")))

    def test_a_challenger_that_is_passed_over_loses_them(self, store, learn):
        learn(1)
        assert self.kept(store) == [1]
        learn(2)
        assert self.kept(store) == [2]

    def test_they_stay_for_the_champion_and_the_one_before_it(self, store, learn):
        for number in (1, 2, 3):
            store.promote(learn(number))
        assert self.kept(store) == [1, 2, 3]
        remove_unneeded(store, "shapes")
        assert self.kept(store) == [2, 3]
        (gone,) = (store.home / "retraining").glob("shapes-1-*")
        assert [its.name for its in gone.rglob("*.*")] == ["digests.txt"]
        learn(4)
        assert self.kept(store) == [2, 3, 4]

    def test_those_of_a_killed_retraining_go_and_of_a_running_one_stay(self, store):
        for name in ("shapes-7", "shapes-8", "shapes-of-ours-7"):
            (store.home / "retraining" / f"{name}-20260101T000000").mkdir(parents=True)
        put_row(store, id=8)
        remove_unneeded(store, "shapes")
        left = {its.name for its in (store.home / "retraining").iterdir()}
        assert left == {"shapes-8-20260101T000000", "shapes-of-ours-7-20260101T000000"}

    def test_the_monitor_removes_them_after_a_promotion(self, store, settings, learn):
        for number in (1, 2, 3):
            store.promote(learn(number))
        Launcher(settings, store).consider(None)
        wait_for(lambda: self.kept(store) == [2, 3])


def test_the_last_retraining_is_of_the_model_that_is_asked(
    store, settings, watched, production, commands
):
    production(watched(), 20)
    retrain(settings, "a test")
    assert last_retraining(store.state, "shapes").why == "a test"
    assert last_retraining(store.state, "others") is None


def test_a_challenger_is_tuned_for_what_the_champion_was(make_manifest, tmp_path):
    classes = ("circle", "square, or so", "star")
    costs = {name: {"false_positive": 1.0, "false_negative": 2.5} for name in classes}
    settings = {"objective": "cost", "costs": costs, "per_class_thresholds": False}
    champion = make_manifest(task="multi", classes=classes, training=settings)
    arguments = _threshold_arguments(champion, tmp_path)
    path = tmp_path / COST_MATRIX
    assert arguments == [
        *("--objective", "cost", "--cost-matrix", str(path), "--no-per-class-thresholds")
    ]
    assert read_cost_matrix(path, classes).to_dict(classes) == costs


def test_of_an_older_champion_nothing_is_asked(make_manifest, tmp_path):
    champion = make_manifest(task="multi", training={"epochs": 1})
    assert _threshold_arguments(champion, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_retraining_may_say_none_as_the_champion_learned_to(make_manifest):
    settings = {"negatives": "/others", "foreign": "/far", "none_loss": 0.05, "head": "sigmoid"}
    single = make_manifest(none_allowed=True, training=settings)
    assert _none_arguments(single) == [
        *("--foreign", "/far", "--none", "--head", "sigmoid"),
        *("--negatives", "/others", "--none-loss", "0.05"),
    ]
    several = make_manifest(task="multi", none_allowed=True, training=settings)
    assert _none_arguments(several) == ["--foreign", "/far"]
    never = make_manifest(none_allowed=False, training={"head": "softmax"})
    assert _none_arguments(never) == []
