"""What lies there, before anything is decided of it: folders, tables and idx files as raw tables.

Every file is read and fingerprinted, and its header checked; decoding is left to
`training.loading`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.errors import DataError, ImageError, SettingsError
from model.images import check
from training.idx import IdxFiles, find_idx_files, read_idx_files
from training.readers import ArrayReader, FileReader, Reader
from training.splits import SPLIT_WORDS, Split
from training.tables import Columns, TableRows, read_table_file, some

Fault = tuple[str, str]  # name of a file, what is wrong with it

FASHION_MNIST = "fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_TABLE_SUFFIXES = frozenset({".csv", ".parquet"})


@dataclass(frozen=True)
class RawTable:
    """What a kind of source yields, before task, splits and checks."""

    name: str
    names: list[str]
    labels: list[str]  # raw; a delimiter may be in them
    named_splits: list[Split | None]  # None: the source says nothing
    reader: Reader
    content: list[bytes]  # digest per row, or of the whole
    classes: list[str] | None = None  # None: the labels that occur, sorted
    delimiter: str | None = None  # None: a label is one, whatever is in it
    notes: list[str] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)


def read_raw_table(
    path: Path,
    delimiter: str,
    skip_bad: bool,
    pattern: str | None = None,
    columns: Columns | None = None,
) -> RawTable:
    """Whatever lies at `path`. Raises `DataError`, or `SettingsError` for a pattern."""
    if not path.exists():
        raise DataError(
            f"--data {path}: no such file or folder; give class folders, a CSV or Parquet file, "
            f"a folder of idx files, or the word {FASHION_MNIST}"
        )
    if path.is_file():
        if path.suffix.lower() not in _TABLE_SUFFIXES:
            raise DataError(f"--data {path}: a file must end in .csv or .parquet")
        return _without_bad_files(_csv_table(path, columns or Columns(), delimiter), skip_bad)
    if pattern is not None:
        return _without_bad_files(_pattern_table(path, pattern, skip_bad), skip_bad)
    if find_idx_files(path):
        return idx_table(path)
    return _without_bad_files(_folder_table(path), skip_bad)


# --- class folders -------------------------------------------------------------------------


def _folder_table(root: Path) -> RawTable:
    folders = _visible_folders(root)
    if not folders:
        raise DataError(
            f"{root} holds no class folders and no idx files; make one folder per class with "
            "its images in it (or train/ and valid/ folders of those), or give a CSV file"
        )
    parts = _split_folders(folders)
    rows: list[tuple[Path, str, Split | None]] = []
    places: Sequence[tuple[Path, Split | None]] = parts or [(root, None)]
    for part, split in places:
        for folder in _visible_folders(part):
            rows += [(path, folder.name, split) for path in _files_of_class(folder)]
    if not rows:
        raise DataError(f"{root}: the folders {_names(folders)} hold no class folders of images")
    ignored = _names(folder for folder in folders if parts and folder not in dict(parts))
    return RawTable(
        name=root.resolve().name,
        names=[path.relative_to(root).as_posix() for path, _, _ in rows],
        labels=[label for _, label, _ in rows],
        named_splits=[split for _, _, split in rows],
        reader=FileReader([path for path, _, _ in rows]),
        content=[],
        notes=[f"Folders beside the splits were left out: {ignored}."] if ignored else [],
    )


def _split_folders(folders: list[Path]) -> list[tuple[Path, Split]]:
    """The folders that name splits, or none of them where there is no train folder."""
    named = [
        (folder, SPLIT_WORDS[folder.name.lower()])
        for folder in folders
        if folder.name.lower() in SPLIT_WORDS
    ]
    has_train = any(split is Split.FIT for _, split in named)
    return named if has_train and (len(named) > 1 or len(folders) == 1) else []


def _visible_folders(root: Path) -> list[Path]:
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    for folder in folders:
        if folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{folder} links back to {folder.resolve()}, which it lies in: its images would be"
                " read without end; remove the link"
            )
    return folders


def _files_of_class(folder: Path) -> list[Path]:
    """All files under a class folder but hidden ones; does not follow linked folders."""
    files = [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    ]
    if not files:
        raise DataError(f"class folder {folder} holds no images; fill it or remove it")
    return sorted(files)


# --- CSV and Parquet -----------------------------------------------------------------------


def _csv_table(path: Path, columns: Columns, delimiter: str) -> RawTable:
    rows = read_table_file(path, columns, delimiter)
    return RawTable(
        name=path.stem,
        names=rows.names,
        labels=rows.labels,
        named_splits=rows.named_splits,
        reader=FileReader(rows.paths),
        content=[],
        delimiter=rows.delimiter,
        notes=[*rows.notes, *_conflicts(rows)],
    )


def _conflicts(rows: TableRows) -> list[str]:
    """A note where the table names one file twice with different labels."""
    labels: dict[Path, set[str]] = {}
    for path, label in zip(rows.paths, rows.labels, strict=True):
        labels.setdefault(path, set()).add(label)
    names = sorted({path.name for path, its in labels.items() if len(its) > 1})
    if not names:
        return []
    return [f"{len(names)} files stand in several rows with different labels: {some(names)}."]


def images_below(folder: Path, skip_bad: bool) -> RawTable:
    """All images below a folder, without labels. Raises `DataError`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with images in it, at any depth")
    return _without_bad_files(_pattern_table(folder, "()", skip_bad), skip_bad)


