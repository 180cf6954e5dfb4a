"""Class folders, CSV or Parquet, and idx files -> one table of items in four splits.

Opening a source reads and fingerprints every file and checks its header; decoding is left to
`training.loading`. Whatever is wrong is told in one `DataError`, before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.decision import Task
from model.errors import DataError, ImageError, SettingsError
from model.formats import read_header
from model.images import InputSpec, check, decode, fit_to, prepare
from training.idx import IdxFiles, find_idx_files, read_idx_files
from training.splits import SPLIT_WORDS, Labels, Split, deal_more, deal_splits
from training.tables import SEPARATOR, Columns, TableRows, read_table_file, some

Pixels = NDArray[np.uint8]
Fault = tuple[str, str]  # name of a file, what is wrong with it

FASHION_MNIST = "fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_SIZED_FILES = 20  # of which the largest side is taken
MORE_SHARE = 0.2  # of the fit rows, that added images come up to
MORE_REPEATS = 20  # by being repeated so often at most
_WHOLE_PIXELS = 2**31  # a least side at which no JPEG is decoded smaller than it is
_TABLE_SUFFIXES = frozenset({".csv", ".parquet"})


class Reader(Protocol):
    """Gives the pixels of a row; safe to call from several threads."""

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Network input, uint8 size x size x 3, cropped at `place` (of `model.images.fit_to`).

        Raises `ImageError` or OSError.
        """

    def largest_side(self) -> int:
        """Longest side in pixels, of a few rows."""

    def stored(self, row: int) -> bytes | Pixels:
        """The row as it lies there: an encoded file, or pixels H x W. Raises OSError."""


@dataclass(frozen=True)
class FileReader:
    """Rows are image files."""

    paths: list[Path]

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Decode and resize by the path that serving takes."""
        return prepare(self.paths[row].read_bytes(), spec, place=place)

    def largest_side(self) -> int:
        """By the headers of the first files."""
        headers = [read_header(path.read_bytes()) for path in self.paths[:_SIZED_FILES]]
        return max(max(header.width, header.height) for header in headers)

    def stored(self, row: int) -> bytes:
        """The file's bytes."""
        return self.paths[row].read_bytes()


@dataclass(frozen=True)
class ArrayReader:
    """Rows are images already decoded, uint8 N x H x W."""

    pixels: Pixels

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """Resize alone."""
        return fit_to(self.pixels[row], spec, place)

    def largest_side(self) -> int:
        """All are of one size."""
        return int(max(self.pixels.shape[1:3]))

    def stored(self, row: int) -> Pixels:
        """The pixels."""
        its: Pixels = self.pixels[row]
        return its


@dataclass(frozen=True)
class JoinedReader:
    """The rows of one reader, then chosen rows of another, perhaps several times."""

    first: Reader
    count: int  # rows of the first
    second: Reader
    chosen: list[int]

    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        """As the reader does that the row belongs to."""
        if row < self.count:
            return self.first.prepare(row, spec, place)
        return self.second.prepare(self.chosen[row - self.count], spec, place)

    def largest_side(self) -> int:
        """Of the first: what is added does not change the architecture."""
        return self.first.largest_side()

    def stored(self, row: int) -> bytes | Pixels:
        """As the reader has it that the row belongs to."""
        if row < self.count:
            return self.first.stored(row)
        return self.second.stored(self.chosen[row - self.count])


@dataclass(frozen=True)
class Source:
    """The table of items, as columns of equal length.

    `names` say where a row comes from, relative to the data; `labels` are empty for "none of
    the classes"; `fingerprint` changes with contents, labels and splits. `notes` are sentences
    for the report and grow when loading has to skip files.
    """

    name: str
    classes: list[str]
    task: Task
    names: list[str]
    labels: list[Labels]
    splits: list[Split]
    reader: Reader
    fingerprint: str
    base_fingerprint: str  # without the rows that `more` added
    notes: list[str] = field(default_factory=list)
    skip_bad: bool = False
    for_training: bool = True
    left_out: list[Fault] = field(default_factory=list)  # files that cannot be used

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, split: Split) -> list[int]:
        """Rows of one split, ascending."""
        return [row for row, its in enumerate(self.splits) if its is split]


