"""What was asked for is checked against the data before any training begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from model.errors import DataError, SettingsError
from model.store import ModelStore
from training.objectives import Cost, FScore, Objective
from training.preparation import prepare_training
from training.request import TrainRequest, choose_objective, open_request

Choose = Callable[..., Objective]
HEADER = "class,false_positive,false_negative\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images with several labels, of cat and dog; on validation each has both."""
    lines = ["fname,labels,is_valid"]
    for number in range(40):
        Image.new("RGB", (28, 28), (6 * number, 0, 0)).save(tmp_path / f"{number}.png")
        labels = ("cat", "dog", "cat dog", "")[number % 4] if number < 24 else "cat dog"
        lines.append(f"{number}.png,{labels},{number >= 24}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def choose(table: Path, tmp_path: Path) -> Choose:
    """`choose(**options)`: the objective of a training on that table."""

    def of(**options: object) -> Objective:
        request = TrainRequest(data=str(table), name="pets", **options)  # type: ignore[arg-type]
        return choose_objective(request, open_request(request, tmp_path / "home"))

    return of


def test_macro_f1_unless_something_else_is_asked_for(choose: Choose) -> None:
    assert choose() == FScore()
    assert choose(objective="micro_f2") == FScore(2, "micro")


def test_a_cost_matrix_alone_means_costs(choose: Choose, tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(f"{HEADER}*,1,2\ndog,3,4\n")
    expected = Cost((1.0, 3.0), (2.0, 4.0))
    assert choose(cost_matrix=str(path)) == choose(objective="cost", cost_matrix=str(path))
    assert choose(cost_matrix=str(path)) == expected
    with pytest.raises(SettingsError, match="--objective macro_f1"):
        choose(objective="macro_f1", cost_matrix=str(path))
    path.write_text(f"{HEADER}cow,1,2\n")
    with pytest.raises(DataError, match="costs of 'cow', which the data do not have"):
        choose(cost_matrix=str(path))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "macro_f1"}, "--objective"),
        ({"per_class_thresholds": False}, "--per-class-thresholds"),
        ({"cost_matrix": "costs.csv"}, "--cost-matrix"),
    ],
)
def test_single_label_takes_no_objective(tmp_path: Path, options, named) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (28, 28), (number, len(label), ord(label[0])))
            image.save(tmp_path / "pets" / label / f"{number}.png")
    request = TrainRequest(data=str(tmp_path / "pets"), name="pets", **options)
    source = open_request(request, tmp_path / "home")
    with pytest.raises(SettingsError, match=f"{named}: these tune the thresholds of several"):
        choose_objective(request, source)


def test_validation_where_every_label_is_the_same_is_refused_before_training(
    table: Path, store: ModelStore
) -> None:
    request = TrainRequest(data=str(table), name="pets", architecture="small-resnet")
    with pytest.raises(DataError, match=r"each of the \d+ validation images has every label"):
        prepare_training(request, store, show_progress=False)
