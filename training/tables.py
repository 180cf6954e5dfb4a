"""CSV and Parquet tables of items: which file, which labels, which split."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError
from training.splits import SPLIT_WORDS, Split

SEPARATOR = "\x1f"  # between the labels of several columns; no text file has it in a word

_FILE_COLUMNS = ("fname", "file", "filename", "path", "image")
_LABEL_COLUMNS = ("labels", "label")
_SPLIT_COLUMNS = ("split", "is_valid")
_IMAGE_FOLDERS = ("", "train", "images")  # beside a table, where its files may lie
_YES = frozenset({"true", "1", "1.0", "yes"})
_NO = frozenset({"false", "0", "0.0", "no", "", "none"})
_NAMED_FILES = 10  # of the bad ones, how many an error names


@dataclass(frozen=True)
class Columns:
    """The columns of a table that matter; None or none: found by their usual names.

    Several `labels` columns hold each either text, or 0 and 1 for the class it is named after.
    """

    file: str | None = None
    labels: tuple[str, ...] = ()
    split: str | None = None

    @classmethod
    def of(cls, content: dict[str, Any]) -> Columns:
        """What a manifest says of them."""
        labels = tuple(content.get("labels") or ())
        return cls(content.get("file"), labels, content.get("split"))


@dataclass(frozen=True)
class TableRows:
    """What a table says, row by row; the labels of a row in one text, parted by `delimiter`."""

    names: list[str]
    labels: list[str]
    named_splits: list[Split | None]
    paths: list[Path]
    delimiter: str
    notes: list[str]


def read_table_file(path: Path, columns: Columns, delimiter: str) -> TableRows:
    """Read a CSV or Parquet file whose file names are relative to its folder.

    Raises `DataError` that names column, row or file.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    header, rows = _read_parquet(path, delimiter) if is_parquet else _read_csv(path)
    file = _column(path, header, columns.file, _FILE_COLUMNS, "file names", "--file-column")
    labels = _label_columns(path, header, columns.labels)
    split = _split_column(path, header, columns.split)
    if not rows:
        raise DataError(f"{path} has no rows below its header; add one row per image")
    names = [row[file] for row in rows]
    return TableRows(
        names=names,
        labels=_labels(header, rows, labels),
        named_splits=[
            None if split is None else _named_split(path, number, header[split], row[split])
            for number, row in enumerate(rows, start=2)
        ],
        paths=_resolve_files(path, names),
        delimiter=delimiter if len(labels) == 1 else SEPARATOR,
        notes=_stray_spaces(rows, labels),
    )


def _column(
    path: Path, header: list[str], wanted: str | None, usual: Sequence[str], what: str, option: str
) -> int:
    candidates = usual if wanted is None else (wanted,)
    for name in candidates:
        if name in header:
            return header.index(name)
    raise DataError(
        f"{path} has no column {' or '.join(map(repr, candidates))} of {what}; its columns are"
        f" {', '.join(header)}: rename one, or name it with {option}"
    )


def _label_columns(path: Path, header: list[str], wanted: Sequence[str]) -> list[int]:
    if not wanted:
        return [_column(path, header, None, _LABEL_COLUMNS, "labels", "--label-column")]
    return [_column(path, header, name, (), "labels", "--label-column") for name in wanted]


def _split_column(path: Path, header: list[str], wanted: str | None) -> int | None:
    if wanted is None and not any(name in header for name in _SPLIT_COLUMNS):
        return None
    return _column(path, header, wanted, _SPLIT_COLUMNS, "splits", "--split-column")


def _labels(header: list[str], rows: list[list[str]], columns: list[int]) -> list[str]:
    """One text per row; a column of 0 and 1 among several gives its own name."""
    if len(columns) == 1:
        return [row[columns[0]].strip() for row in rows]
    indicators = {
        column
        for column in columns
        if all(row[column].strip().lower() in _YES | _NO for row in rows)
    }
    return [
        SEPARATOR.join(
            (header[column] if row[column].strip().lower() in _YES else "")
            if column in indicators
            else row[column].strip()
            for column in columns
        )
        for row in rows
    ]