@dataclass(frozen=True)
class _Table:
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


def open_source(
    data: str | Path,
    *,
    task: Task | None = None,
    delimiter: str = " ",
    seed: int = 0,
    skip_bad: bool = False,
    home: Path | None = None,
    for_training: bool = True,
    more: Path | None = None,
    pattern: str | None = None,
    columns: Columns | None = None,
) -> Source:
    """Open class folders, a CSV or Parquet file, a folder of idx files, or `fashion-mnist`.

    `task` None decides for "multi" when any row has several labels; `delimiter` parts the
    labels of a CSV; `seed` deals rows to splits; `skip_bad` leaves unreadable files out, with
    a note, where otherwise they are an error. `home` is where Fashion-MNIST may be downloaded to
    ($PLUMBLINE_HOME, else ./var). Data that are not `for_training` need not show every class.
    `more` is a CSV or Parquet file of labelled images to add, for example from production: they
    are dealt to fit, validation and calibration, and leave the test rows as they were.
    `pattern` finds the label in the names of a folder's files, `columns` name those of a table.
    Raises `DataError`, or `SettingsError` for a pattern.
    """
    if str(data) == FASHION_MNIST:
        table = _idx_table(fashion_mnist_folder(home))
    else:
        table = _read_table(Path(data), delimiter, skip_bad, pattern, columns)
    labels, decided, notes = _part_labels(table, task)
    classes = table.classes or sorted({label for row in labels for label in row})
    splits, split_notes = deal_splits(labels, table.named_splits, seed)
    fingerprint = _fingerprint(table, labels, splits)
    source = Source(
        name=table.name,
        classes=classes,
        task=decided,
        names=table.names,
        labels=labels,
        splits=splits,
        reader=table.reader,
        fingerprint=fingerprint,
        base_fingerprint=fingerprint,
        notes=[*table.notes, *notes, *_look_alikes(classes), *split_notes],
        skip_bad=skip_bad,
        for_training=for_training,
        left_out=table.left_out,
    )
    if more is not None:
        source = _with_more(source, more, delimiter, seed)
    require_every_class(source, range(len(source)))
    return source


def _with_more(source: Source, path: Path, delimiter: str, seed: int) -> Source:
    """Add labelled images to fit, validation and calibration.

    In fit they are repeated until they make up MORE_SHARE of it, or MORE_REPEATS times: what is
    new in production is little beside the training data, and would hardly be learned.
    """
    table = _read_table(path, delimiter, source.skip_bad)
    labels, _, _ = _part_labels(table, source.task)
    unknown = sorted({label for row in labels for label in row} - set(source.classes))
    if unknown:
        raise DataError(
            f"{path} has classes that {source.name} has not: {some(unknown)}; it has"
            f" {some(source.classes)}"
        )
    new_rows, left_out = _new_rows(source, table, labels)
    if not new_rows:
        raise DataError(f"{path} adds nothing to {source.name}: {' '.join(left_out) or 'no rows'}")
    labels = [labels[row] for row in new_rows]
    dealt = deal_more(labels, seed)
    fit_rows = source.splits.count(Split.FIT)
    new = max(1, dealt.count(Split.FIT))
    repeats = min(MORE_REPEATS, max(1, round(MORE_SHARE / (1 - MORE_SHARE) * fit_rows / new)))
    chosen = [
        place
        for place, split in enumerate(dealt)
        for _ in range(repeats if split is Split.FIT else 1)
    ]
    note = (
        f"{len(labels)} labelled images of {path.name} were added to fit ({repeats} times each),"
        " validation and calibration."
    )
    added = replace(
        table,
        names=[table.names[row] for row in new_rows],
        content=[table.content[row] for row in new_rows],
    )
    return replace(
        source,
        names=source.names + [f"{path.stem}/{added.names[place]}" for place in chosen],
        labels=source.labels + [labels[place] for place in chosen],
        splits=source.splits + [dealt[place] for place in chosen],
        reader=JoinedReader(
            source.reader, len(source), table.reader, [new_rows[place] for place in chosen]
        ),
        fingerprint=hashlib.sha256(
            (source.fingerprint + _fingerprint(added, labels, dealt)).encode()
        ).hexdigest(),
        notes=[*source.notes, *table.notes, *left_out, note],
    )


