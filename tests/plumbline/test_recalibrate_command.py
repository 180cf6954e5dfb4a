"""`plumbline monitor sample` and `plumbline recalibrate`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.compute
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from model.store import ModelStore
from monitoring.alarm import Alarm
from monitoring.outlier import RECORD_COMPONENTS
from monitoring.record_reader import in_order
from monitoring.records import Record, read_records, write_records
from monitoring.settings import MonitoringSettings
from monitoring.watch import Watch
from plumbline.cli import main
from training.idx import FASHION_MNIST_CLASSES

START = datetime(2026, 3, 4, tzinfo=UTC)


def plumbline(*arguments: object):
    return CliRunner().invoke(main, [str(its) for its in arguments])


def record_of(tag: str, number: int) -> Record:
    return Record(
        id=str(uuid.UUID(int=number)),
        time=START + timedelta(minutes=number),
        model=tag,
        stage="champion",
        client="anna",
        image_sha256=f"{number:064x}",
        perceptual_hash=number,
        bytes=1,
        width=2,
        height=2,
        format="png",
        brightness=0.5,
        contrast=0.5,
        sharpness=0.5,
        logits=np.zeros(3, np.float32),
        labels=["circle"],
        confidence=0.5,
        outlier_score=0.5,
        p_value=0.5,
        flagged=number % 2 == 0,
        components=np.zeros(RECORD_COMPONENTS, np.float32),
    )


@pytest.fixture
def home(store, make_manifest, fill_bundle, monkeypatch):
    """With a champion, 60 records of it, and the images of all but six; every other is flagged."""
    with store.registering("shapes") as (version, directory, seal):
        fill_bundle(directory)
        seal(make_manifest(version=version))
    tag = store.promote(f"shapes:{version}").tag
    made = [record_of(tag, number) for number in range(60)]
    folder = store.home / "records" / "date=2026-03-04"
    folder.mkdir(parents=True)
    write_records(folder / "a.parquet", made)
    for its in made[:54]:
        kept = store.home / "images" / ("flagged" if its.flagged else "others")
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{its.id}.png").write_bytes(its.id.encode())
    monkeypatch.setenv("PLUMBLINE_HOME", str(store.home))
    return store.home


def test_a_sample_names_the_image_and_when_it_was_predicted(home):
    told = plumbline("monitor", "sample", "--images", 60, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert (found["recorded"], len(found["images"])) == (60, 60)
    assert found["model"].startswith("shapes:")
    kept = [its for its in found["images"] if its["image"] is not None]
    assert len(kept) == 54
    for its in kept:
        assert Path(its["image"]).read_text() == its["id"]


def test_copies_stay_and_do_not_say_which_are_flagged(home, tmp_path):
    folder, table = tmp_path / "to-label", tmp_path / "to-label.csv"
    options = ("--copy-to", folder, "--out", table)
    told = plumbline("monitor", "sample", "--images", 30, "--since", "2026-03-04", *options)
    assert told.exit_code == 0, told.output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    copied = [its for its in rows if its["image"] != "not kept"]
    assert {its["image"] for its in copied} == {str(its) for its in folder.iterdir()}
    assert "flagged" not in table.read_text()
    assert "30 of 60 predictions of shapes:" in told.stderr
    assert "At least 99 confirmed ones are needed" in told.stderr


def test_the_command_that_it_ends_with_takes_the_same_sample(home):
    given = ("--since", "2026-03-04T00:10", "--until", "2026-03-04T00:40+00:00")
    found = json.loads(plumbline("monitor", "sample", "--images", 20, *given, "--json").stdout)
    assert (found["recorded"], len(found["images"])) == (30, 20)
    told = plumbline(*shlex.split(found["then"])[1:])
    assert told.exit_code == 2
    assert "of 20 sampled predictions of shapes:" in told.stderr
    assert "from 2026-03-04 00:10:00 until 2026-03-04 00:40:00 UTC" in told.stderr
    assert "20 have no answer" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_it_warns_where_too_many_images_are_gone(home):
    gone = plumbline("monitor", "sample", "--images", 60, "--since", "2026-03-04T00:45").stderr
    assert "Of 6 the image is not kept; plumbline recalibrate refuses where over 10%" in gone
    few = plumbline("monitor", "sample", "--images", 60).stderr
    assert "Of 6 the image is not kept.\n" in few


def test_wrong_use_is_told(home):
    until = ("--until", "2026-03-05")
    for arguments, message in (
        (("monitor", "sample", "--images", 5, "--since", "tuesday"), "--since is 'tuesday'; valid"),
        (("monitor", "sample", "--images", 5, "--until", "2999-01-01"), "lies in the future"),
        (("monitor", "sample", "--images", 0), "--images"),
        (("recalibrate", "--images", 5, *until, "--why", " "), "--why is empty"),
        (("recalibrate", "--images", 5, "--why", "x"), "--until"),
        (("recalibrate", "--images", 5, "--since", "2026-03-05", *until, "--why", "x"), "is empty"),
        (("monitor", "sample", "--images", 5, "--since", "2026-04-01"), "no prediction of shapes:"),
    ):
        told = plumbline(*arguments)
        assert told.exit_code == 2
        assert message in told.stderr


@pytest.mark.slow
@pytest.mark.timeout(300, func_only=True)  # took 35 s on two busy cores
def test_production_that_is_another_from_the_first_day_is_flagged_at_alpha_again(
    trained, serving, garment_images, tmp_path, run_plumbline
):
    """A real service; a haze lies on all images, which none had that it was trained on."""
    home = trained.copy(tmp_path / "home")
    images, targets = garment_images["images"][1_000:], garment_images["labels"][1_000:]
    sample = ("monitor", "sample", "--images", "500", "--json")

    def drawn_of_all() -> Any:
        drawn = json.loads(run_plumbline(*sample, home=home).stdout)
        return drawn if drawn["recorded"] == 700 else None

    with serving(home, store_images="true", record_flush_seconds="0.2") as server:
        before = send(server.url, images[:700])
        said = dict(zip((its["id"] for its in before), targets.tolist(), strict=False))
        time.sleep(3)
        drawn = wait_for(drawn_of_all)
        for its in drawn["images"]:
            label = {"id": its["id"], "labels": [FASHION_MNIST_CLASSES[said[its["id"]]]]}
            assert httpx.post(f"{server.url}/v1/feedback", json=label).status_code == 202
        *command, _ = shlex.split(drawn["then"])
        done = run_plumbline(*command[1:], "a haze", "--json", home=home)
        made = json.loads(done.stdout)
        assert (made["confirmed"], made["unanswered"]) == (500, 0)
        run_plumbline("promote", made["version"], home=home)
        wait_for(lambda: serves(server.url) in made["version"])
        after = send(server.url, images[700:1_700])
    low, high = stats.betabinom(1_000, 5, 496).interval(0.99)
    flagged = sum(its["out_of_domain"]["flagged"] for its in after)
    assert low <= flagged <= high
    was = sum(its["out_of_domain"]["flagged"] for its in before)
    assert was / 700 > 2 * high / 1_000
    assert alarms_of(home, trained.tag, 700)
    assert not alarms_of(home, made["version"], 1_000)
    assert run_plumbline("models", "verify", made["version"], home=home).returncode == 0


def alarms_of(home: Path, tag: str, images: int) -> list[Alarm]:
    """That a monitor of this version raises on what it answered."""
    settings = MonitoringSettings(home=home)
    store = ModelStore(settings)
    records = read_records(settings.records)
    own = in_order(records.filter(pyarrow.compute.equal(records["model"], tag)))
    assert len(own) == images
    alarms = Watch(store.load(store.find(tag)), settings).take(own)
    store.state.dispose()
    return alarms


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)
    return found


def serves(url: str) -> str:
    return str(httpx.get(f"{url}/v1/model").json()["version"])


def send(url: str, images: np.ndarray) -> list[dict]:
    found = []
    for start in range(0, len(images), 50):
        files = []
        for image in images[start : start + 50]:
            content = io.BytesIO()
            Image.fromarray((14 + 0.93 * image).astype(np.uint8)).save(content, "PNG")
            files.append(("image", ("x", content.getvalue())))
        answer = httpx.post(f"{url}/v1/predict", files=files, timeout=30)
        found += answer.raise_for_status().json()["predictions"]
    return found
