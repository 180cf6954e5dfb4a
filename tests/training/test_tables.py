"""Tables and file names as sources: columns by name, splits in words, labels in several columns."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from model.errors import DataError, SettingsError
from tests.training.test_sources import counts, fill, image_bytes, write_csv
from training.sources import open_source
from training.splits import Split
from training.tables import Columns, read_table_file

CLASSES = ("cat", "dog")


def plain_rows(count: int) -> list[str]:
    return [f"{row:03}.png,{CLASSES[row % 2]}" for row in range(count)]


# --- labels in file names


def named_files(folder: Path) -> Path:
    folder.mkdir()
    for row in range(40):
        (folder / f"{CLASSES[row % 2]}_{row}.png").write_bytes(image_bytes(row))
    return folder


def test_a_pattern_finds_the_label_in_the_name(tmp_path: Path) -> None:
    folder = named_files(tmp_path / "pets")
    (folder / "more").mkdir()
    (folder / "more" / "great dane_1.png").write_bytes(image_bytes(90))
    (folder / "more" / "great dane_2.png").write_bytes(image_bytes(91))
    source = open_source(folder, pattern=r"(.+)_\d+\.png$")
    assert source.classes == ["cat", "dog", "great dane"]
    assert Counter(source.labels) == {("cat",): 20, ("dog",): 20, ("great dane",): 2}


def test_names_that_do_not_match_are_told_or_skipped(tmp_path: Path) -> None:
    folder = named_files(tmp_path / "pets")
    (folder / "cover.png").write_bytes(image_bytes(99))
    with pytest.raises(DataError, match=r"1 of 41 files .*cover.png .*does not match --pattern"):
        open_source(folder, pattern=r"(.+)_\d+\.png$")
    source = open_source(folder, pattern=r"(.+)_\d+\.png$", skip_bad=True)
    assert len(source) == 40
    assert any("cover.png" in note for note in source.notes)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "no regular expression"), (r".+_\d+", "has no group")]
)
def test_a_pattern_that_finds_no_label_is_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        open_source(named_files(tmp_path / "pets"), pattern=pattern)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    folder = named_files(tmp_path / "pets")
    (folder / "again").symlink_to(folder)
    assert len(open_source(folder, pattern=r"(.+)_\d+\.png$")) == 40


# --- columns


@pytest.mark.parametrize("header", ["file,label", "path,labels", "filename,label", "image,label"])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, header: str) -> None:
    fill(tmp_path, 40)
    assert open_source(write_csv(tmp_path, plain_rows(40), header)).classes == ["cat", "dog"]


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    table = write_csv(tmp_path, plain_rows(40), "photo,species")
    with pytest.raises(DataError, match=r"no column 'fname' or .* photo, species.*--file-column"):
        open_source(table)
    source = open_source(table, columns=Columns("photo", ("species",)))
    assert source.classes == ["cat", "dog"]


def test_splits_are_read_in_words_and_nothing_is_dealt(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    words = ["train", "Valid ", "calibration", "test"]
    rows = [f"{row},{words[at // 2 % 4]}" for at, row in enumerate(plain_rows(40))]
    source = open_source(write_csv(tmp_path, rows, "fname,labels,split"))
    assert counts(source) == {"fit": 10, "validation": 10, "calibration": 10, "test": 10}
    assert source.rows(Split.TEST)[0] == 6


def test_an_unknown_split_is_named_with_its_row(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    rows = [f"{row},train" for row in plain_rows(3)] + ["003.png,dog,holdout"]
    with pytest.raises(DataError, match=r"row 5: split is 'holdout'; it must be one of .*valid"):
        open_source(write_csv(tmp_path, rows, "fname,labels,split"))


def test_several_columns_of_labels_are_joined_and_empty_ones_say_nothing(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    kinds = ["red,big shoe", "blue,", ",big shoe", ","]
    rows = [f"{row:03}.png,{kinds[row % 4]}" for row in range(60)]
    table = write_csv(tmp_path, rows, "fname,colour,kind")
    source = open_source(table, columns=Columns(labels=("colour", "kind")))
    assert source.task == "multi"
    assert source.classes == ["big shoe", "blue", "red"]
    assert source.labels[:4] == [("red", "big shoe"), ("blue",), ("big shoe",), ()]


def test_columns_of_zero_and_one_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    kinds = ["1,0", "0,1", "1,1", "0,0"]
    rows = [f"{row:03}.png,{kinds[row % 4]}" for row in range(60)]
    source = open_source(
        write_csv(tmp_path, rows, "fname,cat,dog"), columns=Columns(labels=("cat", "dog"))
    )
    assert source.labels[:4] == [("cat",), ("dog",), ("cat", "dog"), ()]


def test_labels_in_several_columns_are_no_single_label(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    rows = [f"{row:03}.png,red,shoe" for row in range(8)]
    table = write_csv(tmp_path, rows, "fname,colour,kind")
    with pytest.raises(DataError, match="8 of 8 rows have labels in several columns"):
        open_source(table, task="single", columns=Columns(labels=("colour", "kind")))


# --- what is suspicious


def test_classes_that_look_alike_are_told_and_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path, 90)
    names = ["T-Shirt", "t_shirt", "boot"]
    rows = [f"{row:03}.png,{names[row % 3]}" for row in range(90)]
    source = open_source(write_csv(tmp_path, rows, "fname,label"))
    assert len(source.classes) == 3
    assert any("'T-Shirt' and 't_shirt'" in note for note in source.notes)


def test_one_file_with_two_labels_is_told(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    rows = [*plain_rows(40), "000.png,dog"]
    source = open_source(write_csv(tmp_path, rows, "fname,label"))
    told = "1 files stand in several rows with different labels: 000.png."
    assert told in source.notes


def test_spaces_around_labels_are_taken_off_and_told(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    rows = [
        row.replace(",", ", ") if place < 3 else row for place, row in enumerate(plain_rows(40))
    ]
    source = open_source(write_csv(tmp_path, rows, "fname,label"))
    assert source.classes == list(CLASSES)
    assert any(note.startswith("3 labels had spaces around them") for note in source.notes)


def test_file_names_may_hold_spaces_newlines_commas_and_other_scripts(tmp_path: Path) -> None:
    names = ["a b.png", "new\nline.png", "comma, here.png", "Käse 猫.png"]
    rows = []
    for number, name in enumerate(names * 10):
        file = f"{number} {name}"
        (tmp_path / file).write_bytes(image_bytes(number))
        rows.append(f'"{file}",{CLASSES[number % 2]}')
    table = tmp_path / "table.csv"
    table.write_bytes(("fname,label\r\n" + "\r\n".join(rows) + "\r\n").encode("utf-8-sig"))
    source = open_source(table)
    assert len(source) == 40
    assert "1 new\nline.png" in source.names


def test_a_table_that_names_a_file_often_asks_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 4)
    table = write_csv(tmp_path, plain_rows(4) * 5000, "fname,label")
    asked = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: asked.append(str(path)) or lstat(path))
    assert len(read_table_file(table, Columns(), " ").paths) == 20_000
    assert len([path for path in asked if path.endswith(".png")]) == 4