def _new_rows(
    source: Source, table: _Table, labels: Sequence[Labels]
) -> tuple[list[int], list[str]]:
    """Rows of `table` that may be added, each content once, and notes on the others.

    What the source keeps for choosing, calibrating or testing must not be learned because someone
    labelled it in production; nor may copies of one image be dealt to fit and to calibration.
    """
    rows_by_content: dict[bytes, list[int]] = {}
    for row, digest in enumerate(_pixel_digests(table.reader, range(len(table.names)))):
        rows_by_content.setdefault(digest, []).append(row)
    sides = {_sides(table.reader.stored(rows[0])) for rows in rows_by_content.values()}
    kept = [row for row, split in enumerate(source.splits) if split is not Split.FIT]
    held = rows_by_content.keys() & set(_pixel_digests(source.reader, kept, sides))
    contradicted = {
        digest
        for digest, rows in rows_by_content.items()
        if len({frozenset(labels[row]) for row in rows}) > 1
    } - held
    new_rows = [
        rows[0]
        for digest, rows in rows_by_content.items()
        if digest not in held and digest not in contradicted
    ]
    numbers = [sum(len(rows_by_content[its]) for its in group) for group in (held, contradicted)]
    copies = len(table.names) - sum(numbers) - len(new_rows)
    reasons = (
        (numbers[0], f"they are validation, calibration or test images of {source.name}"),
        (numbers[1], "copies of them have other labels"),
        (copies, "they are copies of others"),
    )
    notes = [
        f"{count} of {len(table.names)} labelled images of {table.name} were left out: {reason}."
        for count, reason in reasons
        if count
    ]
    return new_rows, notes


def _pixel_digests(
    reader: Reader, rows: Sequence[int], sides: Collection[tuple[int, int]] | None = None
) -> list[bytes]:
    """A digest of each row's pixels, equal for equal pixels whatever the file format.

    Rows of other than the given sides are not decoded, and have none.
    """

    def digest(row: int) -> bytes:
        stored = reader.stored(row)
        if sides is not None and _sides(stored) not in sides:
            return b""
        return _pixel_digest(stored)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(digest, rows))


def _sides(stored: bytes | Pixels) -> tuple[int, int]:
    """Shorter and longer, whatever way the image is turned."""
    if isinstance(stored, bytes):
        header = read_header(stored)
        height, width = header.height, header.width
    else:
        height, width = stored.shape[:2]
    return min(height, width), max(height, width)


def _pixel_digest(stored: bytes | Pixels) -> bytes:
    if isinstance(stored, bytes):
        try:
            pixels = decode(stored, read_header(stored), _WHOLE_PIXELS)
        except ImageError:  # loading will tell
            return hashlib.sha256(stored).digest()
    else:
        pixels = stored
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]  # grey that was stored as colour
    shape = repr(pixels.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).digest()


def _read_table(
    path: Path,
    delimiter: str,
    skip_bad: bool,
    pattern: str | None = None,
    columns: Columns | None = None,
) -> _Table:
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
        return _idx_table(path)
    return _without_bad_files(_folder_table(path), skip_bad)


# --- class folders -------------------------------------------------------------------------


