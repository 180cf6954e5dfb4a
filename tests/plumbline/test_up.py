"""`plumbline up` serves the model that was meant, trains only what is missing, stops in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.bundle import DataSummary
from model.errors import SettingsError, StoreError
from model.state import versions, write_transaction
from plumbline import example, up
from service.settings import ServiceSettings
from training.idx import IdxFiles

START = subprocess.Popen


@pytest.fixture
def started(store, monkeypatch):
    """Children that sleep stand in for both; gives the environments that they were given."""
    environments = []

    def start(command, env, **options):
        environments.append(env)
        return START(["sleep", "60"], **options)

    def beside_monitor(service, settings):
        with up._running("monitor", settings):
            return 0

    monkeypatch.setenv("PLUMBLINE_HOME", str(store.home))
    monkeypatch.setattr(up.subprocess, "Popen", start)
    monkeypatch.setattr(up, "check_address", lambda *address: None)
    monkeypatch.setattr(up, "_wait_until_ready", lambda service, url: None)
    monkeypatch.setattr(up, "_wait_beside_monitor", beside_monitor)
    monkeypatch.setattr(up, "_example_image", lambda home, source: f"image of {source}")
    return environments


@pytest.fixture
def no_training(monkeypatch):
    def train(data, name):
        raise AssertionError(f"trained {name} on {data}")

    monkeypatch.setattr(up, "_train_champion", train)


@pytest.mark.parametrize(
    ("given", "setting", "served"),
    [
        (None, None, "fashion-mnist"),
        (None, "photographs", "photographs"),
        ("photographs", None, "photographs"),
        ("photographs", "fashion-mnist", "photographs"),
    ],
)
def test_of_several_champions_the_one_that_was_meant_is_served(
    given, setting, served, store, register, started, no_training, monkeypatch, capsys
):
    tags = {name: register(name) for name in ("fashion-mnist", "photographs")}
    for tag in tags.values():
        store.promote(tag)
    if setting:
        monkeypatch.setenv("PLUMBLINE_MODEL", setting)
    assert up.bring_up("fashion-mnist", given) == 0
    assert [its["PLUMBLINE_MODEL"] for its in started] == [served, served]
    assert f"{tags[served]} is served" in capsys.readouterr().out


def test_a_model_without_a_champion_is_trained_under_its_name(
    store, register, started, monkeypatch
):
    store.promote(register("photographs"))
    trained = []

    def train(data, name):
        trained.append((data, name))
        store.promote(register(name))

    monkeypatch.setattr(up, "_train_champion", train)
    up.bring_up("crops", "garments")
    assert trained == [("crops", "garments")]
    assert started[0]["PLUMBLINE_MODEL"] == "garments"


def test_an_unreadable_database_is_no_reason_to_train(store, started, no_training):
    with write_transaction(store.state) as connection:
        versions.drop(connection)
    with pytest.raises(StoreError, match="no such table"):
        up.bring_up("fashion-mnist", None)


def test_the_example_belongs_to_what_the_served_version_was_trained_on(
    store, register, started, no_training, capsys
):
    summary = DataSummary(source="crops", fingerprint="0" * 64, images={"fit": 1})
    store.promote(register("photographs", data=summary))
    up.bring_up("fashion-mnist", "photographs")
    assert "@image of crops " in capsys.readouterr().out


@pytest.mark.parametrize("with_keys", [True, False])
def test_the_line_to_ask_with_names_a_key_where_one_is_needed(with_keys, tmp_path):
    keys = tmp_path / "keys.json" if with_keys else None
    told = up._welcome(ServiceSettings(api_keys_file=keys), "shapes:1", None)
    line = next(line for line in told.splitlines() if "ask" in line)
    assert ('-H "Authorization: Bearer KEY"' in line) is with_keys
    assert line.endswith(" --data-binary @IMAGE.jpg http://127.0.0.1:3000/v1/predict")


def test_an_example_that_was_interrupted_leaves_nothing_and_is_written_anew(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    files = IdxFiles(pixels[None], [example.SNEAKER], 0, [], is_fashion_mnist=True)
    monkeypatch.setattr(example, "fashion_mnist_folder", lambda home: home)
    monkeypatch.setattr(example, "read_idx_files", lambda folder: files)

    def stop_half_way(image, file, *options, **more):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Image.Image, "save", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            example.write_example(tmp_path, "fashion-mnist")
    assert list((tmp_path / "examples").iterdir()) == []
    path = example.write_example(tmp_path, "fashion-mnist")
    assert (np.asarray(Image.open(path)) == pixels).all()
    assert list((tmp_path / "examples").iterdir()) == [path]


def test_the_example_is_a_sneaker_for_fashion_mnist_alone(tmp_path):
    assert up._example_image(tmp_path, "crops") is None


@pytest.mark.usefixtures("hangup_is_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_service_starts_stops_it_too(number, monkeypatch):
    children = []

    def start(command, **options):
        child = START(["sleep", "60"])
        os.kill(os.getpid(), number)
        children.append(child)
        return child

    before = signal.getsignal(number)
    monkeypatch.setattr(up.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt), up._running("serve", {}):
        raise AssertionError("it was to be stopped")
    assert children[0].poll() == -signal.SIGTERM
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("hangup_is_heard")
def test_a_signal_while_the_service_runs_stops_it(monkeypatch):
    monkeypatch.setattr(up.subprocess, "Popen", lambda command, **options: START(["sleep", "60"]))
    with pytest.raises(KeyboardInterrupt), up._running("serve", {}) as service:
        os.kill(os.getpid(), signal.SIGHUP)
    assert service.poll() == -signal.SIGTERM


@pytest.mark.usefixtures("hangup_is_heard")
def test_ctrl_c_while_training_lets_the_training_clear_away(tmp_path, monkeypatch, capfd):
    clearing = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *its: sys.exit(1))\n"
        "try:\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "finally:\n"
        "    time.sleep(0.5)  # longer than subprocess.run would wait\n"
        "    print('cleared away after', *sys.argv[1:])\n"
    )

    def start(command, **options):
        return START([sys.executable, "-c", clearing, *command[3:]], **options)

    monkeypatch.setattr(up.subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        up._train_champion("crops", "garments")
    told = capfd.readouterr().out
    assert told == "cleared away after train --data crops --name garments --promote\n"


def test_a_training_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(up.subprocess, "Popen", lambda command, **options: START(["false"]))
    with pytest.raises(SettingsError, match="training failed, see above"):
        up._train_champion("crops", "garments")


def test_a_retraining_that_an_alarm_started_ends_with_the_rest(
    store, register, started, no_training, monkeypatch, capsys
):
    store.promote(register(name="fashion-mnist"))
    stopped = []
    monkeypatch.setattr(up, "stop_here", lambda state, name: stopped.append(name) or [1])
    up.bring_up("fashion-mnist", None)
    assert stopped == ["fashion-mnist"]
    assert "stopping the retraining as well" in capsys.readouterr().err


def test_images_are_kept_unless_that_is_forbidden(store, register, started, monkeypatch):
    store.promote(register("photographs"))
    up.bring_up("crops", "photographs")
    monkeypatch.setenv("PLUMBLINE_STORE_IMAGES", "false")
    up.bring_up("crops", "photographs")
    assert [its["PLUMBLINE_STORE_IMAGES"] for its in started] == ["true"] * 2 + ["false"] * 2


def test_what_the_settings_file_says_is_not_overruled(
    store, register, started, monkeypatch, tmp_path
):
    store.promote(register("photographs"))
    name = "PLUMBLINE_RETRAIN_TRUSTED_CLIENTS"
    up.bring_up("crops", "photographs")
    assert [its[name] for its in started] == ["this-machine"] * 2
    started.clear()
    file = tmp_path / "plumbline.toml"
    file.write_text('store_images = false\nretrain_trusted_clients = "shop"\n')
    monkeypatch.setenv("PLUMBLINE_CONFIG_FILE", str(file))
    up.bring_up("crops", "photographs")
    assert len(started) == 2
    assert not any(name in its or "PLUMBLINE_STORE_IMAGES" in its for its in started)


def play_monitors(monkeypatch, *commands):
    """Each start of a monitor runs the next of these, then sleeps; gives what was started."""
    begun, left = [], list(commands)

    def start(command, **options):
        begun.append(START(left.pop(0) if left else ["sleep", "60"]))
        return begun[-1]

    monkeypatch.setattr(up.subprocess, "Popen", start)
    monkeypatch.setattr(up, "_FIRST_PAUSE_SECONDS", 0.01)
    return begun


def test_the_end_of_the_service_ends_the_monitor(monkeypatch, capsys):
    begun = play_monitors(monkeypatch)
    assert up._wait_beside_monitor(START(["sh", "-c", "sleep 0.5; exit 3"]), {}) == 3
    assert begun[0].poll() == -signal.SIGTERM
    assert "the service ended with code 3" in capsys.readouterr().err


def test_a_monitor_that_dies_is_started_again_while_the_service_goes_on(monkeypatch, capsys):
    begun = play_monitors(monkeypatch, ["sh", "-c", "kill -9 $$"], ["false"])
    service = START(["sh", "-c", "sleep 3"])
    assert up._wait_beside_monitor(service, {}) == 0
    assert [its.returncode for its in begun] == [-9, 1, -signal.SIGTERM]
    told = capsys.readouterr().err
    assert "the monitor ended with code -9" in told
    assert "the service goes on" in told


def test_a_monitor_that_refuses_to_start_is_not_started_again(monkeypatch, capsys):
    begun = play_monitors(monkeypatch, ["sh", "-c", "exit 2"])
    assert up._wait_beside_monitor(START(["sleep", "2"]), {}) == 0
    assert len(begun) == 1
    assert "once that is mended" in capsys.readouterr().err


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with up._on_signals(up._interrupt):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
