"""The list of suspects: what a person decides is applied, and nothing else in it is trusted."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import DataError
from training.cleaning import (
    COLUMNS,
    DELETE,
    Cleaned,
    Suspect,
    read_edits,
    resolve,
    write_suspects,
)
from training.sources import Source, open_source
from training.splits import Labels

NAMES = ["cat/1.png", "cat/2.png", "dog/1.png"]
LABELS: list[Labels] = [("cat",), ("cat",), ("dog",)]
CLASSES = ["cat", "dog"]


def write(path: Path, *rows: Sequence[str], header: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def line(file: str, label: str, action: str) -> tuple[str, ...]:
    return (file, label, "", "because", "", action)


def apply(
    path: Path,
    names: Sequence[str] = NAMES,
    labels: Sequence[Labels] = LABELS,
    classes: Sequence[str] = CLASSES,
    task: str = "single",
) -> Cleaned:
    return resolve(
        path,
        read_edits(path),
        names=names,
        labels=labels,
        classes=classes,
        task=task,  # type: ignore[arg-type]
    )


def test_every_action_does_what_it_says(tmp_path: Path) -> None:
    path = write(
        tmp_path / "list.csv",
        line("cat/1.png", "cat", "delete"),
        line("cat/2.png", "cat", " dog "),
        line("dog/1.png", "dog", "keep"),
    )
    cleaned = apply(path)
    assert cleaned.deleted == (0,)
    assert cleaned.relabelled == {1: ("dog",)}
    assert (cleaned.kept, cleaned.open) == (1, 0)


def test_what_was_not_decided_changes_nothing(tmp_path: Path) -> None:
    suspects = [
        Suspect(name, label, DELETE, "why", 0.1) for name, label in zip(NAMES, LABELS, strict=True)
    ]
    write_suspects(tmp_path / "list.csv", suspects, "single")
    assert apply(tmp_path / "list.csv") == Cleaned((), {}, 0, 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (line("dog/9.png", "dog", "keep"), "line 3.*no 'dog/9.png'"),
        (line("../../etc/passwd", "dog", ""), "line 3.*no '../../etc/passwd'"),
        (line("dog/1.png", "cat", "delete"), "line 3.*is labelled 'dog' in the data, not 'cat'"),
        (
            line("dog/1.png", "dog", "remove"),
            "line 3.*'remove' is neither keep nor.*cat, dog",
        ),
        (line("dog/1.png", "dog", "cat|dog"), r"line 3.*'cat\|dog' is neither"),
        (line("cat/1.png", "cat", "dog"), "line 3.*has another action in line 2"),
        (("dog/1.png", "dog", "keep"), "line 3: 3 values for 6 columns"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_number(
    row: Sequence[str], told: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "list.csv", line("cat/1.png", "cat", "delete"), row)
    with pytest.raises(DataError, match=told):
        apply(path)


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"file,label\ncat/1.png,cat\n"])
def test_what_is_no_list_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match="has no column"):
        apply(tmp_path / "list.csv")
    with pytest.raises(DataError, match="No such file"):
        apply(tmp_path / "absent.csv")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_make_of_it_is_read(separator: str, tmp_path: Path) -> None:
    rows = [COLUMNS, line('a, "b"; c.png', "cat", "delete"), line("é.png", "cat", "dog")]
    text = "\r\n".join(
        separator.join('"' + cell.replace('"', '""') + '"' if i else cell for cell in row)
        for i, row in enumerate(rows)
    )
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    names = ['a, "b"; c.png', "é.png"]
    assert apply(tmp_path / "list.csv", names, [("cat",), ("cat",)]).deleted == (0,)


def test_no_cell_is_run_by_a_spreadsheet_and_all_read_back(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1.png", "-1.png", "@sum.png", "'quoted.png", "\tx.png"]
    suspects = [Suspect(name, ("=1+1",), ("-cat",), "why") for name in names]
    path = tmp_path / "list.csv"
    write_suspects(path, suspects, "single")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t"))]
    filled = [[*row[:5], row[2]] for row in rows[1:]]  # the suggestion, copied
    write(path, *filled)
    labels: list[Labels] = [("=1+1",)] * len(names)
    cleaned = apply(path, names, labels, ["=1+1", "-cat"])
    assert cleaned.relabelled == dict.fromkeys(range(len(names)), ("-cat",))


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, min_size=1, max_size=8).filter(str.strip)
ODD = ["keep", "delete", "none", "label:keep", "'", "''", "=", "a|b", '"', ";", "x\r\ny"]
WORDS = st.one_of(TEXTS, st.sampled_from(ODD))


@given(st.lists(WORDS, min_size=2, max_size=6, unique=True))
def test_any_file_and_class_comes_back_as_it_was(tmp_path_factory, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("list") / "list.csv"
    labels: list[Labels] = [(words[0],)] * len(words)
    suspects = [Suspect(name, (words[0],), (name,), "why") for name in words]
    write_suspects(path, suspects, "single")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    write(path, *([*row[:5], row[2]] for row in rows[1:]))
    cleaned = apply(path, words, labels, words)
    assert cleaned.relabelled == {row: (words[row],) for row in range(1, len(words))}


def test_several_labels_are_a_set(tmp_path: Path) -> None:
    names, classes = ["1.png", "2.png", "3.png"], ["salt | pepper", "sea", "sun"]
    labels: list[Labels] = [("sun", "sea"), (), ("sun",)]
    suspects = [
        Suspect("1.png", ("sea", "sun"), ("salt | pepper", "sea"), "why"),
        Suspect("2.png", (), ("sun",), "why"),
        Suspect("3.png", ("sun",), (), "why"),
    ]
    path = tmp_path / "list.csv"
    write_suspects(path, suspects, "multi")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    write(path, *([*row[:5], row[2]] for row in rows[1:]))
    cleaned = apply(path, names, labels, classes, "multi")
    assert cleaned.relabelled == {0: ("salt | pepper", "sea"), 1: ("sun",), 2: ()}
    write(path, line("1.png", "sea|sun", "sun | sea"))
    assert apply(path, names, labels, classes, "multi").relabelled == {}  # the same set


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_class_named_as_an_action_and_the_action_itself_come_back_apart(
    task: str, tmp_path: Path
) -> None:
    classes = ["none", "keep", "delete", "cat"]
    names = [*classes, "without"]
    labels: list[Labels] = [("cat",)] * 3 + [("none",)] * 2
    suggested: list[Labels] = [*((name,) for name in classes), ()]
    suspects = [Suspect(*its, "why") for its in zip(names, labels, suggested, strict=True)]
    path = tmp_path / "list.csv"
    write_suspects(path, suspects, task)  # type: ignore[arg-type]
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[2] for row in rows] == ["label:none", "label:keep", "label:delete", "cat", "none"]
    write(path, *([*row[:5], row[2]] for row in rows))
    relabelled = apply(path, names, labels, classes, task).relabelled
    assert relabelled == dict(enumerate(suggested))
    write(path, *(line(name, "none", name) for name in ("keep", "delete")))
    bare = apply(path, names, [("none",)] * 5, classes, task)
    assert (bare.kept, bare.deleted, bare.relabelled) == (1, (2,), {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            image = rng.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def rows_of(source: Source) -> dict[str, tuple[Labels, str]]:
    pairs = zip(source.labels, source.splits, strict=True)
    return dict(zip(source.names, pairs, strict=True))


def test_the_other_rows_stay_in_their_splits(folder: Path, tmp_path: Path) -> None:
    before = open_source(folder)
    path = write(
        tmp_path / "list.csv",
        line("cat/3.png", "cat", "delete"),
        line("cat/4.png", "cat", "dog"),
        line("cat/5.png", "cat", ""),
    )
    after = open_source(folder, clean=path)
    expected = rows_of(before)
    del expected["cat/3.png"]
    expected["cat/4.png"] = (("dog",), expected["cat/4.png"][1])
    assert rows_of(after) == expected
    assert after.base_fingerprint == before.fingerprint != after.fingerprint
    assert "list.csv, a list that a person edited: 1 rows were deleted, 1 labelled anew" in str(
        after.notes
    )
    spec_row = after.names.index("dog/7.png")
    assert after.reader.stored(spec_row) == (folder / "dog" / "7.png").read_bytes()


def test_the_fingerprint_is_that_of_what_the_list_does(folder: Path, tmp_path: Path) -> None:
    def fingerprint(*rows: Sequence[str]) -> str:
        return open_source(folder, clean=write(tmp_path / "list.csv", *rows)).fingerprint

    plain = open_source(folder).fingerprint
    assert fingerprint() == fingerprint(line("cat/1.png", "cat", "keep")) == plain
    deleted = fingerprint(line("cat/1.png", "cat", "delete"))
    relabelled = fingerprint(line("cat/1.png", "cat", "dog"))
    other = fingerprint(line("cat/2.png", "cat", "delete"))
    assert len({plain, deleted, relabelled, other}) == 4


def test_a_list_that_leaves_a_class_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", *(line(f"cat/{n}.png", "cat", "delete") for n in range(20)))
    with pytest.raises(DataError, match="have no images to train on: cat"):
        open_source(folder, clean=path)
    everything = [line(f"{name}/{n}.png", name, "delete") for name in CLASSES for n in range(20)]
    with pytest.raises(DataError, match="deletes all 40 rows"):
        open_source(folder, clean=write(path, *everything))


def test_rows_of_idx_files_go_by_their_numbers(few_garments: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", line("train/0", "ankle boot", "delete"))
    before, after = open_source(few_garments), open_source(few_garments, clean=path)
    assert len(after) == len(before) - 1
    assert "train/0" not in after.names
