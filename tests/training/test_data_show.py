"""What `data show` claims: each step is what training and serving really do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import SettingsError
from model.images import InputSpec, prepare
from training.data_show import find_row, show_item
from training.settings import TrainingSettings
from training.sources import Source, open_source
from training.splits import Split

SPEC = InputSpec(size=32, crop=0.8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


@pytest.fixture
def source(tmp_path: Path, photograph: Image.Image) -> Source:
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            photograph.resize((90 + number, 60)).save(tmp_path / "data" / name / f"{number}.jpg")
    return open_source(tmp_path / "data")


def test_training_steps_end_in_what_the_network_takes(source: Source) -> None:
    row = source.rows(Split.FIT)[0]
    steps = show_item(source, row, SPEC, TrainingSettings(presize=1.5))
    assert [step.name for step in steps] == [
        "read",
        "decode",
        "crop the middle and resize",
        "presize",
        "warp, draw 1",
        "warp, draw 2",
        "warp, draw 3",
        "normalise",
        "label to target",
    ]
    assert steps[0].says.startswith("JPEG of 9")
    assert (steps[3].shape, steps[3].dtype) == ((48, 48, 3), "uint8")
    assert (steps[4].shape, steps[4].dtype) == ((32, 32, 3), "float32")
    assert (steps[7].shape, steps[7].dtype) == ((3, 32, 32), "float32")
    draws = [step.picture for step in steps[4:7] if step.picture is not None]
    assert not np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize("presize", [0, 1.5])
def test_the_smaller_images_of_the_first_epochs_are_shown(source: Source, presize: float) -> None:
    row = source.rows(Split.FIT)[0]
    small = {"epochs": 4, "small_epochs_share": 0.5, "small_share": 0.75}
    steps = {
        step.name: step
        for step in show_item(source, row, SPEC, TrainingSettings(presize=presize, **small))
    }
    assert steps["smaller"].shape == (24, 24, 3)
    assert steps["smaller"].says == "to 24 px instead, in the first 2 of 4 epochs"
    assert steps["normalise"].shape == (3, 32, 32)
    whole = show_item(source, row, SPEC, TrainingSettings(presize=presize))
    assert "smaller" not in [step.name for step in whole]


def test_erasing_and_mixing_are_shown_where_they_are_asked_for(source: Source) -> None:
    row = source.rows(Split.FIT)[0]
    settings = TrainingSettings(presize=1.5, erase_probability=1.0, mixup=0.4, cutmix=1.0)
    steps = {step.name: step for step in show_item(source, row, SPEC, settings)}
    assert list(steps)[7:12] == [
        "erase, draw 1",
        "erase, draw 2",
        "erase, draw 3",
        "mixup",
        "CutMix",
    ]
    before, erased = steps["warp, draw 1"].picture, steps["erase, draw 1"].picture
    assert before is not None
    assert erased is not None
    assert 0 < (before != erased).any(axis=2).mean() < 0.5
    assert f"with {source.names[source.rows(Split.FIT)[1]]}" in steps["mixup"].says
    assert (steps["CutMix"].picture != erased).any()


def test_a_row_that_is_not_trained_on_goes_the_way_of_serving(source: Source) -> None:
    row = source.rows(Split.VALIDATION)[0]
    steps = show_item(source, row, SPEC, TrainingSettings(presize=1.5))
    assert [step.name for step in steps[2:]] == [
        "crop the middle and resize",
        "normalise",
        "label to target",
    ]
    stored = source.reader.stored(row)
    assert isinstance(stored, bytes)
    served = prepare(stored, SPEC)
    picture = steps[2].picture
    assert picture is not None
    assert np.array_equal(picture, served)
    most = ((served / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)).max()
    assert steps[3].most == pytest.approx(most, abs=1e-5)


def test_the_step_that_fails_is_the_last_and_says_why(source: Source) -> None:
    row = source.rows(Split.FIT)[0]
    path = source.reader.paths[row]  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:900])
    steps = show_item(source, row, SPEC, TrainingSettings())
    assert [step.name for step in steps] == ["read", "failed"]
    assert "JPEG" in steps[-1].says


def test_items_are_found_by_name_and_by_number_and_others_refused(source: Source) -> None:
    assert find_row(source, "right/3.jpg") == source.names.index("right/3.jpg")
    assert find_row(source, "19") == 19
    for wrong in ("20", "-1", "right/none.jpg", "²"):
        with pytest.raises(SettingsError, match=r"valid is a name such as 'left/0\.jpg'"):
            find_row(source, wrong)


@pytest.mark.slow
def test_the_command_shows_a_garment_and_writes_its_pictures(
    garments: Path, tmp_path: Path, run_plumbline: Callable[..., Any]
) -> None:
    page = tmp_path / "show.html"
    done = run_plumbline(
        "data", "show", "--data", str(garments), "--json", "--out", str(page), home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert steps[0]["shape"] == [28, 28]
    assert page.read_text(encoding="utf-8").count("<img") == len(steps) - 2