# --- labels in file names ------------------------------------------------------------------


def _pattern_table(root: Path, pattern: str, skip_bad: bool) -> RawTable:
    """All files below a folder; the pattern's first group, found in the name, is the label."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"--pattern {pattern!r} is no regular expression: {error}") from error
    if not compiled.groups:
        raise SettingsError(
            f"--pattern {pattern!r} has no group; put the label in brackets, as in"
            r" '(.+)_\d+.jpg$'"
        )
    paths = _files_of_class(root)
    matches = [compiled.search(path.name) for path in paths]
    names = [path.relative_to(root).as_posix() for path in paths]
    bad = [
        (name, "its name does not match --pattern")
        for name, match in zip(names, matches, strict=True)
        if match is None
    ]
    notes = refuse_or_note_bad(bad, len(paths), skip_bad)
    kept = [row for row, match in enumerate(matches) if match is not None]
    return RawTable(
        name=root.resolve().name,
        names=[names[row] for row in kept],
        labels=[(match.group(1) or "").strip() for match in matches if match is not None],
        named_splits=[None] * len(kept),
        reader=FileReader([paths[row] for row in kept]),
        content=[],
        notes=notes,
        left_out=bad,
    )


# --- idx files -----------------------------------------------------------------------------


def fashion_mnist_folder(home: Path | None = None) -> Path:
    """The folder of idx files: Debian's, else below `home`, else downloaded to there.

    Raises `DataError` that names the three ways to get it.
    """
    home = home or Path(os.environ.get("PLUMBLINE_HOME", "var"))
    own = home / "data" / FASHION_MNIST
    for folder in (DEBIAN_FOLDER, own):
        if folder.is_dir() and find_idx_files(folder):
            return folder
    try:
        _download_fashion_mnist(own)
    except (OSError, RuntimeError, ImportError) as error:
        raise DataError(
            f"Fashion-MNIST is not here and its download failed ({error}); get it in one of "
            "three ways: `apt-get install dataset-fashion-mnist` (Debian, as root); a network "
            "that lets torchvision download it; or put its four idx files into a folder and "
            f"pass --data FOLDER (or into {own})"
        ) from error
    return own


def _download_fashion_mnist(folder: Path) -> None:
    """Let torchvision download and check the four files, then move the folder into place."""
    import shutil
    import tempfile

    from torchvision.datasets import FashionMNIST

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        FashionMNIST(temporary, download=True)
        shutil.rmtree(folder, ignore_errors=True)
        Path(temporary, "FashionMNIST", "raw").rename(folder)


def idx_table(folder: Path) -> RawTable:
    """Rows of idx files; those of test are named so."""
    files: IdxFiles = read_idx_files(folder)
    has_test = files.train_count < len(files.labels)
    return RawTable(
        name=FASHION_MNIST if files.is_fashion_mnist else folder.resolve().name,
        names=files.names,
        labels=[files.classes[label] for label in files.labels],
        named_splits=[
            (Split.FIT if row < files.train_count else Split.TEST) if has_test else None
            for row in range(len(files.labels))
        ],
        reader=ArrayReader(files.images),
        content=[hashlib.sha256(files.images.tobytes()).digest()],
        classes=files.classes,
    )


# --- bad files -----------------------------------------------------------------------------


def _without_bad_files(table: RawTable, skip_bad: bool) -> RawTable:
    """Fingerprint every file and check its header; leave bad ones out or raise `DataError`."""
    assert isinstance(table.reader, FileReader)
    paths = table.reader.paths
    with ThreadPoolExecutor() as threads:
        # A table may name a file many times: it is read once.
        distinct = list(dict.fromkeys(paths))
        found = dict(zip(distinct, threads.map(_digest_or_fault, distinct), strict=True))
    results = [found[path] for path in paths]
    bad = [
        (name, result)
        for name, result in zip(table.names, results, strict=True)
        if isinstance(result, str)
    ]
    notes = refuse_or_note_bad(bad, len(paths), skip_bad)
    good = [row for row, result in enumerate(results) if isinstance(result, bytes)]
    return replace(
        table,
        names=[table.names[row] for row in good],
        labels=[table.labels[row] for row in good],
        named_splits=[table.named_splits[row] for row in good],
        reader=FileReader([paths[row] for row in good]),
        content=[result for result in results if isinstance(result, bytes)],
        notes=[*table.notes, *notes],
        left_out=[*table.left_out, *bad],
    )


def _digest_or_fault(path: Path) -> bytes | str:
    """SHA-256 of a file with the header of an image, or what is wrong with it."""
    try:
        data = path.read_bytes()
        check(data)
    except (OSError, ImageError) as error:
        return str(error)
    return hashlib.sha256(data).digest()


def refuse_or_note_bad(bad: Sequence[Fault], total: int, skip_bad: bool) -> list[str]:
    """Notes on skipped files; a `DataError` where they may not be skipped, or all are bad."""
    if not bad:
        return []
    told = some([f"{name} ({fault})" for name, fault in bad])
    if not skip_bad or len(bad) == total:
        raise DataError(
            f"{len(bad)} of {total} files cannot be used as images: {told}; mend or remove "
            "them, or leave them out with --skip-bad"
        )
    return [f"{len(bad)} of {total} files were skipped: {told}."]


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(folder.name for folder in folders)
