"""Whole trainings of a few seconds, from a CSV to a registered version."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw
from rich.console import Console

import training.preparation
import training.recipe
from model.bundle import REFERENCE, Bundle
from model.decision import Task
from model.network import Network
from model.settings import ModelSettings
from model.store import ModelStore
from monitoring.records import read_records
from monitoring.truth import true_targets
from plumbline.clean_command import clean
from training.decoding_bar import DecodingBar
from training.evaluate import reopen, run_engine
from training.fine_tuning import LINEAR_HEAD_KEPT
from training.history import EpochRecord, TrainingHistory
from training.interpret import as_json, interpret_version
from training.interpret_page import render
from training.metrics import NONE_COLUMN
from training.preparation import Prepared, prepare_training
from training.recipe import run_training, train_network
from training.request import TrainRequest
from training.settings import TrainingSettings
from training.sources import open_source

SIDE = 28  # px
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
PLACES = {"red": (2, 2, 12, 12), "green": (15, 2, 26, 12), "blue": (2, 15, 12, 26)}


def draw(labels: tuple[str, ...], rng: np.random.Generator) -> Image.Image:
    """A noisy grey field with a blot of each colour in its own corner."""
    image = Image.fromarray(rng.integers(90, 140, (SIDE, SIDE, 3)).astype(np.uint8))
    for label in labels:
        left, top, right, bottom = PLACES[label]
        by = int(rng.integers(-2, 3))
        ImageDraw.Draw(image).ellipse((left + by, top, right + by, bottom), fill=COLOURS[label])
    return image


def write_data(folder: Path, rows: list[tuple[str, ...]], columns: Callable[[int], str]) -> Path:
    """Images and a table of them; `columns(row)` gives is_valid, or nothing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = ["fname,labels" + (",is_valid" if columns(0) else "")]
    for row, labels in enumerate(rows):
        draw(labels, rng).save(folder / f"{row:04}.png")
        lines.append(f"{row:04}.png,{' '.join(labels)}{columns(row)}")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def train(
    store: ModelStore, data: Path, *, task: Task | None = None, none_allowed: bool = False
) -> tuple[Bundle, list[str]]:
    """Two epochs of the small network, and what was said meanwhile."""
    said: list[str] = []
    request = TrainRequest(
        data=str(data),
        name="blots",
        task=task,
        none_allowed=none_allowed,
        architecture="small-resnet",
        epochs=2,
        batch_size=16,
        learning_rate=0.05,
    )
    return run_training(request, store, show_progress=False, say=said.append), said


PLANTED = [f"{row:04}.png" for row in range(0, 420, 60)]  # an empty field, labelled with all


@dataclass(frozen=True)
class Blots:
    """A version of several labels, its data, and what was said when it was trained."""

    store: ModelStore
    table: Path
    bundle: Bundle
    said: list[str]


@pytest.fixture(scope="module")
def blots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blots]:
    folder = tmp_path_factory.mktemp("blots")
    kinds = [(), ("red",), ("green",), ("blue",), ("red", "green"), ("red", "green", "blue")]
    table = write_data(folder / "data", [kinds[row % 6] for row in range(420)], lambda row: "")
    text = table.read_text()
    for name in PLANTED:
        text = text.replace(f"{name},\n", f"{name},red green blue\n")
    table.write_text(text)
    store = ModelStore(ModelSettings(home=folder / "home"))
    yield Blots(store, table, *train(store, table))
    store.state.dispose()


@pytest.mark.slow
def test_multi_label_csv_gives_a_registered_version_with_platt_and_one_threshold(
    blots: Blots,
) -> None:
    store, bundle, said = blots.store, blots.bundle, blots.said
    manifest = store.load(store.find(bundle.manifest.tag)).manifest
    assert manifest.task == "multi"
    assert manifest.none_allowed
    assert manifest.calibration.method == "platt"
    assert len(manifest.calibration.slopes) == 3
    assert manifest.thresholds.objective == "macro_f1"
    assert manifest.thresholds.value is not None
    assert set(manifest.thresholds.per_class) <= {"red", "green", "blue"}
    evidence = manifest.threshold_evidence
    assert [each["name"] for each in evidence["per_class"]] == list(manifest.classes)
    assert (evidence["split"], evidence["images"]) == (
        "validation",
        manifest.data.images["validation"],
    )
    prior = manifest.training["baselines"]["the class prior"]
    assert (prior["count"], prior["split"]) == (manifest.data.images["validation"], "validation")
    assert manifest.training["objective"] == "macro_f1"
    assert manifest.training["per_class_thresholds"] is True
    assert any(sentence == evidence["sentence"] for sentence in said)
    assert 0 <= manifest.threshold_evidence["none_share_of_unlabelled"] <= 1
    assert manifest.metrics_split == "test"
    assert manifest.data.images["calibration"] == 120
    assert manifest.outlier.smallest_alpha < 0.01
    assert any("went from fit to calibration" in note for note in manifest.data.notes)
    assert said[-1] == manifest.outlier.statement
    assert read_records(str(bundle.path(REFERENCE))).num_rows == 120
    assert true_targets(bundle).shape[0] == 120