def _stray_spaces(rows: list[list[str]], columns: list[int]) -> list[str]:
    """A note on labels that begin or end with a space, which is taken off."""
    texts = (row[column] for row in rows for column in columns)
    stray = [text for text in texts if text != text.strip()]
    if not stray:
        return []
    told = some(sorted(set(map(repr, stray))))
    return [f"{len(stray)} labels had spaces around them, which were taken off: {told}."]


def _named_split(path: Path, row: int, column: str, value: str) -> Split:
    word = value.strip().lower()
    if word in SPLIT_WORDS:
        return SPLIT_WORDS[word]
    if word in _YES or word in _NO:
        return Split.VALIDATION if word in _YES else Split.FIT
    raise DataError(
        f"{path}, row {row}: {column} is {value!r}; it must be one of"
        f" {', '.join(sorted(SPLIT_WORDS))}, or True or False for validation or training"
    )


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}; save it as one") from error
    if not rows:
        raise DataError(f"{path} is empty; its first line must be fname,labels,is_valid")
    columns = [column.strip() for column in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(columns):
            raise DataError(
                f"{path}, row {number}: {len(row)} values for {len(columns)} columns; quote "
                "values that contain a comma"
            )
    return columns, rows[1:]


def _read_parquet(path: Path, delimiter: str) -> tuple[list[str], list[list[str]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error
    columns = [
        [_as_text(value, delimiter) for value in column.to_pylist()] for column in table.columns
    ]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _as_text(value: Any, delimiter: str) -> str:
    if isinstance(value, list):
        return delimiter.join(map(str, value))
    return "" if value is None else str(value)


def _resolve_files(table: Path, names: list[str]) -> list[Path]:
    """Every file below the folder of the table. Raises `DataError` for the others, named."""
    root = table.parent.resolve()
    # A table may name a file many times: the disk is asked once.
    folders: dict[str, bool] = {}
    found = {name: _resolve_file(str(root), name, folders) for name in set(names)}
    paths = [found[name] for name in names]
    outside = [name for name, path in zip(names, paths, strict=True) if path is False]
    if outside:
        raise DataError(
            f"{table}: {len(outside)} paths lead outside {root}: {some(outside)}; use paths "
            "relative to the table, without .. and without links that lead out"
        )
    unknown = [name for name, path in zip(names, paths, strict=True) if path is None]
    if unknown:
        raise DataError(
            f"{table}: {len(unknown)} of {len(names)} files do not exist below {root} or its "
            f"train or images folder: {some(unknown)}; mend the names or remove the rows"
        )
    return [path for path in paths if isinstance(path, Path)]


def _resolve_file(root: str, name: str, folders: dict[str, bool]) -> Path | bool | None:
    """The file; None where there is none; False where the name leads outside the folder.

    `folders` remembers which folders lie inside: to follow every path anew would take a table of
    a million rows a minute.
    """
    if "\x00" in name or not name.strip():
        return None
    if os.path.isabs(name) or ".." in Path(name).parts:
        return False
    for folder in _IMAGE_FOLDERS:
        path = os.path.join(root, folder, name)
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):
            continue
        if stat.S_ISLNK(mode):
            if os.path.isfile(path):
                return Path(path) if _is_inside(root, os.path.realpath(path)) else False
        elif stat.S_ISREG(mode):
            parent = os.path.dirname(path)
            if parent not in folders:
                folders[parent] = _is_inside(root, os.path.realpath(parent))
            return Path(path) if folders[parent] else False
    return None


def _is_inside(root: str, real_path: str) -> bool:
    return real_path == root or real_path.startswith(os.path.join(root, ""))


def some(words: Sequence[str]) -> str:
    """The first ten, and how many more there are."""
    more = f" and {len(words) - _NAMED_FILES} more" if len(words) > _NAMED_FILES else ""
    return ", ".join(words[:_NAMED_FILES]) + more
