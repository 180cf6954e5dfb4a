"""Sources: what is read, how it is dealt to splits, and every kind of bad input."""

from __future__ import annotations

import gzip
import io
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import training.raw_tables
from model.errors import DataError
from model.images import InputSpec, prepare
from training.idx import FASHION_MNIST_CLASSES
from training.sources import Source, open_source
from training.splits import Split, deal_splits


def image_bytes(shade: int = 128, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 0)).save(file, format)
    return file.getvalue()


def fill(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:03}.png").write_bytes(image_bytes(number))


def write_csv(folder: Path, rows: list[str], header: str = "fname,labels,is_valid") -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def multi_label_csv(folder: Path) -> Path:
    fill(folder / "train", 24)
    kinds = ["cat", "cat dog", "", "dog"]
    rows = [f"{row:03}.png,{kinds[row % 4]},{row >= 12}" for row in range(24)]
    return write_csv(folder, rows)


def write_idx(path: Path, values: np.ndarray, magic: int) -> None:
    header = struct.pack(f">{1 + values.ndim}i", magic, *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def idx_folder(folder: Path, suffix: str = ".gz", with_test: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", 240), ("t10k", 40))[: 1 + with_test]:
        write_idx(
            folder / f"{prefix}-images-idx3-ubyte{suffix}",
            random.integers(0, 256, (count, 28, 28)),
            2051,
        )
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count) % 4, 2049)
    return folder


def counts(source: Source) -> dict[str, int]:
    return {split: len(source.rows(split)) for split in Split}


# --- class folders