def _folder_table(root: Path) -> _Table:
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
    return _Table(
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
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


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


def _csv_table(path: Path, columns: Columns, delimiter: str) -> _Table:
    rows = read_table_file(path, columns, delimiter)
    return _Table(
        name=path.stem,
        names=rows.names,
        labels=rows.labels,
        named_splits=rows.named_splits,
        reader=FileReader(rows.paths),
        content=[],
        delimiter=rows.delimiter,
        notes=_conflicts(rows),
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


# --- labels in file names ------------------------------------------------------------------


def _pattern_table(root: Path, pattern: str, skip_bad: bool) -> _Table:
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
    return _Table(
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


def _idx_table(folder: Path) -> _Table:
    files: IdxFiles = read_idx_files(folder)
    has_test = files.train_count < len(files.labels)
    return _Table(
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


def _without_bad_files(table: _Table, skip_bad: bool) -> _Table:
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


# --- labels, splits, fingerprint -----------------------------------------------------------


def _part_labels(table: _Table, task: Task | None) -> tuple[list[Labels], Task, list[str]]:
    """Labels per row, the task, and notes; decided from the whole column, never from row 0."""
    several_columns = table.delimiter == SEPARATOR
    whole: list[Labels] = [(label,) if label else () for label in table.labels]
    if table.delimiter is None or (task == "single" and not several_columns):
        return whole, task or "single", []
    parted = [_part(label, table.delimiter) for label in table.labels]
    several = sum(len(labels) > 1 for labels in parted)
    if several and task == "single":
        raise DataError(
            f"{table.name}: {several} of {len(parted)} rows have labels in several columns;"
            " single-label training takes at most one, --task multi takes all"
        )
    if task is None and several:
        note = f"{several} of {len(parted)} rows have several labels: the task is multi-label."
        return parted, "multi", [note]
    single = parted if several_columns else whole
    return (parted if task == "multi" else single), task or "single", []


def _look_alikes(classes: Iterable[str]) -> list[str]:
    """A note on classes that differ only in case, spaces, hyphens or how they are encoded."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        plain = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()
        groups.setdefault(plain, []).append(name)
    alike = [" and ".join(map(repr, names)) for names in groups.values() if len(names) > 1]
    if not alike:
        return []
    told = f"Classes that look alike, and are kept apart: {some(alike)}."
    return [f"{told} Rename those that are one."]


def _part(label: str, delimiter: str) -> Labels:
    """Distinct labels in their order; a repeated or empty one says nothing new."""
    words = (word.strip() for word in label.split(delimiter))
    return tuple(dict.fromkeys(word for word in words if word))


def require_every_class(source: Source, rows: Iterable[int], *, always: bool = False) -> None:
    """Raise `DataError` where rows for training do not teach and validate two classes.

    Data that are not for training pass, but where it is `always` asked.
    """
    if not (source.for_training or always):
        return
    counts = Counter((source.splits[row], label) for row in rows for label in source.labels[row])
    without_none = source.task == "single" or all(source.labels)
    if len(source.classes) < (2 if without_none else 1):
        raise DataError(
            f"{source.name} has one class only, {', '.join(source.classes) or '(none)'}; a "
            "classifier needs at least two, or rows without a label"
        )
    for split, purpose in ((Split.FIT, "train"), (Split.VALIDATION, "validate")):
        lacking = [name for name in source.classes if not counts[split, name]]
        if lacking:
            raise DataError(
                f"{source.name}: {len(lacking)} of {len(source.classes)} classes have no images "
                f"to {purpose} on: {some(lacking)}; add images to each, or leave the class out"
            )


def _fingerprint(table: _Table, labels: list[Labels], splits: list[Split]) -> str:
    digest = hashlib.sha256()
    for part in table.content:
        digest.update(part)
    for name, row, split in zip(table.names, labels, splits, strict=True):
        digest.update("\x1f".join((name, split, *row, "\x1e")).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(folder.name for folder in folders)
