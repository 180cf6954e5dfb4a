"""`plumbline evaluate`: the splits of a version are those of the data it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.decision import Calibration, Thresholds
from model.engines import Outputs
from model.errors import DataError
from monitoring.outlier import OutlierModel
from training.evaluate import (
    Decider,
    _by_classes_of,
    _refuse_unmeasurable,
    _split_to_use,
    assess,
    evaluate_version,
)

OWN, OTHER = True, False


@pytest.mark.parametrize(
    ("asked", "own", "used"),
    [
        (None, OWN, "test"),
        ("valid", OWN, "valid"),
        ("all", OWN, "all"),
        (None, OTHER, "all"),
        ("all", OTHER, "all"),
    ],
)
def test_other_data_are_measured_whole(asked, own, used, make_manifest):
    assert _split_to_use(asked, own, make_manifest(), "data") == used


@pytest.fixture
def shapes(tmp_path):
    """Class folders of noise, with the names of the manifest's classes and one broken file."""
    for name in ("circle", "square", "star"):
        folder = tmp_path / "shapes" / name
        folder.mkdir(parents=True)
        for number in range(10):
            image = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "shapes" / "star" / "broken.png").write_bytes(b"broken")
    return tmp_path / "shapes"


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_split_of_other_data_is_refused(split, store, register, shapes):
    with pytest.raises(DataError, match=f"--split {split}.*made up.*use --split all"):
        evaluate_version(store, register(), str(shapes), split, skip_bad=True)


def test_bad_files_are_an_error_unless_they_may_be_skipped(store, register, shapes):
    with pytest.raises(DataError, match=r"broken\.png"):
        evaluate_version(store, register(), str(shapes), "test")


def test_images_without_any_label_are_refused(store, register, shapes, tmp_path):
    table = tmp_path / "shapes" / "table.csv"
    rows = "".join(f"star/{number}.png,\n" for number in range(10))
    table.write_text(f"fname,labels\n{rows}")
    with pytest.raises(DataError, match=r"none of the 10 images has a label.*circle, square, star"):
        evaluate_version(store, register(), str(table))


def test_a_split_without_any_label_is_refused(make_manifest):
    with pytest.raises(DataError, match="none of the 2 images has a label"):
        _refuse_unmeasurable(make_manifest(), ["star"], np.array([-1, -1]))


@pytest.mark.parametrize(
    ("classes", "targets", "by_the_model"),
    [
        (["star"], [0, 0, -1], [2, 2, -1]),
        (["star", "circle"], [1, 0, -1], [0, 2, -1]),
    ],
)
def test_data_with_some_of_the_classes_are_measured_by_the_models_order(
    classes, targets, by_the_model, make_manifest
):
    in_order = _by_classes_of(make_manifest(), classes, np.array(targets))
    assert in_order.tolist() == by_the_model


@pytest.mark.parametrize(
    ("classes", "targets", "by_the_model"),
    [
        (["star"], [[1], [0]], [[0, 0, 1], [0, 0, 0]]),
        (["star", "circle"], [[1, 0], [1, 1]], [[0, 0, 1], [1, 0, 1]]),
    ],
)
def test_so_are_data_with_several_labels(classes, targets, by_the_model, make_manifest):
    in_order = _by_classes_of(make_manifest(task="multi"), classes, np.array(targets))
    assert in_order.tolist() == by_the_model


@pytest.mark.parametrize("only", [[2], [0, 2]])
def test_a_perfect_model_is_perfect_on_some_of_its_classes(only):
    rng = np.random.default_rng(0)
    targets = rng.choice(only, 100)
    logits = (10 * np.eye(3)[targets] + rng.normal(0, 0.1, (100, 3))).astype(np.float32)
    outputs = Outputs(logits, rng.normal(size=(100, 8)).astype(np.float32))
    outlier = OutlierModel.fit(outputs.embedding, logits)
    decider = Decider(
        task="single",
        classes=("circle", "square", "star"),
        calibration=Calibration(method="temperature"),
        thresholds=Thresholds(objective="most probable class"),
        outlier=outlier.calibrated(outlier.score(outputs.embedding, logits)[0]),
        alpha=0.01,
    )
    found = assess(decider, outputs, targets)
    assert (found["accuracy"], found["macro_f1"]) == (1.0, 1.0)
    assert "square" in str(found["notes"])
