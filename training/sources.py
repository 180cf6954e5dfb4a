"""Class folders, CSV or Parquet, and idx files -> one table of items in four splits.

Opening a source reads and fingerprints every file and checks its header; decoding is left to
`training.loading`. Whatever is wrong is told in one `DataError`, before anything is written.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model.decision import Task
from model.errors import DataError, ImageError
from model.formats import read_header
from model.images import decode
from training.cleaning import Cleaned, note_of, read_edits, resolve
from training.raw_tables import (
    FASHION_MNIST,
    Fault,
    RawTable,
    fashion_mnist_folder,
    idx_table,
    images_below,
    read_raw_table,
)
from training.readers import ChosenReader, JoinedReader, Pixels, Reader
from training.splits import Labels, Split, deal_more, deal_negatives, deal_splits
from training.tables import SEPARATOR, Columns, some

MORE_SHARE = 0.2  # of the fit rows, that added images come up to
MORE_REPEATS = 20  # by being repeated so often at most
_WHOLE_PIXELS = 2**31  # a least side at which no JPEG is decoded smaller than it is


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
    base_fingerprint: str  # of what lies there: before `clean`, without the rows of `more`
    notes: list[str] = field(default_factory=list)
    skip_bad: bool = False
    for_training: bool = True
    left_out: list[Fault] = field(default_factory=list)  # files that cannot be used

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, split: Split) -> list[int]:
        """Rows of one split, ascending."""
        return [row for row, its in enumerate(self.splits) if its is split]


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
    negatives: Path | None = None,
    clean: str | Path | None = None,
) -> Source:
    """Open class folders, a CSV or Parquet file, a folder of idx files, or `fashion-mnist`.

    `task` None decides for "multi" when any row has several labels; `delimiter` parts the
    labels of a CSV; `seed` deals rows to splits; `skip_bad` leaves unreadable files out, with
    a note, where otherwise they are an error. `home` is where Fashion-MNIST may be downloaded to
    ($PLUMBLINE_HOME, else ./var). Data that are not `for_training` need not show every class.
    `more` is a CSV or Parquet file of labelled images to add, for example from production: they
    are dealt to fit, validation and calibration, and leave the test rows as they were.
    `negatives` is a folder of images of none of the classes, for single-label training that may say
    so: they are dealt to fit and validation.
    `clean` is a list of `plumbline clean` whose actions are applied when rows are dealt to splits,
    which it does not change; rows of `more` are not in it.
    `pattern` finds the label in the names of a folder's files, `columns` name those of a table.
    Raises `DataError`, or `SettingsError` for a pattern.
    """
    if str(data) == FASHION_MNIST:
        table = idx_table(fashion_mnist_folder(home))
    else:
        table = read_raw_table(Path(data), delimiter, skip_bad, pattern, columns)
    labels, decided, notes = _part_labels(table, task)
    classes = table.classes or sorted({label for row in labels for label in row})
    each = table.content if len(table.content) == len(labels) else None  # idx files have one
    splits, split_notes = deal_splits(labels, table.named_splits, seed, each)
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
    if clean is not None:
        source = _cleaned(source, Path(clean))
    if more is not None:
        source = _with_more(source, more, delimiter, seed)
    if negatives is not None:
        source = _with_negatives(source, negatives, seed)
    require_every_class(source, range(len(source)))
    return source


def _cleaned(source: Source, path: Path) -> Source:
    """Delete and relabel rows as a list says; the others stay in their splits."""
    its = resolve(
        path,
        read_edits(path),
        names=source.names,
        labels=source.labels,
        classes=source.classes,
        task=source.task,
    )
    deleted = set(its.deleted)
    kept = [row for row in range(len(source)) if row not in deleted]
    if not kept:
        raise DataError(f"--clean {path} deletes all {len(source)} rows of {source.name}")
    return replace(
        source,
        names=[source.names[row] for row in kept],
        labels=[its.relabelled.get(row, source.labels[row]) for row in kept],
        splits=[source.splits[row] for row in kept],
        reader=ChosenReader(source.reader, kept),
        fingerprint=_fingerprint_after(source, its),
        notes=[*source.notes, note_of(path, its)],
    )


def _fingerprint_after(source: Source, cleaned: Cleaned) -> str:
    """By what the list does, whatever else stands in it."""
    if not cleaned.deleted and not cleaned.relabelled:
        return source.fingerprint
    digest = hashlib.sha256(source.fingerprint.encode())
    for row in cleaned.deleted:
        digest.update(f"{row}\x1e".encode())
    for row, labels in sorted(cleaned.relabelled.items()):
        digest.update("\x1f".join((str(row), *labels, "\x1e")).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _with_more(source: Source, path: Path, delimiter: str, seed: int) -> Source:
    """Add labelled images to fit, validation and calibration.

    In fit they are repeated until they make up MORE_SHARE of it, or MORE_REPEATS times: what is
    new in production is little beside the training data, and would hardly be learned.
    """
    table = read_raw_table(path, delimiter, source.skip_bad)
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


def _with_negatives(source: Source, folder: Path, seed: int) -> Source:
    """Add images without a label to fit and validation, each once.

    Calibration and test stay as they are: negatives are none of the images to be answered, and
    those of one kind say little about another.
    """
    if source.task == "multi":
        raise DataError(
            f"--negatives {folder}: it is for single-label training; a row without a label in the"
            " table says the same to a multi-label one"
        )
    table = images_below(folder, source.skip_bad)
    distinct = list(dict(zip(table.content, range(len(table.names)), strict=True)).values())
    dealt = deal_negatives(len(distinct), seed)
    names = [f"{folder.resolve().name}/{table.names[row]}" for row in distinct]
    content = hashlib.sha256(b"".join(table.content[row] for row in distinct)).hexdigest()
    return replace(
        source,
        names=source.names + names,
        labels=source.labels + [()] * len(distinct),
        splits=source.splits + dealt,
        reader=JoinedReader(source.reader, len(source), table.reader, distinct),
        fingerprint=hashlib.sha256((source.fingerprint + content).encode()).hexdigest(),
        notes=[
            *source.notes,
            *table.notes,
            f"{len(distinct)} images of none of the classes, from {folder.name}, were added to fit"
            " and validation.",
        ],
    )


def _new_rows(
    source: Source, table: RawTable, labels: Sequence[Labels]
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


def _part_labels(table: RawTable, task: Task | None) -> tuple[list[Labels], Task, list[str]]:
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


def _fingerprint(table: RawTable, labels: list[Labels], splits: list[Split]) -> str:
    digest = hashlib.sha256()
    for part in table.content:
        digest.update(part)
    for name, row, split in zip(table.names, labels, splits, strict=True):
        digest.update("\x1f".join((name, split, *row, "\x1e")).encode(errors="surrogateescape"))
    return digest.hexdigest()
