"""The commands that train, as a user types them: options of the loop, resume, lr-find."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
QUICK = ("--architecture", "small-resnet", "--batch-size", "128")


@pytest.mark.slow
def test_lr_find_suggests_rates_and_draws_them(run_plumbline, few_garments, tmp_path):
    picture = tmp_path / "rates.svg"
    done = run_plumbline(
        *("lr-find", "--data", few_garments, "--architecture", "small-resnet"),
        *("--batch-size", "32", "--precision", "fp32", "--out", picture, "--json"),
        home=tmp_path / "home",
    )
    found = json.loads(done.stdout)
    assert set(found["suggestions"]) == {"valley", "slide", "minimum", "steep"}
    assert all(1e-7 < rate < 10 for rate in found["suggestions"].values())
    assert len(found["rates"]) == len(found["losses"]) > 50
    assert found["rates"] == sorted(found["rates"])
    drawing = picture.read_text()
    assert drawing.startswith("<svg ")
    assert "valley" in drawing
    assert not list((tmp_path / "home").rglob("manifest.json"))


def test_lr_find_refuses_an_empty_range(run_plumbline, garments, tmp_path):
    done = run_plumbline(
        *("lr-find", "--data", garments, "--lowest", "1", "--highest", "0.1"),
        home=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "--lowest 1.0 must be under --highest 0.1" in done.stderr


@pytest.mark.slow
def test_a_killed_training_is_resumed_with_its_options(run_plumbline, few_garments, tmp_path):
    home = tmp_path / "home"
    options = [
        *("train", "--data", str(few_garments), "--name", "k", *QUICK, "--epochs", "8"),
        *("--average-decay", "0.9", "--clip-gradient-norm", "5", "--sampling", "balanced"),
        *("--precision", "fp32", "--label-smoothing", "0.05"),
    ]
    checkpoint = home / "checkpoints" / "k.safetensors"
    training = subprocess.Popen(
        [sys.executable, "-m", "plumbline", *options],
        env={**os.environ, "PLUMBLINE_HOME": str(home)},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.05)
    training.send_signal(signal.SIGKILL)
    training.wait()

    told = run_plumbline(*options, "--resume", "--json", home=home)
    version = json.loads(told.stdout)["version"]
    manifest = json.loads(run_plumbline("models", "show", version, home=home).stdout)
    settings = manifest["training"]
    assert settings["average_decay"] == 0.9
    assert settings["sampling"] == "balanced"
    assert settings["label_smoothing"] == 0.05
    prior = settings["baselines"]["the class prior"]
    assert prior["low"] < prior["value"] < prior["high"] < 0.3
    assert prior["value"] < 0.2
    assert (prior["count"], prior["split"]) == (
        manifest["data"]["images"]["validation"],
        "validation",
    )
    report = next(home.rglob("report.html")).read_text()
    assert "Is it training properly?" in report
    assert "It beats the class prior" in report
    assert not checkpoint.exists()


@pytest.mark.slow
def test_resume_says_from_where(run_plumbline, few_garments, tmp_path):
    options = ("train", "--data", few_garments, "--name", "k", *QUICK, "--epochs", "1", "--resume")
    done = run_plumbline(*options, home=tmp_path)
    assert "there is no interrupted training like this one to resume" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_none_is_learned_from_negatives_and_tuned_with_the_flag(
    run_plumbline, few_garments, tmp_path, head
):
    random = np.random.default_rng(0)
    for folder, count in (("negatives", 60), ("foreign", 30)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            noise = random.integers(0, 256, (28, 28), np.uint8)
            stripes = noise if folder == "negatives" else np.sort(noise, axis=0)
            Image.fromarray(stripes).save(tmp_path / folder / f"{number}.png")
    home = tmp_path / "home"
    done = run_plumbline(
        *("train", "--data", few_garments, "--name", "n", *QUICK, "--epochs", "4", "--json"),
        *("--none", "--none-loss", "0.1", "--head", head, "--precision", "fp32"),
        *("--negatives", tmp_path / "negatives", "--foreign", tmp_path / "foreign"),
        home=home,
    )
    version = json.loads(done.stdout)["version"]
    manifest = json.loads(run_plumbline("models", "show", version, home=home).stdout)
    assert manifest["calibration"]["method"] == ("platt" if head == "sigmoid" else "temperature")
    assert manifest["training"]["learn_none"] is True
    assert any("60 images of none of the classes" in note for note in manifest["data"]["notes"])
    assert "given" in manifest["outlier"]["self_check"]
    evidence = manifest["threshold_evidence"]
    assert evidence["with_flag"]["alpha"] == manifest["outlier"]["alpha"]
    assert evidence["with_flag"]["lost"]["value"] <= 0.1
    low, high = evidence["none_share_of_unlabelled_interval"]
    assert low <= evidence["none_share_of_unlabelled"] <= high
    # Noise was a negative: it gets no label, or a flag.
    told = run_plumbline(
        "predict", tmp_path / "negatives", "--version", version, "--json", home=home
    )
    answers = [json.loads(line) for line in told.stdout.splitlines()]
    assert np.mean([not its["labels"] or its["out_of_domain"]["flagged"] for its in answers]) > 0.8


@pytest.mark.slow
def test_real_scenes_of_several_garments_get_platt_thresholds_and_sets(run_plumbline, tmp_path):
    """Multi-label from pictures to decisions, on images that show none to four garments."""
    make = ROOT / "examples" / "make_scenes.py"
    subprocess.run([sys.executable, make, tmp_path, "1200"], check=True, stdout=subprocess.DEVNULL)
    home = tmp_path / "home"
    options = ("--delimiter", ";", "--int8", "--epochs", "3", "--json", *QUICK)
    done = run_plumbline(
        *("train", "--data", tmp_path / "scenes.csv", "--name", "scenes", *options), home=home
    )
    version = json.loads(done.stdout)["version"]
    manifest = json.loads(run_plumbline("models", "show", version, home=home).stdout)
    assert manifest["calibration"]["method"] == "platt"
    assert len(manifest["calibration"]["slopes"]) == 10
    tuned = manifest["threshold_evidence"]
    assert tuned["score"] > tuned["score_at_half"]
    assert manifest["outlier"]["detector"] in ("KNN + residual", "residual", "KNN")
    assert {its["coverage"] for its in manifest["prediction_sets"]["measured"]} >= {0.8, 0.9}
    gates = manifest["engines"]
    assert gates["openvino-f32"]["passed"]
    assert "openvino-int8" in {**gates, **manifest["engines_left_out"]}