@pytest.mark.slow
def test_what_a_model_of_several_labels_gets_wrong_is_counted_and_drawn(blots: Blots) -> None:
    found = interpret_version(blots.store, "blots:latest", split="all", top=1_000)
    rows = found.top_losses
    assert len(rows) == found.metrics["count"] == 420
    for name, ((tn, fp), (fn, tp)) in zip(
        found.classes, found.metrics["confusion"]["counts"], strict=True
    ):
        pairs = Counter((name in its.truth, name in its.labels) for its in rows)
        assert (tn, fp, fn, tp) == (
            *(pairs[False, False], pairs[False, True]),
            *(pairs[True, False], pairs[True, True]),
        )
    assert found.confused
    wrong = [(set(its.truth), set(its.labels)) for its in rows if its.truth != its.labels]
    for pair in found.confused:
        assert pair.count == sum(
            pair.truth in (truth - labels or {NONE_COLUMN})
            and pair.answer in (labels - truth or {NONE_COLUMN})
            for truth, labels in wrong
        )
    # Of several labels the heat is of the one that cost most.
    costliest = dearest_labels(blots.store)
    assert {its.name: its.heat_class for its in rows} == costliest
    assert all(its.heat is not None and not its.heat_truth_class for its in rows)
    page = render(found)
    assert "Each label, given and deserved" in page
    assert "Missed, and given instead" in page
    json.dumps(as_json(found))


def dearest_labels(store: ModelStore) -> dict[str, str]:
    """By the name of each row, the label whose probability is farthest from the truth."""
    opened = reopen(store, "blots:latest", split="all")
    engine, decider = opened.engine(), opened.decider()
    told = {}
    for rows in opened.chosen.values():
        chances = decider.probabilities(run_engine(engine, rows.images))
        worst = np.abs(chances - rows.targets).argmax(axis=1)
        told |= {name: decider.classes[at] for name, at in zip(rows.names, worst, strict=True)}
    return told


@pytest.mark.slow
def test_wrong_sets_of_labels_are_listed_and_the_edited_list_corrects_the_data(
    blots: Blots, tmp_path: Path
) -> None:
    path = tmp_path / "suspects.csv"
    environment = {"PLUMBLINE_HOME": str(blots.store.home)}
    done = CliRunner().invoke(clean, ["blots:latest", "--out", str(path)], env=environment)
    assert done.exit_code == 0, done.output
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    planted = {row["file"]: row for row in rows if row["file"] in PLANTED}
    assert len(planted) >= len(PLANTED) - 2
    assert {row["label"] for row in planted.values()} == {"blue|green|red"}
    suggested = {row["file"]: row["suggested"] for row in rows}
    assert suggested.keys() >= planted.keys()
    for row in rows:
        row["action"] = row["suggested"]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    after = open_source(blots.table, clean=path)
    labels = dict(zip(after.names, after.labels, strict=True))
    for name, cell in suggested.items():
        assert set(labels[name]) == (set() if cell == "none" else set(cell.split("|")))
    assert any(labels[name] == () for name in planted)


@pytest.mark.slow
def test_single_label_csv_without_test_rows_reports_validation_and_says_so(
    tmp_path: Path, store: ModelStore
) -> None:
    kinds = [("red",), ("green",), ("blue",), ("red",), ("green",), ("blue",), ()]
    rows = [kinds[row % 7] for row in range(210)]
    data = write_data(tmp_path / "data", rows, lambda row: f",{row >= 98}")
    bundle, _ = train(store, data, task="single")
    manifest = bundle.manifest
    assert manifest.metrics_split == "validation"
    assert manifest.data.images["test"] == 0
    assert manifest.calibration.method == "temperature"
    assert manifest.thresholds.value is None
    assert manifest.threshold_evidence == {}
    notes = " ".join(manifest.data.notes)
    assert "no test rows" in notes
    assert "half of the rows" in notes
    assert "30 images without a label were left out of single-label training" in notes


