"""`plumbline evaluate`: the splits of a version are those of the data it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from training.evaluate import _split_to_use, evaluate_version

OWN, OTHER = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("asked", "fingerprint", "used"),
    [
        (None, OWN, "test"),
        ("valid", OWN, "valid"),
        ("all", OWN, "all"),
        (None, OTHER, "all"),
        ("all", OTHER, "all"),
    ],
)
def test_other_data_are_measured_whole(asked, fingerprint, used, make_manifest):
    assert _split_to_use(asked, fingerprint, make_manifest(), "data") == used


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
