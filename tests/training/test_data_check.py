"""What `data check` claims about a folder of images with every fault planted in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from training.data_check import DataCheck, Finding, check_data, look, near_duplicates
from training.data_pages import verdict, write_check_page
from training.sources import Source, open_source


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Smooth random colours: no two alike."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, name: str, seeds: range) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / name / f"{seed:03}.png")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Forty images of two classes without a fault."""
    fill(tmp_path / "data", "left", range(20))
    fill(tmp_path / "data", "right", range(20, 40))
    return tmp_path / "data"


def opened(data: Path) -> Source:
    return open_source(data, skip_bad=True, for_training=False)


def checked(data: Path) -> DataCheck:
    return check_data(opened(data))


def found(check: DataCheck, kind: str) -> Finding:
    return next(finding for finding in check.findings if finding.kind == kind)


def kinds(check: DataCheck) -> set[str]:
    return {finding.kind for finding in check.findings}


def test_clean_data_have_no_findings_but_how_they_were_dealt(clean: Path) -> None:
    check = checked(clean)
    assert kinds(check) == {"source"}
    assert check.is_clean
    assert check.images == {"fit": 24, "validation": 6, "calibration": 6, "test": 4}
    assert check.counts["left"] == {"fit": 12, "validation": 3, "calibration": 3, "test": 2}
    assert check.sizes is not None
    assert check.sizes.width == (48, 48, 48)
    assert "nothing stands in the way" in verdict(check)


def test_files_with_broken_headers_and_with_broken_bodies_are_named_together(clean: Path) -> None:
    (clean / "left" / "text.png").write_text("no image")
    whole = (clean / "left" / "000.png").read_bytes()
    (clean / "left" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (clean / "right" / "empty.png").write_bytes(b"")
    fault = found(checked(clean), "corrupt files")
    assert fault.severity == "error"
    assert sorted(example.split(":")[0] for example in fault.examples) == [
        "left/cut.png",
        "left/text.png",
        "right/empty.png",
    ]
    assert fault.sentence.startswith("3 of 43 files")
    assert found(check_data(opened(clean), skip_bad=True), "corrupt files").severity == "warning"


def test_the_same_bytes_under_two_labels_are_a_conflict(clean: Path) -> None:
    (clean / "right" / "copy.png").write_bytes((clean / "left" / "003.png").read_bytes())
    check = checked(clean)
    conflict = found(check, "conflicting labels, exact")
    assert conflict.severity == "warning"
    assert "left/003.png" in conflict.examples[0]
    assert "right/copy.png" in conflict.examples[0]
    assert found(check, "exact duplicates").sentence.startswith("2 images in 1 groups")


def test_a_recompressed_smaller_copy_is_a_near_duplicate_and_leaks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, first in (("train", 0), ("valid", 100), ("test", 200)):
        fill(data / split, "left", range(first, first + 12))
        fill(data / split, "right", range(first + 50, first + 62))
    again = picture(5).resize((40, 40), Image.Resampling.LANCZOS)
    again.save(data / "test" / "left" / "again.jpg", quality=70)
    check = checked(data)
    leak = found(check, "leakage, near")
    assert leak.severity == "warning"
    assert len(leak.rows) == 1
    assert "train/left/005.png (fit, left)" in leak.examples[0]
    assert "test/left/again.jpg (test, left)" in leak.examples[0]
    assert "leakage, exact" not in kinds(check)


def test_blank_images_are_no_near_duplicates_of_each_other(clean: Path) -> None:
    for shade in (10, 90):
        Image.new("RGB", (48, 48), (shade,) * 3).save(clean / "left" / f"blank{shade}.png")
    looked, faults = look(opened(clean))
    assert not faults
    assert near_duplicates(looked) == []


def test_imbalance_few_images_and_long_images_are_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    fill(data, "common", range(120))
    fill(data, "rare", range(200, 205))
    picture(7, (200, 40)).save(data / "common" / "long.png")
    check = checked(data)
    assert "24 times" in found(check, "imbalance").sentence
    assert "rare" in found(check, "few images").sentence
    assert found(check, "aspect ratio").examples == ("common/long.png",)
    assert check.is_clean


def test_one_class_alone_is_an_error_as_it_is_in_training(tmp_path: Path) -> None:
    fill(tmp_path / "data", "only", range(20))
    check = checked(tmp_path / "data")
    assert found(check, "classes").severity == "error"
    assert "one class only" in found(check, "classes").sentence
    with pytest.raises(DataError, match="one class only"):
        open_source(tmp_path / "data")


def test_rows_without_a_label_are_counted_as_none_of_the_classes(tmp_path: Path) -> None:
    fill(tmp_path, "images", range(12))
    rows = [f"images/{seed:03}.png,{['a', 'b', ''][seed % 3]}" for seed in range(12)]
    (tmp_path / "table.csv").write_text("fname,labels\n" + "\n".join(rows) + "\n")
    check = checked(tmp_path / "table.csv")
    assert sum(check.counts[""].values()) == 4
    assert check.classes == ("a", "b")


def test_a_table_without_a_single_label_is_one_class_too_few(tmp_path: Path) -> None:
    fill(tmp_path, "images", range(12))
    rows = "".join(f"images/{seed:03}.png,\n" for seed in range(12))
    (tmp_path / "table.csv").write_text("fname,labels\n" + rows)
    check = checked(tmp_path / "table.csv")
    assert found(check, "classes").severity == "error"
    assert check.classes == ()


def test_the_page_escapes_names_and_shows_samples(clean: Path, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    fill(clean.parent / "data", nasty.replace("/", "!"), range(60, 80))
    (clean / "left" / os.fsdecode(b"caf\xe9 \n.png")).write_bytes(
        (clean / "left" / "001.png").read_bytes()
    )
    source = opened(clean)
    write_check_page(tmp_path / "page.html", source, check_data(source))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") >= 24


def test_the_command_tells_writes_the_page_and_answers_by_exit_code(
    clean: Path, tmp_path: Path, run_plumbline: Callable[..., Any]
) -> None:
    home = tmp_path / "home"
    done = run_plumbline("data", "check", "--data", str(clean), "--json", home=home)
    content = json.loads(done.stdout)
    assert done.returncode == 0
    assert content["clean"] is True
    assert Path(content["page"]) == home / "reports" / "data-data.html"
    assert Path(content["page"]).is_file()
    (clean / "left" / "zero.png").write_bytes(b"")
    broken = run_plumbline("data", "check", "--data", str(clean), home=home, check=False)
    assert broken.returncode == 1
    assert "left/zero.png" in broken.stdout
    assert "training would refuse them; 1 error to mend." in broken.stdout
