"""`plumbline evaluate`: the splits of a version are those of the data it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.decision import Calibration, Thresholds
from model.engines import Outputs
from model.errors import DataError
from monitoring.outlier import OutlierModel
from plumbline.evaluate_command import _rows
from training.evaluate import (
    Decider,
    _by_classes_of,
    _refuse_unmeasurable,
    _split_to_use,
    assess,
    augmented_probabilities,
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


def decider_of(outputs):
    outlier = OutlierModel.fit(outputs.embedding, outputs.logits)
    return Decider(
        task="single",
        classes=("circle", "square", "star"),
        calibration=Calibration(method="temperature"),
        thresholds=Thresholds(objective="most probable class"),
        outlier=outlier.calibrated(outlier.score(*outputs[::-1])[0]),
        alpha=0.01,
    )


class Corner:
    """An engine whose logits are the first pixel, so that every view has its own."""

    def run(self, images):
        logits = images[:, 0, 0].astype(np.float32) / 64
        return Outputs(logits, np.tile(logits, (1, 3)))


@pytest.mark.parametrize(("mirror", "seen"), [(False, 3), (True, 6)])
def test_augmented_probabilities_are_a_mean_over_views(mirror, seen):
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 3), np.uint8)
    outputs = Corner().run(images)
    decider = decider_of(outputs)
    found = augmented_probabilities(Corner(), decider, images, outputs, mirror=mirror)
    pixels = [images[:, 0, 0], images[:, 1, 1]]  # as it is, moved up and left
    pixels.append(images[:, 1, 1])  # moved down and right: reflected at the edge
    weights = [0.5, 0.25, 0.25]
    if mirror:
        pixels += [images[:, 0, -1], images[:, 1, -2], images[:, 1, -2]]
        weights = [its / 2 for its in weights * 2]
    logits = [its.astype(np.float32) / 64 for its in pixels]
    chances = [decider.probabilities(Outputs(its, outputs.embedding)) for its in logits]
    assert len(chances) == seen
    assert np.allclose(found, np.average(chances, axis=0, weights=weights), atol=1e-6)


def test_the_flag_keeps_to_the_image_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (100, 28, 28, 3), np.uint8)
    outputs, targets = Corner().run(images), np.arange(100) % 3
    decider = decider_of(outputs)
    chances = augmented_probabilities(Corner(), decider, images, outputs, mirror=True)
    plain, mean = (assess(decider, outputs, targets, its) for its in (None, chances))
    assert plain["flagged_rate"] == mean["flagged_rate"]
    assert plain["brier"] != mean["brier"]


def test_figures_with_augmentation_stand_beside_those_without():
    plain = {"accuracy": 0.9, "map": None, "intervals": {"accuracy": [0.8, 0.95]}}
    mean = {"accuracy": 0.91, "map": None, "intervals": {}}
    assert _rows(plain) == [("accuracy", "0.9000", "0.8000 to 0.9500")]
    both = [("accuracy", "0.9000", "0.8000 to 0.9500", "0.9100", "")]
    assert _rows({**plain, "tta": mean}) == both


@pytest.mark.parametrize("only", [[2], [0, 2]])
def test_a_perfect_model_is_perfect_on_some_of_its_classes(only):
    rng = np.random.default_rng(0)
    targets = rng.choice(only, 100)
    logits = (10 * np.eye(3)[targets] + rng.normal(0, 0.1, (100, 3))).astype(np.float32)
    outputs = Outputs(logits, rng.normal(size=(100, 8)).astype(np.float32))
    found = assess(decider_of(outputs), outputs, targets)
    assert (found["accuracy"], found["macro_f1"]) == (1.0, 1.0)
    assert "square" in str(found["notes"])
