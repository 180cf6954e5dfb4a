"""What a trained version gets wrong is found: planted label errors, a planted slice, copies."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from model.bundle import Bundle
from model.errors import DataError
from model.settings import ModelSettings
from model.store import ModelStore
from plumbline.clean_command import clean
from plumbline.cli import main
from training.evaluate import evaluate_version, reopen
from training.interpret import Interpretation, as_json, interpret_version
from training.interpret_page import render
from training.recipe import run_training
from training.request import TrainRequest
from training.sources import open_source
from training.splits import Split

LEFT, RIGHT = "left", "<b>right</b>"  # where the patch is; the second must not become markup
COUNT = 180  # of a class
USE = "Telling <left> from right"


def picture(side: str, number: int) -> np.ndarray:
    """Noise with a patch on one side; of the last quarter bright all over, and no patch to see."""
    rng = np.random.default_rng((number, len(side)))
    bright = number >= 0.75 * COUNT
    image = rng.integers(225, 255, (24, 24, 3)) if bright else rng.integers(60, 110, (24, 24, 3))
    if not bright:
        top, left = rng.integers(2, 14), rng.integers(1, 3) + (0 if side == LEFT else 13)
        image[top : top + 8, left : left + 8] = 190
    return image.astype(np.uint8)


@dataclass(frozen=True)
class Patches:
    """A version, its data, and what was planted in them."""

    store: ModelStore
    table: Path
    bundle: Bundle
    wrong: list[str]  # names of rows with a wrong label, in test
    learned_wrong: list[str]  # the same in fit


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    folder = tmp_path_factory.mktemp("patches")
    rows, wrong, learned_wrong = [], [], []
    for side in (LEFT, RIGHT):
        for number in range(COUNT):
            name = f"{'l' if side == LEFT else 'r'}{number}.png"
            Image.fromarray(picture(side, number)).save(folder / name)
            split = ("train", "train", "valid", "calibration", "test", "test")[number % 6]
            label = side
            if number in (4, 10):  # in test
                label = RIGHT if side == LEFT else LEFT
                wrong.append(name)
            if number in (0, 6):
                label = RIGHT if side == LEFT else LEFT
                learned_wrong.append(name)
            rows.append((name, label, split))
    (folder / "copy.png").write_bytes((folder / "l1.png").read_bytes())
    rows.append(("copy.png", LEFT, "train"))
    table = folder / "patches.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("fname", "label", "split"), *rows])
    store = ModelStore(ModelSettings(home=folder / "home"))
    request = TrainRequest(
        data=str(table),
        name="patches",
        epochs=6,
        batch_size=16,
        learning_rate=0.05,
        knobs={"flip": False, "precision": "fp32", "device": "cpu"},
        track="none",
        intended_use=USE,
    )
    bundle = run_training(request, store, show_progress=False)
    assert bundle is not None
    return Patches(store, table, bundle, wrong, learned_wrong)


@pytest.fixture(scope="module")
def found(patches: Patches) -> Interpretation:
    return interpret_version(patches.store, "patches:latest")


def test_planted_label_errors_are_found_and_come_first(
    patches: Patches, found: Interpretation
) -> None:
    first = {its.name for its in found.wrong_labels[: len(patches.wrong)]}
    assert first == set(patches.wrong)
    for its in found.wrong_labels[: len(patches.wrong)]:
        assert its.suggested == [LEFT if its.name.startswith("l") else RIGHT]
    assert [its.split for its in found.label_checks] == ["test"]


def test_so_are_those_that_the_model_learned(patches: Patches) -> None:
    every = interpret_version(patches.store, "patches:latest", split="all")
    in_fit = [its.name for its in every.wrong_labels if its.split == "fit"]
    # The body knows these labels a little, so that not all of them are found.
    assert len(set(in_fit[:8]) & set(patches.learned_wrong)) >= 2
    by = {its.split: its.by for its in every.label_checks}
    assert "without the fold" in by["fit"]
    assert "own probabilities" in by["test"] == by["validation"] == by["calibration"]
    assert any("Rows to fit on are among these" in note for note in every.notes)


def test_the_planted_bright_slice_is_the_worst(found: Interpretation) -> None:
    worse = [its for its in found.slices if its.is_worse]
    assert worse
    bright = next(its for its in worse if its.name == "brightness")
    assert bright.low > 0.8
    assert bright.accuracy < bright.others_accuracy - 0.2


def test_the_costliest_answers_come_with_pictures_and_neighbours(found: Interpretation) -> None:
    losses = [its.loss for its in found.top_losses]
    assert losses == sorted(losses, reverse=True)
    its = found.top_losses[0]
    assert its.truth != its.labels
    assert its.heat is not None
    assert its.heat.shape == its.image.shape == (28, 28, 3)
    assert its.heat_class == its.labels[0]
    assert its.heat_truth_class == its.truth[0]
    assert len(its.neighbours) == 5
    assert its.neighbours[0].similarity >= its.neighbours[-1].similarity
    assert found.metrics["count"] == sum(map(sum, found.metrics["confusion"]["counts"]))
    wrong = sum(its.count for its in found.confused)
    assert wrong == round((1 - found.metrics["accuracy"]) * found.metrics["count"])


def test_an_image_of_fit_is_not_its_own_neighbour(patches: Patches) -> None:
    every = interpret_version(patches.store, "patches:latest", split="all", top=40)
    learned = [its for its in every.top_losses if its.split == "fit"]
    assert learned
    assert all(its.name not in {near.name for near in its.neighbours} for its in learned)


def test_the_page_stands_alone_and_shows_names_as_text(found: Interpretation) -> None:
    hostile = [replace(its, name='"><script>x</script>') for its in found.top_losses]
    text = render(replace(found, top_losses=hostile))
    assert "<script" not in text
    assert "<b>right" not in text
    assert "&lt;b&gt;right" in text
    addresses = re.findall(r"(?:src|href)=\"([^\"]{0,30})", text)
    assert addresses
    assert all(its.startswith("data:image/png;base64,") for its in addresses)
    assert "http:" not in text
    assert "https:" not in text
    json.dumps(as_json(found))


def test_the_report_of_the_training_has_the_model_card(patches: Patches) -> None:
    text = patches.bundle.path("report.html").read_text()
    assert "Telling &lt;left&gt; from right" in text
    assert patches.bundle.manifest.intended_use == USE
    assert patches.bundle.manifest.data.fingerprint in text
    for heading in ("Every figure", "Labels that are likely wrong", "Kinds of images"):
        assert heading in text
    assert f"plumbline clean\n    {patches.bundle.manifest.tag}" in text
    assert "what spoke for the answer" in text
    metric = patches.bundle.manifest.metrics["accuracy"]
    assert metric.count == 2 * COUNT // 3
    assert metric.low is not None


def list_of(patches: Patches, path: Path) -> list[dict[str, str]]:
    environment = {"PLUMBLINE_HOME": str(patches.store.home)}
    done = CliRunner().invoke(clean, ["patches:latest", "--out", str(path)], env=environment)
    assert done.exit_code == 0, done.output
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_is_edited_and_changes_the_data_of_a_training(
    patches: Patches, tmp_path: Path
) -> None:
    path = tmp_path / "suspects.csv"
    rows = list_of(patches, path)
    assert {row["file"] for row in rows} >= {*patches.wrong, "copy.png"}
    for row in rows:
        if row["file"] in (*patches.wrong, "copy.png"):
            row["action"] = row["suggested"]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    before, after = open_source(patches.table), open_source(patches.table, clean=path)
    assert set(before.names) - set(after.names) == {"copy.png"}
    labels = dict(zip(after.names, after.labels, strict=True))
    assert all(labels[name] == (LEFT if name[0] == "l" else RIGHT,) for name in patches.wrong)
    # Its test rows are still those of the version, and it does better on them.
    store, data = patches.store, str(patches.table)
    raw, cleaned = (
        evaluate_version(store, "patches:latest", data, "test", clean=its)
        for its in (None, str(path))
    )
    assert raw["count"] == cleaned["count"]
    assert cleaned["accuracy"] > raw["accuracy"]


def test_an_existing_list_is_not_overwritten(patches: Patches, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("edits")
    done = CliRunner().invoke(
        main, ["clean", "patches:latest", "--out", str(tmp_path / "list.csv")]
    )
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert (tmp_path / "list.csv").read_text() == "edits"


def test_data_that_are_gone_or_changed_are_told(patches: Patches) -> None:
    text = patches.table.read_text()
    try:
        patches.table.write_text(text.replace("l1.png,left,train", "l1.png,left,test"))
        with pytest.raises(DataError, match=r"not what it was when patches.*--split all"):
            reopen(patches.store, "patches:latest")
        patches.table.unlink()
        with pytest.raises(DataError, match="are gone; put them back"):
            reopen(patches.store, "patches:latest")
    finally:
        patches.table.write_text(text)
    assert reopen(patches.store, "patches:latest").own


def test_other_data_are_looked_at_whole_with_neighbours_from_training(
    patches: Patches, tmp_path: Path
) -> None:
    for number in range(6):
        Image.fromarray(picture(LEFT, number)).save(tmp_path / f"{number}.png")
    table = tmp_path / "other.csv"
    table.write_text("fname,label\n" + "".join(f"{number}.png,left\n" for number in range(6)))
    found = interpret_version(patches.store, "patches:latest", str(table))
    assert (found.split, found.own, found.metrics["count"]) == ("all", False, 6)
    assert found.top_losses[0].neighbours
    assert found.label_checks[0].by.startswith("nobody: where all labels are alike")
    assert any("not the data that patches" in note for note in found.notes)
    assert "no rows of this class" in str(found.metrics["per_class"][RIGHT]["reason"])
    assert Split.TEST in reopen(patches.store, "patches:latest").splits
    with pytest.raises(DataError, match="--split test"):
        interpret_version(patches.store, "patches:latest", str(table), "test")
    table.write_text("fname,label\n" + "".join(f"{number}.png,\n" for number in range(6)))
    with pytest.raises(DataError, match="none of the 6 images has a label"):
        interpret_version(patches.store, "patches:latest", str(table))