@pytest.mark.slow
def test_presized_images_are_trained_on_and_kept_beside_those_of_serving(
    tmp_path: Path, store: ModelStore
) -> None:
    kinds = [("red",), ("green",), ("blue",)]
    rows = [kinds[row % 3] for row in range(210)]
    data = write_data(tmp_path / "data", rows, lambda row: "")
    request = TrainRequest(
        data=str(data),
        name="blots",
        task="single",
        architecture="small-resnet",
        epochs=1,
        batch_size=16,
        learning_rate=0.05,
        knobs={"presize": 1.5},
    )
    bundle = run_training(request, store, show_progress=False)
    assert bundle is not None
    assert bundle.manifest.training["presize"] == 1.5
    images = bundle.manifest.data.images["fit"]
    sizes = {path.stat().st_size for path in (store.home / "cache").rglob("fit.u8")}
    assert sizes == {images * side**2 * 3 for side in (SIDE, 42)}


def course(losses: list[float], metric: float = 0.9) -> TrainingHistory:
    """A training with these validation losses after its epochs."""
    epochs = [EpochRecord(place, 1.0, loss, metric, 1.0) for place, loss in enumerate(losses, 1)]
    return TrainingHistory("accuracy", [1.0], [0.1], epochs)


@pytest.mark.parametrize("kept", ["fine-tuned", LINEAR_HEAD_KEPT])
def test_where_validation_loss_turned_it_trains_anew_with_so_many_epochs(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    trained: list[tuple[int, Path]] = []

    def train_once(
        prepared: Prepared, settings: TrainingSettings, *rest: Any
    ) -> training.recipe.Outcome:
        saving = rest[-1]
        trained.append((settings.epochs, saving.path))
        whole = course([0.5, 0.3, 0.4, 0.6][: settings.epochs], 0.8)
        history = whole if kept == "fine-tuned" else course([0.3], 0.95)
        network = cast(Network, None)
        return training.recipe.Outcome(network, history, whole, kept, settings, {})

    monkeypatch.setattr(training.recipe, "_train_once", train_once)
    monkeypatch.setattr(training.recipe, "_baselines", lambda prepared, say: {})
    data = write_data(tmp_path / "data", [("red",), ("green",)] * 80, lambda row: "")
    said: list[str] = []
    request = TrainRequest(
        str(data), "blots", architecture="small-resnet", epochs=4, retrain_to_overfit_point=True
    )
    prepared = prepare_training(request, store, show_progress=False)
    outcome = train_network(prepared, request, store, [], said.append)
    assert [epochs for epochs, _ in trained] == [4, 2]
    assert len({path for _, path in trained}) == 2, "a kill in the second would lose the first"
    assert outcome.settings.epochs == 2
    assert "validation loss turned after epoch 2: training anew with that many" in said
    assert said[-1] == "with 2 epochs: validation accuracy 0.8000, before 0.8000"


def test_where_no_layers_but_the_head_were_trained_there_is_nothing_to_train_anew(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def train_once(
        prepared: Prepared, settings: TrainingSettings, *rest: Any
    ) -> training.recipe.Outcome:
        trained.append(settings.epochs)
        head = course([0.5, 0.3, 0.6], 0.8)  # turned, as a head on frozen features may
        network = cast(Network, None)
        return training.recipe.Outcome(network, head, None, LINEAR_HEAD_KEPT, settings, {})

    monkeypatch.setattr(training.recipe, "_train_once", train_once)
    monkeypatch.setattr(training.recipe, "_baselines", lambda prepared, say: {})
    data = write_data(tmp_path / "data", [("red",), ("green",)] * 80, lambda row: "")
    request = TrainRequest(
        str(data), "blots", architecture="small-resnet", retrain_to_overfit_point=True
    )
    prepared = prepare_training(request, store, show_progress=False)
    train_network(prepared, request, store, [])
    assert len(trained) == 1


class Stop(Exception):  # noqa: N818  (ends a training, is no error)
    """Raised where a test has seen enough."""


def test_decoding_is_shown_on_the_bar(
    tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = io.StringIO()

    def bar(*, enabled: bool) -> DecodingBar:
        return DecodingBar(enabled=enabled, console=Console(file=page, width=80))

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(training.preparation, "DecodingBar", bar)
    monkeypatch.setattr(training.recipe, "train_network", stop)
    rows = [("red",), ("green",)] * 80
    request = TrainRequest(
        data=str(write_data(tmp_path / "data", rows, lambda row: "")),
        name="blots",
        architecture="small-resnet",
    )
    for _ in range(2):  # the second time from the cache, quietly
        with pytest.raises(Stop):
            run_training(request, store)
    assert page.getvalue() == "decoding: 160 images\n"


def test_decoding_bar_counts_on_a_terminal_and_is_silent_for_a_program() -> None:
    page = io.StringIO()
    for enabled in (False, True):
        console = Console(file=page, width=80, force_terminal=True)
        with DecodingBar(enabled=enabled, console=console) as bar:
            assert page.getvalue() == ""
            bar(64, 128)
            bar(128, 128)
    assert "128/128" in page.getvalue()
