"""The list of suspects: a CSV that `plumbline clean` writes, a person edits, and `train` applies.

fastai book, chapter 2: a model finds the labels that are worth a second look, and a person looks.
The list is never trusted. It names rows of the data by the names that they have there, and a line
that does not fit the data is refused with its number; no path in it is ever opened.

A spreadsheet runs a cell that begins with = + - or @ as a formula, and a file or a class may be
named so: such cells are written behind an apostrophe, and read back without it (OWASP, "CSV
Injection").
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.decision import Task
from model.errors import DataError
from training.splits import Labels
from training.tables import some

COLUMNS = ("file", "label", "suggested", "reason", "score", "action")
KEEP, DELETE, NONE = "keep", "delete", "none"
LABEL = "label:"  # before a class that is named as one of the words above

_NEEDED = ("file", "label", "action")
_RUN_AS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_ESCAPE = "'"
_PART = "|"  # between the labels of a set
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Suspect:
    """One row of the data that a person should look at; `score` is lower the likelier it is wrong.

    `suggested` is a label or a set of labels, or DELETE for a copy.
    """

    file: str
    label: Labels
    suggested: Labels | str
    reason: str
    score: float | None = None


@dataclass(frozen=True)
class Edit:
    """One line of a list, as it stands there; `line` counts from 1, with the header."""

    line: int
    file: str
    label: str
    action: str


@dataclass(frozen=True)
class Cleaned:
    """What a list does to rows of the data: those to delete, and new labels of others."""

    deleted: tuple[int, ...]
    relabelled: Mapping[int, Labels]
    kept: int  # lines that say so
    open: int  # lines without an action


# --- writing -------------------------------------------------------------------------------


def write_suspects(path: Path, suspects: Iterable[Suspect], task: Task) -> int:
    """Write the list, whole or not at all; gives the number of its rows. Raises OSError.

    In UTF-8 with a byte order mark, without which spreadsheets take it for another encoding.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with draft.open("w", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(COLUMNS)
            for suspect in suspects:
                lines.writerow([escape(cell) for cell in _cells(suspect, task)])
                count += 1
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return count


def _cells(suspect: Suspect, task: Task) -> list[str]:
    suggested = suspect.suggested
    return [
        suspect.file,
        labels_to_cell(suspect.label, task),
        suggested if isinstance(suggested, str) else _as_action(suggested, task),
        suspect.reason,
        "" if suspect.score is None else f"{suspect.score:.4f}",
        "",
    ]


def escape(cell: str) -> str:
    """A cell that no spreadsheet runs.

    >>> escape("=1+1.png"), escape("cat.png"), unescape(escape("'quoted'"))
    ("'=1+1.png", 'cat.png', "'quoted'")
    """
    return _ESCAPE + cell if cell.startswith((*_RUN_AS_FORMULA, _ESCAPE)) else cell


def unescape(cell: str) -> str:
    """What `escape` was given."""
    return cell.removeprefix(_ESCAPE)


def labels_to_cell(labels: Labels, task: Task) -> str:
    """One label as it is, none as nothing; a set sorted, parted by | and quoted where it has one.

    >>> labels_to_cell(("sea", "salt | pepper"), "multi")
    '"salt | pepper"|sea'
    """
    if task == "single":
        return labels[0] if labels else ""
    text = io.StringIO()
    csv.writer(text, delimiter=_PART, lineterminator="").writerow(sorted(labels))
    return text.getvalue() if labels else ""


def _as_action(labels: Labels, task: Task) -> str:
    """How a person would write it as an action."""
    if not labels:
        return NONE
    cell = labels_to_cell(labels, task)
    is_word = cell in (KEEP, DELETE, NONE) or cell.startswith(LABEL)
    return LABEL + cell if is_word else cell


# --- reading -------------------------------------------------------------------------------


def read_edits(path: Path) -> list[Edit]:
    """The lines of a list that `plumbline clean` wrote and a person edited.

    Commas, semicolons and tabs part cells, as spreadsheets write them. Raises `DataError`.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(
                f"--clean {path}: it has over {_MOST_BYTES >> 20} MiB, so it is no list"
                " that plumbline clean wrote"
            )
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter=_delimiter(file))
            rows = [(lines.line_num, row) for row in lines if any(row)]
    except OSError as error:
        raise DataError(f"--clean {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise DataError(f"--clean {path} is no CSV: {error}") from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise DataError(
            f"--clean {path} has no column {' and '.join(missing)}; its first line must name"
            f" {', '.join(COLUMNS)}, as plumbline clean writes it"
        )
    places = [header.index(name) for name in _NEEDED]
    edits = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"--clean {path}, line {line}: {len(row)} values for {len(header)} columns; quote"
                " values that contain a comma"
            )
        edits.append(Edit(line, *(row[place] for place in places)))
    return edits


def _delimiter(file: io.TextIOBase) -> str:
    """Of the header, whose names hold none of them."""
    header = file.readline()
    file.seek(0)
    return max(",;\t", key=header.count)


def resolve(
    path: Path,
    edits: Sequence[Edit],
    *,
    names: Sequence[str],
    labels: Sequence[Labels],
    classes: Sequence[str],
    task: Task,
) -> Cleaned:
    """What the lines do to the rows of these data.

    Raises `DataError`, with the number of the line, for a file or class that the data have not, a
    label that the file has not, an action that is none, and lines that contradict each other.
    """
    rows = _Rows(names, labels, task)
    reading = _Actions(classes, task)
    decided: dict[int, tuple[str | Labels, int]] = {}
    counts: Counter[str] = Counter()
    for edit in edits:
        where = f"--clean {path}, line {edit.line}"
        found = rows.of(edit, where)
        action = reading.of(edit.action, where)
        counts[action if isinstance(action, str) else LABEL] += 1
        if action == "":
            continue
        for row in found:
            before = decided.setdefault(row, (action, edit.line))
            if before[0] != action:
                raise DataError(
                    f"{where}: {edit.file!r} has another action in line {before[1]}; leave one"
                )
    return Cleaned(
        deleted=tuple(sorted(row for row, (action, _) in decided.items() if action == DELETE)),
        relabelled={
            row: action
            for row, (action, _) in decided.items()
            if not isinstance(action, str) and set(action) != set(labels[row])
        },
        kept=counts[KEEP],
        open=counts[""],
    )


class _Rows:
    """Rows by what a line calls them."""

    def __init__(self, names: Sequence[str], labels: Sequence[Labels], task: Task) -> None:
        self.task = task
        self.labels = labels
        self.by_name: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self.by_name.setdefault(name, []).append(row)

    def of(self, edit: Edit, where: str) -> list[int]:
        """The rows of a file that have the label of the line; several where it stands so often."""
        # A spreadsheet may have taken the apostrophe off.
        rows = self.by_name.get(unescape(edit.file)) or self.by_name.get(edit.file)
        if rows is None:
            raise DataError(
                f"{where}: the data have no {edit.file!r}; use the names that plumbline clean wrote"
            )
        cells = [labels_to_cell(self.labels[row], self.task) for row in rows]
        given = edit.label
        chosen = [row for row, cell in zip(rows, cells, strict=True) if cell == unescape(given)]
        chosen = chosen or [row for row, cell in zip(rows, cells, strict=True) if cell == given]
        if not chosen:
            raise DataError(
                f"{where}: {edit.file!r} is labelled {' or '.join(map(repr, cells))} in the data,"
                f" not {given!r}; this list is of other data, or the label was changed since: make"
                " a new one with plumbline clean"
            )
        return chosen


class _Actions:
    """Reads what a person wrote into the last column."""

    def __init__(self, classes: Sequence[str], task: Task) -> None:
        self.classes = {name: place for place, name in enumerate(classes)}
        self.task = task

    def of(self, cell: str, where: str) -> str | Labels:
        """ "", KEEP, DELETE, or the new labels, in the order of the classes."""
        word = cell.strip()
        if word in ("", KEEP, DELETE):
            return word
        if word == NONE:
            return ()
        # What was copied from the list is behind an apostrophe where it has to be, and then exact.
        for given in (unescape(cell), cell, unescape(word), word):
            for text in (given.removeprefix(LABEL), given):
                names = self._parted(text)
                unknown = [name for name in names if name not in self.classes]
                if names and not unknown:
                    return tuple(sorted(dict.fromkeys(names), key=lambda name: self.classes[name]))
        raise DataError(
            f"{where}: the action {cell!r} is neither {KEEP} nor {DELETE} nor {NONE} nor a class of"
            f" the data ({some(unknown)} is none); valid classes are {some(list(self.classes))}"
        )

    def _parted(self, text: str) -> list[str]:
        if self.task == "single":
            return [text]
        parts = next(csv.reader([text], delimiter=_PART, skipinitialspace=True), [])
        return [part.strip() for part in parts if part.strip()]


def note_of(path: Path, cleaned: Cleaned) -> str:
    """What was done, for the report."""
    done = (
        f"{path.name}, a list that a person edited: {len(cleaned.deleted)} rows were deleted,"
        f" {len(cleaned.relabelled)} labelled anew"
    )
    said = f"; {cleaned.kept} were looked at and kept" if cleaned.kept else ""
    undecided = f"; {cleaned.open} were left undecided" if cleaned.open else ""
    return f"{done}{said}{undecided}."
