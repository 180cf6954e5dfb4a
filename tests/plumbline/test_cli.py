"""The commands, as a user types them."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image

from model.network import default_input_spec
from plumbline.cli import main
from plumbline.client import AsyncClient, Client, Predictions
from training.loading import load
from training.sources import open_source


def test_training_prints_a_version_that_is_champion(trained, run_plumbline):
    listed = json.loads(run_plumbline("models", "list", "--json", home=trained.path).stdout)
    assert [(row["version"], row["stage"]) for row in listed] == [(trained.tag, "champion")]
    assert trained.report["stage"] == "champion"
    assert trained.report["metrics_split"] == "test"
    assert trained.report["metrics"]["accuracy"] > 0.75
    shown = json.loads(run_plumbline("models", "show", trained.tag, home=trained.path).stdout)
    assert shown["classes"][7] == "sneaker"


def test_clean_test_images_are_flagged_at_about_the_stated_rate(trained):
    # 1,000 test images at 1 %: a count of 2 to 25 has a chance of over 0.99.
    assert 0.001 <= trained.report["metrics"]["flagged_rate"] <= 0.025


def test_evaluate_gives_the_figures_of_training_again(trained, run_plumbline):
    done = run_plumbline(
        *("evaluate", trained.tag, "--data", trained.data, "--json"), home=trained.path
    )
    found = json.loads(done.stdout)
    assert found["split"] == "test"
    for name in ("accuracy", "macro_f1", "flagged_rate", "ece"):
        assert found[name] == pytest.approx(trained.report["metrics"][name], abs=1e-6)


def test_the_report_stands_alone(trained):
    page = Path(str(trained.report["report"])).read_text()
    assert trained.tag.split(":")[1] in page
    assert "<script" not in page
    assert 'src="http' not in page


@pytest.fixture
def pictures(garment_images, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(garment_images["images"][number]).save(folder / f"{number}.png")
    return folder


def test_predict_here_and_by_the_service_agree(trained, server, pictures, run_plumbline):
    here, there = (
        [json.loads(line) for line in done.stdout.splitlines()]
        for done in (
            run_plumbline("predict", pictures, "--json", home=trained.path),
            run_plumbline("predict", pictures, "--url", server.url, "--json", home=trained.path),
        )
    )
    assert [row["labels"] for row in here] == [["ankle boot"], ["pullover"], ["trouser"]]
    for one, other in zip(here, there, strict=True):
        assert one["labels"] == other["labels"]
        for name, chance in one["probabilities"].items():
            assert other["probabilities"][name] == pytest.approx(chance, abs=0.005)


def test_predict_writes_json_lines_and_tells_of_bad_files(
    trained, pictures, tmp_path, run_plumbline
):
    (pictures / "3.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path / "rows.jsonl"
    done = run_plumbline("predict", pictures, "--out", out, home=trained.path, check=False)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.returncode == 1
    assert [row["error"] is None for row in rows] == [True, True, True, False]
    assert rows[3]["error"]["code"] == "undecodable"


@pytest.mark.slow
def test_bulk_predictions_here_and_by_the_service_agree_and_go_on(
    trained, server, pictures, tmp_path, run_plumbline
):
    (pictures / "3.jpg").write_bytes(b"\xff\xd8\xff broken")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"

    def judged(out: Path, *options: str) -> int:
        command = ("predict", pictures, "--out", out, "--json", *options)
        done = run_plumbline(*command, home=trained.path, check=False)
        assert done.returncode == 1, done.stderr  # of the broken one
        summary = json.loads(done.stdout)
        assert (summary["model"], summary["errors"]) == (trained.tag, 1)
        return int(summary["judged"])

    assert (judged(here), judged(there, "--url", server.url)) == (4, 4)
    Image.new("RGB", (28, 28)).save(pictures / "0.webp")
    assert (judged(here), judged(there, "--url", server.url)) == (1, 1)
    local, served = (pyarrow.parquet.read_table(path).to_pylist() for path in (here, there))
    assert [Path(row["file"]).name for row in local] == [
        *("0.png", "0.webp", "1.png", "2.png", "3.jpg")
    ]
    assert [row["error_code"] for row in local] == [None] * 4 + ["undecodable"]
    assert [row["labels"] for row in local[::2]] == [["ankle boot"], ["pullover"], []]
    assert all(row["id"] for row in served[:4])
    for one, other in zip(local, served, strict=True):
        for name in ("file", "bytes", "modified", "labels", "error_code", "model_version"):
            assert one[name] == other[name]
        chances = dict(other["probabilities"])
        for name, chance in one["probabilities"]:
            assert chances[name] == pytest.approx(chance, abs=0.005)
    best = max(chance for _, chance in local[0]["probabilities"])
    assert local[0]["best_probability"] == best
    assert local[0]["p_value"] == pytest.approx(served[0]["p_value"], abs=0.005)


def test_the_async_client_and_the_plain_one_are_told_the_same(server, pictures):
    images = [path.read_bytes() for path in sorted(pictures.iterdir())]

    async def ask() -> tuple[Predictions, dict[str, Any]]:
        async with AsyncClient(server.url) as client:
            assert await client.is_ready()
            return await client.predict(images), await client.model()

    with Client(server.url) as client:
        answer, model = client.predict(images), client.model()
    theirs, their_model = asyncio.run(ask())
    assert (answer.model, model) == (theirs.model, their_model)
    assert model["limits"] == {"parts": 64, "part_bytes": 10 * 2**20, "request_bytes": 64 * 2**20}
    assert [its.labels for its in answer.predictions] == [its.labels for its in theirs.predictions]


def test_verify_tells_an_intact_version_from_a_corrupt_one(trained, tmp_path, run_plumbline):
    home = trained.copy(tmp_path / "home")
    assert run_plumbline("models", "verify", trained.tag, home=home).returncode == 0
    path = next((home / "bentoml").rglob("network.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    done = run_plumbline("models", "verify", trained.tag, home=home, check=False)
    assert done.returncode == 1
    assert "network.onnx is corrupt" in done.stdout


class TestBadTrainingInput:
    """Each gets one clear error, exit code 2, and registers nothing."""

    def refused(self, run_plumbline, tmp_path, data, *options) -> str:
        home = tmp_path / "home"
        done = run_plumbline(
            *("train", "--data", data, "--name", "x", *options), home=home, check=False
        )
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert run_plumbline("models", "list", "--json", home=home).stdout.strip() == "[]"
        assert not list(home.rglob("*.partial"))
        return done.stderr

    def test_an_empty_folder(self, run_plumbline, tmp_path):
        (tmp_path / "data").mkdir()
        assert "no class folders" in self.refused(run_plumbline, tmp_path, tmp_path / "data")

    def test_one_class_only(self, run_plumbline, tmp_path):
        folder = tmp_path / "data" / "cat"
        folder.mkdir(parents=True)
        for number in range(20):
            image = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
        assert "has one class only, cat;" in self.refused(
            run_plumbline, tmp_path, tmp_path / "data"
        )

    def test_a_path_that_leads_outside(self, run_plumbline, tmp_path):
        (tmp_path / "data").mkdir()
        table = tmp_path / "data" / "table.csv"
        table.write_text("fname,labels,is_valid\n../../etc/passwd,cat,False\n")
        assert "outside" in self.refused(run_plumbline, tmp_path, table)

    def test_a_bad_model_name(self, run_plumbline, tmp_path, garments):
        home = tmp_path / "home"
        done = run_plumbline(
            *("train", "--data", garments, "--name", "Not a name"), home=home, check=False
        )
        assert done.returncode == 2
        assert "model name" in done.stderr

    def test_an_objective_of_several_labels_for_one(self, run_plumbline, tmp_path, few_garments):
        told = self.refused(run_plumbline, tmp_path, few_garments, "--objective", "macro_f2")
        assert "--objective: these tune the thresholds of several labels" in told

    def test_a_cost_matrix_of_wrong_shape(self, run_plumbline, tmp_path):
        (tmp_path / "data").mkdir()
        for number in range(40):
            Image.new("RGB", (28, 28), (number, 0, 0)).save(tmp_path / "data" / f"{number}.png")
        labels = ("cat", "dog", "cat dog", "")
        rows = "".join(f"{number}.png,{labels[number % 4]}\n" for number in range(40))
        (tmp_path / "data" / "table.csv").write_text(f"fname,labels\n{rows}")
        (tmp_path / "costs.csv").write_text("0,1\n1,0\n")
        table, costs = tmp_path / "data" / "table.csv", tmp_path / "costs.csv"
        told = self.refused(run_plumbline, tmp_path, table, "--cost-matrix", costs)
        assert "its first line must be class,false_positive,false_negative" in told

    def test_an_unknown_architecture(self, tmp_path, few_garments, monkeypatch):
        # In this process: to know the architectures of timm takes a new one half a minute.
        monkeypatch.setenv("PLUMBLINE_HOME", str(tmp_path))
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        options = ("--data", str(few_garments), "--name", "x", "--architecture", "resnet19")
        done = CliRunner().invoke(main, ["train", *options])
        assert done.exit_code == 2
        assert "error: unknown architecture 'resnet19'" in done.stderr


@pytest.mark.slow
def test_a_disk_that_takes_no_more_leaves_no_version(few_garments, tmp_path):
    """A real write failure: the process may write no file larger than 200 kB."""
    import os
    import subprocess
    import sys

    home = tmp_path / "home"
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.argv[1:] = sys.argv[1:]; from plumbline.cli import main; main()"
    )
    rows = ("--data", str(few_garments), "--name", "x", "--epochs", "1", "--precision", "fp32")
    # The images are prepared already: the disk is full where the bundle is written.
    load(open_source(few_garments), default_input_spec("small-resnet"), home / "cache")
    done = subprocess.run(
        [sys.executable, "-c", limited, "train", *rows],
        env={**os.environ, "PLUMBLINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert not [path for path in home.rglob("*") if "network" in path.name]
