"""One retraining at a time, on what people said; whatever becomes of it, the champion stays."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from model.errors import MonitorError
from model.state import alarms, feedback, retrainings, write_transaction
from monitoring import retrain as retraining
from monitoring.image_store import FOLDERS
from monitoring.launcher import Launcher, in_words
from monitoring.monitor import Monitor
from monitoring.records import write_records
from monitoring.retrain import (
    Comparison,
    NoNewLabelsError,
    close_dead,
    last_retraining,
    new_labels,
    retrain,
)
from monitoring.settings import MonitoringSettings

LEAST = 10


@pytest.fixture
def settings(store):
    return MonitoringSettings(home=store.home, retrain_least_labels=LEAST)


@pytest.fixture
def production(store, settings, draw):
    """`production(tag, count)`: recorded, stored images, with labels where `labels` are given."""

    def put(tag: str, count: int, seed: int = 1, labels=("star",), stored=True, client="anna"):
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


def say(store, prediction_id: str, labels, client: str = "anna") -> None:
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
def commands(monkeypatch):
    """Stands in for the command line: what was asked, and what accuracies it finds."""
    asked = []
    accuracies = {"champion": 0.6, "challenger": 0.8}

    def run(settings, arguments):
        asked.append(list(arguments))
        if arguments[0] == "train":
            return {"version": "shapes:20260102-00000000"}
        which = "challenger" if arguments[1] == "shapes:20260102-00000000" else "champion"
        return {"accuracy": accuracies[which]}

    monkeypatch.setattr(retraining, "_plumbline", run)
    return asked


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
        " 7 have labels that the task cannot learn from"
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
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -9
    assert rows(store)[0].outcome is None
    assert close_dead(store.state) == [1]
    assert "its process was killed; the champion is untouched" in in_words(rows(store)[0])
    assert retrain(settings, "again").production_images == 4
    assert store.champion("shapes").tag == tag


def test_a_process_of_the_same_number_is_not_taken_for_it(store, settings):
    with write_transaction(store.state) as connection:
        connection.execute(
            retrainings.insert().values(
                model="shapes",
                why="long ago",
                started_at=datetime.now(UTC),
                host=retraining.socket.gethostname(),
                process=os.getpid(),
                process_started=repr(psutil.Process().create_time() - 100),
                detail="",
            )
        )
    assert close_dead(store.state) == [1]


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
    with retraining.socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PLUMBLINE_HOME": str(store.home)}
    parent = subprocess.Popen([sys.executable, "-c", code % port], env=environment)
    while not (children := psutil.Process(parent.pid).children()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    children[0].wait(20)


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
        drifting.reset()
        Launcher(settings, store).consider(drifting)
        Launcher(settings, store).consider(None)
        assert started == []


def test_what_the_champion_learned_from_production_is_learned_again(
    store, settings, watched, production, commands, tmp_path, monkeypatch
):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "old.png").write_bytes(b"old")
    (earlier / "items.csv").write_text("fname,labels\nold.png,circle\n")
    tag = watched()
    production(tag, 20)
    load = type(store).load

    def with_more(self, version):
        bundle = load(self, version)
        training = {**bundle.manifest.training, "more": str(earlier / "items.csv")}
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"training": training}))

    monkeypatch.setattr(type(store), "load", with_more)
    retrain(settings, "the second time")
    path = commands[0][commands[0].index("--more") + 1]
    assert table(path)[-1] == {"fname": "old.png", "labels": "circle"}
    assert (Path(path).parent / "old.png").read_bytes() == b"old"


def test_the_last_retraining_is_of_the_model_that_is_asked(
    store, settings, watched, production, commands
):
    production(watched(), 20)
    retrain(settings, "a test")
    assert last_retraining(store.state, "shapes").why == "a test"
    assert last_retraining(store.state, "others") is None