def test_plain_class_folders_are_dealt_by_class(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog", 40, first=100)
    source = open_source(tmp_path)
    assert (source.classes, source.task) == (["cat", "dog"], "single")
    assert counts(source) == {"fit": 36, "validation": 9, "calibration": 9, "test": 6}
    of_fit = Counter(source.labels[row] for row in source.rows(Split.FIT))
    assert of_fit == {("cat",): 12, ("dog",): 24}
    assert source.names[0] == "cat/000.png"
    assert "60/15/15/10" in source.notes[0]


def dealt(classes: int, rows: int, seed: int = 0) -> tuple[list[Split], list[str]]:
    labels = [(f"class {row % classes}",) for row in range(rows)]
    return deal_splits(labels, [None] * rows, seed)


@pytest.mark.parametrize("classes", [2, 7, 30])
def test_calibration_gets_enough_to_flag_at_one_percent(classes: int) -> None:
    splits, notes = dealt(classes, 480)
    assert splits.count(Split.CALIBRATION) == 120
    assert any("went from fit to calibration, which has 120" in note for note in notes)
    for split in (Split.FIT, Split.CALIBRATION):
        members = Counter(row % classes for row in range(480) if splits[row] is split)
        assert set(members) == set(range(classes))
        assert max(members.values()) - min(members.values()) <= 2
    assert splits == dealt(classes, 480)[0] != dealt(classes, 480, seed=1)[0]


def test_calibration_takes_no_label_from_fit_altogether() -> None:
    splits, _ = dealt(200, 400)
    assert {row % 200 for row in range(400) if splits[row] is Split.FIT} == set(range(200))


def test_calibration_of_few_or_of_many_images_keeps_its_share() -> None:
    for rows, expected in ((200, 30), (1000, 150)):
        splits, notes = dealt(2, rows)
        assert splits.count(Split.CALIBRATION) == expected
        assert not any("went from fit" in note for note in notes)


def test_copies_of_an_image_are_dealt_to_one_split(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 30)
    fill(tmp_path / "dog", 30, first=100)
    for number in range(100, 110):
        (tmp_path / "dog" / f"again{number}.png").write_bytes(image_bytes(number))
    source = open_source(tmp_path)
    split_of = dict(zip(source.names, source.splits, strict=True))
    for number in range(100, 110):
        assert split_of[f"dog/again{number}.png"] is split_of[f"dog/{number}.png"]
    assert "10 rows repeat an image: each was dealt to the split of the first." in source.notes


def test_copies_take_no_class_from_fit(tmp_path: Path) -> None:
    fill(tmp_path / "dog", 40, first=100)
    (tmp_path / "cat").mkdir()
    for number in range(20):  # four copies each of five images
        (tmp_path / "cat" / f"{number}.png").write_bytes(image_bytes(number // 4))
    source = open_source(tmp_path)
    splits = Counter(source.splits[row] for row in range(20) if source.labels[row] == ("cat",))
    assert splits[Split.FIT] >= 8
    assert splits[Split.VALIDATION] >= 4


def test_a_table_that_names_calibration_alone_keeps_it_and_gets_validation(tmp_path: Path) -> None:
    fill(tmp_path, 60)
    words = ["train"] * 40 + ["calibration"] * 20
    lines = [f"{row:03}.png,{('cat', 'dog')[row % 2]},{word}" for row, word in enumerate(words)]
    source = open_source(write_csv(tmp_path, lines, "fname,label,split"))
    assert counts(source) == {"fit": 34, "validation": 6, "calibration": 20, "test": 0}
    assert any("name calibration and no validation" in note for note in source.notes)


def test_same_seed_same_splits_and_fingerprint(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 20)
    fill(tmp_path / "dog", 20, first=100)
    first, again, other = (open_source(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.splits == again.splits != other.splits
    assert first.fingerprint == again.fingerprint != other.fingerprint
    (tmp_path / "cat" / "003.png").write_bytes(image_bytes(999))
    assert open_source(tmp_path).fingerprint != first.fingerprint


def test_train_valid_and_test_folders(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("valid", 8), ("test", 5)):
        fill(tmp_path / split / "cat", count)
        fill(tmp_path / split / "dog", count, first=100)
    source = open_source(tmp_path)
    assert counts(source) == {"fit": 20, "validation": 8, "calibration": 8, "test": 10}
    assert all(source.names[row].startswith("test/") for row in source.rows(Split.TEST))
    assert any("half" in note for note in source.notes)


def test_train_and_test_folders_keep_test_and_divide_train(tmp_path: Path) -> None:
    for split, count in (("train", 24), ("test", 5)):
        fill(tmp_path / split / "cat", count)
        fill(tmp_path / split / "dog", count, first=100)
    source = open_source(tmp_path)
    assert counts(source) == {"fit": 40, "validation": 4, "calibration": 4, "test": 10}


def test_hidden_and_stray_files_are_no_items(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog", 10)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "README.txt").write_text("about")
    assert len(open_source(tmp_path)) == 20


# --- CSV and Parquet


def test_multi_label_is_decided_from_the_whole_column(tmp_path: Path) -> None:
    source = open_source(multi_label_csv(tmp_path))  # row 0 has one label
    assert (source.task, source.classes) == ("multi", ["cat", "dog"])
    assert source.labels[:4] == [("cat",), ("cat", "dog"), (), ("dog",)]
    assert counts(source) == {"fit": 12, "validation": 6, "calibration": 6, "test": 0}
    assert source.rows(Split.FIT) == list(range(12))
    assert any("half" in note for note in source.notes)
    assert any("no test rows" in note for note in source.notes)


def test_task_single_takes_the_whole_label_as_one_class(tmp_path: Path) -> None:
    source = open_source(multi_label_csv(tmp_path), task="single")
    assert source.classes == ["cat", "cat dog", "dog"]
    assert source.labels[2] == ()


def test_delimiter_repeated_labels_spaces_and_byte_order_mark(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    rows = [f'{row:03}.png,"red hat; ;red hat;blue bag",{row > 3}\r' for row in range(8)]
    path = write_csv(tmp_path, rows, header="\ufefffname,labels,is_valid")
    source = open_source(path, delimiter=";")
    assert source.labels[0] == ("red hat", "blue bag")


def test_parquet_with_lists_and_nulls(tmp_path: Path) -> None:
    fill(tmp_path / "images", 8)
    labels = [["cat"], ["cat", "dog"], None, ["dog"]] * 2
    table = {
        "fname": [f"{row:03}.png" for row in range(8)],
        "labels": labels,
        "is_valid": [False] * 4 + [True] * 4,
    }
    parquet.write_table(pa.table(table), tmp_path / "table.parquet")
    source = open_source(tmp_path / "table.parquet")
    assert source.labels[:4] == [("cat",), ("cat", "dog"), (), ("dog",)]
    assert counts(source)["fit"] == 4


def test_csv_without_is_valid_is_dealt_at_random(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    rows = [f"{row:03}.png,{'ab'[row % 2]}" for row in range(40)]
    source = open_source(write_csv(tmp_path, rows, header="fname,labels"))
    assert counts(source) == {"fit": 24, "validation": 6, "calibration": 6, "test": 4}


@pytest.mark.parametrize("missing", ["fname", "labels"])
def test_csv_with_a_missing_column(tmp_path: Path, missing: str) -> None:
    columns = [name for name in ("fname", "labels", "is_valid") if name != missing]
    path = write_csv(tmp_path, ["a,b"], header=",".join(columns))
    with pytest.raises(DataError, match=f"no column '{missing}' or .*; its columns are"):
        open_source(path)


def test_csv_with_unknown_files_names_and_counts_them(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    path = write_csv(tmp_path, ["000.png,a,False", "nowhere.png,b,True"])
    with pytest.raises(DataError, match=r"1 of 2 files do not exist .*nowhere\.png"):
        open_source(path)


@pytest.mark.parametrize("way", ["dots", "absolute", "link"])
def test_csv_paths_must_stay_inside_the_folder(tmp_path: Path, way: str) -> None:
    secret, data = tmp_path / "secret.png", tmp_path / "data"
    secret.write_bytes(image_bytes())
    fill(data, 2)
    (data / "link.png").symlink_to(secret)
    name = {"dots": "../secret.png", "absolute": str(secret), "link": "link.png"}[way]
    path = write_csv(data, ["000.png,a,False", f"{name},b,True"])
    with pytest.raises(DataError, match="1 paths lead outside"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"fname,labels,is_valid\n", "no rows"),
        (b"fname,labels,is_valid\n000.png,a\n", "row 2: 2 values for 3 columns"),
        (b"fname,labels,is_valid\n000.png,a,perhaps\n", "row 2: is_valid is 'perhaps'"),
        (b"fname,labels\n\xff\xfe,a\n", "no CSV in UTF-8"),
    ],
)
def test_broken_csv(tmp_path: Path, content: bytes, message: str) -> None:
    fill(tmp_path, 1)
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="no readable Parquet"):
        open_source(path)


# --- idx files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    source = open_source(idx_folder(tmp_path / "digits", suffix))
    assert (source.name, source.classes) == ("digits", ["0", "1", "2", "3"])
    assert counts(source) == {"fit": 200, "validation": 20, "calibration": 20, "test": 40}
    assert source.rows(Split.TEST) == list(range(240, 280))
    of_validation = Counter(source.labels[row] for row in source.rows(Split.VALIDATION))
    assert set(of_validation.values()) == {5}


def test_idx_files_without_test_rows_are_dealt_at_random(tmp_path: Path) -> None:
    source = open_source(idx_folder(tmp_path / "digits", with_test=False))
    assert counts(source) == {"fit": 144, "validation": 36, "calibration": 36, "test": 24}


def break_truncate(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])


def break_foreign(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"no idx file at all"))


def break_count(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(100) % 4, 2049)


def break_short(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def break_missing(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_truncate, "broken or truncated"),
        (break_foreign, "no idx file"),
        (break_count, "240 images .* 100 labels"),
        (break_short, "truncated or corrupt"),
        (break_missing, "not their labels"),
    ],
)
def test_corrupt_idx_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = idx_folder(tmp_path / "digits")
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_source(folder)


@pytest.mark.skipif(
    not training.raw_tables.DEBIAN_FOLDER.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)
def test_fashion_mnist_has_its_splits_and_names() -> None:
    source = open_source("fashion-mnist")
    assert (source.name, source.classes) == ("fashion-mnist", FASHION_MNIST_CLASSES)
    assert counts(source) == {
        "fit": 50_000,
        "validation": 5_000,
        "calibration": 5_000,
        "test": 10_000,
    }
    of_calibration = Counter(source.labels[row] for row in source.rows(Split.CALIBRATION))
    assert set(of_calibration.values()) == {500}
    assert source.labels[0] == ("ankle boot",)


def test_fashion_mnist_that_cannot_be_had_names_three_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(folder: Path) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(training.raw_tables, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(training.raw_tables, "_download_fashion_mnist", offline)
    with pytest.raises(DataError) as caught:
        open_source("fashion-mnist", home=tmp_path)
    for word in ("apt-get install dataset-fashion-mnist", "torchvision", "--data FOLDER"):
        assert word in str(caught.value)


def test_fashion_mnist_below_the_home_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.raw_tables, "DEBIAN_FOLDER", tmp_path / "none")
    (tmp_path / "data").mkdir()
    idx_folder(tmp_path / "data" / "fashion-mnist")
    monkeypatch.setenv("PLUMBLINE_HOME", str(tmp_path))
    assert len(open_source("fashion-mnist")) == 280


# --- bad input


def spoil(folder: Path) -> None:
    (folder / "cat" / "zero.png").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "dog" / "cut.png").write_bytes(image_bytes()[:20])


def test_bad_files_are_named_and_counted(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog", 10)
    spoil(tmp_path)
    with pytest.raises(DataError, match=r"3 of 23 files.*--skip-bad") as caught:
        open_source(tmp_path)
    for name in ("zero.png", "notes.txt", "cut.png"):
        assert name in str(caught.value)


def test_bad_files_are_skipped_on_demand_and_listed(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog", 10)
    spoil(tmp_path)
    source = open_source(tmp_path, skip_bad=True)
    assert len(source) == 20
    assert any("3 of 23 files were skipped" in note for note in source.notes)


def test_an_error_names_at_most_ten_files(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 3)
    for number in range(25):
        (tmp_path / "cat" / f"bad{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"25 of 28 files.* and 15 more"):
        open_source(tmp_path)


def test_only_bad_files_cannot_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "zero.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 files"):
        open_source(tmp_path, skip_bad=True)


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        open_source(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        open_source(tmp_path / "table.xlsx")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_source(tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 10)
    with pytest.raises(DataError, match="one class only, cat"):
        open_source(tmp_path)


def test_classes_without_validation_or_training_images(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "cat", 4)
    fill(tmp_path / "train" / "dog", 4)
    fill(tmp_path / "valid" / "cat", 4)
    with pytest.raises(DataError, match="1 of 2 classes have no images to validate on: dog"):
        open_source(tmp_path)
    fill(tmp_path / "valid" / "dog", 4)
    fill(tmp_path / "valid" / "eel", 4)
    with pytest.raises(DataError, match="no images to train on: eel"):
        open_source(tmp_path)


# --- dealing


def test_a_class_of_two_has_one_to_validate_on() -> None:
    labels = [("big",)] * 50 + [("small",)] * 2
    splits, _ = deal_splits(labels, [None] * 52, seed=0)
    assert sorted(splits[50:]) == [Split.FIT, Split.VALIDATION]


def test_rare_labels_of_multi_label_rows_reach_every_split() -> None:
    random = np.random.default_rng(0)
    rows = [
        tuple(name for name, rate in (("a", 0.6), ("b", 0.3), ("rare", 0.03)) if draw < rate)
        for draw in random.random(1000)
    ]
    splits, _ = deal_splits(rows, [None] * 1000, seed=0)
    for label in ("a", "b", "rare"):
        total = sum(label in row for row in rows)
        valid = sum(
            label in row and split is Split.VALIDATION
            for row, split in zip(rows, splits, strict=True)
        )
        assert valid == pytest.approx(0.15 * total, abs=2)


# --- labelled images that are added


def production(folder: Path, count: int, label: str = "1") -> Path:
    folder.mkdir()
    fill(folder / "images", count, first=500)
    return write_csv(folder, [f"images/{500 + row:03}.png,{label}," for row in range(count)])


def test_added_images_leave_the_dealing_of_the_others_as_it_was(tmp_path: Path) -> None:
    base = open_source(idx_folder(tmp_path / "idx"))
    joined = open_source(tmp_path / "idx", more=production(tmp_path / "new", 20))
    assert joined.names[: len(base)] == base.names
    assert joined.splits[: len(base)] == base.splits
    assert joined.rows(Split.TEST) == base.rows(Split.TEST)
    assert joined.base_fingerprint == base.fingerprint != joined.fingerprint
    assert "20 labelled images of table.csv were added" in joined.notes[-1]


def test_added_images_are_repeated_in_fit_alone_until_they_are_a_fifth(tmp_path: Path) -> None:
    base = open_source(idx_folder(tmp_path / "idx"))
    joined = open_source(tmp_path / "idx", more=production(tmp_path / "new", 20))
    new = range(len(base), len(joined))
    fit = [joined.names[row] for row in new if joined.splits[row] is Split.FIT]
    others = [joined.names[row] for row in new if joined.splits[row] is not Split.FIT]
    assert (len(set(fit)), len(set(others)), len(others)) == (16, 4, 4)
    share = len(fit) / len(joined.rows(Split.FIT))
    assert share == pytest.approx(0.2, abs=0.03)
    assert {joined.labels[row] for row in new} == {("1",)}


def test_added_images_are_read_as_files(tmp_path: Path) -> None:
    base = open_source(idx_folder(tmp_path / "idx"))
    path = production(tmp_path / "new", 20)
    joined = open_source(tmp_path / "idx", more=path)
    spec = InputSpec(size=28, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    last = joined.names[-1].partition("/")[2]
    expected = prepare((path.parent / last).read_bytes(), spec)
    assert np.array_equal(joined.reader.prepare(len(joined) - 1, spec), expected)
    assert np.array_equal(joined.reader.prepare(3, spec), base.reader.prepare(3, spec))
    assert joined.reader.largest_side() == 28


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.CALIBRATION, Split.TEST])
def test_what_is_kept_apart_is_not_learned_though_someone_labelled_it(
    tmp_path: Path, split: Split
) -> None:
    """The rows of idx files are arrays, what comes back from production are files."""
    base = open_source(idx_folder(tmp_path / "idx"))
    path = production(tmp_path / "new", 20)
    for number, row in enumerate(base.rows(split)[:3]):
        pixels = base.reader.stored(row)
        image = Image.fromarray(np.asarray(pixels)).convert(("L", "RGB", "RGBA")[number])
        image.save(path.parent / "images" / f"{500 + number}.png")
    joined = open_source(tmp_path / "idx", more=path)
    assert len({*joined.names} - {*base.names}) == 17
    assert any(
        "3 of 20 labelled images of table were left out: they are validation, calibration or test"
        in note
        for note in joined.notes
    )


def test_what_is_kept_apart_is_known_again_in_files_of_another_format(tmp_path: Path) -> None:
    fill(tmp_path / "base" / "cat", 20)
    fill(tmp_path / "base" / "dog", 20, first=100)
    base = open_source(tmp_path / "base")
    path = production(tmp_path / "new", 5, label="cat")
    kept = Image.open(tmp_path / "base" / base.names[base.rows(Split.TEST)[0]])
    kept.save(path.parent / "images" / "500.png", "WEBP", lossless=True)
    joined = open_source(tmp_path / "base", more=path)
    assert "table/images/500.png" not in joined.names
    assert "table/images/501.png" in joined.names


def test_a_fit_image_that_comes_back_may_be_learned(tmp_path: Path) -> None:
    base = open_source(idx_folder(tmp_path / "idx"))
    path = production(tmp_path / "new", 5)
    pixels = np.asarray(base.reader.stored(base.rows(Split.FIT)[0]))
    Image.fromarray(pixels).save(path.parent / "images" / "500.png")
    joined = open_source(tmp_path / "idx", more=path)
    assert "table/images/500.png" in joined.names


def test_copies_of_an_added_image_are_dealt_once(tmp_path: Path) -> None:
    """Else calibration would hold what was fitted on."""
    idx_folder(tmp_path / "idx")
    path = production(tmp_path / "new", 40)
    for number in range(20):
        (path.parent / "images" / f"{500 + number}.png").write_bytes(image_bytes(7))
    joined = open_source(tmp_path / "idx", more=path)
    added = {name for name in joined.names if name.startswith("table/")}
    assert len(added) == 21
    assert any("19 of 40 labelled images of table were left out" in note for note in joined.notes)


def test_copies_of_an_added_image_with_other_labels_are_left_out(tmp_path: Path) -> None:
    idx_folder(tmp_path / "idx")
    path = production(tmp_path / "new", 10)
    path.write_text(path.read_text().replace("501.png,1", "501.png,2"))
    (path.parent / "images" / "501.png").write_bytes(image_bytes(500))
    joined = open_source(tmp_path / "idx", more=path)
    assert not {"table/images/500.png", "table/images/501.png"} & {*joined.names}
    assert any("2 of 10" in note and "other labels" in note for note in joined.notes)


def test_more_that_is_nothing_new_is_refused(tmp_path: Path) -> None:
    base = open_source(idx_folder(tmp_path / "idx"))
    path = production(tmp_path / "new", 1)
    pixels = np.asarray(base.reader.stored(base.rows(Split.TEST)[0]))
    Image.fromarray(pixels).save(path.parent / "images" / "500.png")
    with pytest.raises(DataError, match="adds nothing to idx: 1 of 1 labelled images"):
        open_source(tmp_path / "idx", more=path)


def test_added_images_of_unknown_classes_are_refused(tmp_path: Path) -> None:
    idx_folder(tmp_path / "idx")
    path = production(tmp_path / "new", 5, label="zebra")
    with pytest.raises(DataError, match="classes that idx has not: zebra"):
        open_source(tmp_path / "idx", more=path)


def test_data_that_is_only_measured_may_show_one_class(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 5)
    with pytest.raises(DataError, match="one class only"):
        open_source(tmp_path)
    assert open_source(tmp_path, for_training=False).classes == ["cat"]


def test_a_link_back_up_is_an_error_that_names_it(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        fill(tmp_path / "data" / name, 3)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    with pytest.raises(DataError, match=r"loop links back to .*data.*remove the link"):
        open_source(tmp_path / "data")


def test_negatives_join_fit_and_validation_without_a_label(tmp_path: Path) -> None:
    plain = open_source(idx_folder(tmp_path / "idx"), seed=3)
    fill(tmp_path / "others" / "deep", 10)
    fill(tmp_path / "others", 11)  # ten of them again
    joined = open_source(tmp_path / "idx", seed=3, negatives=tmp_path / "others")
    added = range(len(plain), len(joined))
    assert Counter(joined.splits[row] for row in added) == {Split.FIT: 9, Split.VALIDATION: 2}
    assert all(joined.labels[row] == () for row in added)
    assert joined.names[len(plain)].startswith("others/")
    assert joined.splits[: len(plain)] == plain.splits
    assert joined.fingerprint != plain.fingerprint == joined.base_fingerprint
    assert any("11 images of none of the classes, from others" in note for note in joined.notes)
    shade = joined.reader.prepare(len(plain), InputSpec(size=8, mean=(0,) * 3, std=(1,) * 3))
    assert shade.max() <= 10  # the pixels are those of the folder


def test_negatives_are_not_for_several_labels(tmp_path: Path) -> None:
    fill(tmp_path / "others", 3)
    with pytest.raises(DataError, match=r"--negatives .*: it is for single-label training"):
        open_source(multi_label_csv(tmp_path), negatives=tmp_path / "others")


@pytest.mark.parametrize("content", [None, b"no image"])
def test_negatives_that_hold_no_images_are_refused(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "others").mkdir()
    if content is not None:
        (tmp_path / "others" / "text.png").write_bytes(content)
    with pytest.raises(DataError, match=r"holds no images|cannot be used as images"):
        open_source(idx_folder(tmp_path / "idx"), negatives=tmp_path / "others")
