"""The Parquet file of many predictions, one row per image file, sorted by file.

While the work goes on, answers are kept in a journal beside it, `FILE.parquet.partial`. The Parquet
file itself appears whole at the end, or stays as it was. A later run over the same folder adds what
is new: the answers of a finished file count like those of the journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet

from model.bundle import flush_to_disk
from model.errors import SettingsError
from plumbline.image_files import ImageFile
from plumbline.journal import Journal
from plumbline.predict import IMAGE_CODES, Question, Row

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("id", pa.string()),  # for feedback; none of what was judged without a service
        ("labels", pa.list_(pa.string())),
        ("best_probability", pa.float32()),
        ("probabilities", pa.map_(pa.string(), pa.float32())),
        ("set", pa.list_(pa.string())),  # where a coverage was asked for
        ("flagged", pa.bool_()),
        ("p_value", pa.float32()),
        ("score", pa.float32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
    ]
)
_INDEX = ["file", "bytes", "modified", "error_code", "model_name", "model_version"]
_HOW = b"plumbline_predictions"  # key of the schema's metadata: how the answers came about
_FORMAT = 1  # raise it when the columns change
_ROW_GROUP = 8_192  # rows


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the row of a file is, and what the file was then."""

    piece: int
    row: int
    bytes: int
    modified: int
    error_code: str | None


class PredictionsFile:
    """Answers by file, kept as they come and written as one Parquet file by `finish`.

    Only answers to the same question are put together; `mixed` lets the model differ.
    """

    def __init__(
        self,
        out: Path,
        folder: Path,
        question: Question,
        journal: Journal,
        *,
        adds: bool,
        mixed: bool,
    ) -> None:
        """`adds`: to what a finished file holds, where none is begun already."""
        self.out = out
        self._question = question
        self._mixed = mixed
        self._journal = journal
        self._how: dict[str, Any] = {
            "format": _FORMAT,
            "path": str(folder),
            "coverage": question.coverage,
            "tta": question.augment,
            "alpha": question.alpha,
            "adds": adds,
        }
        self._pieces: list[Callable[[], pa.Table]] = []
        self._places: dict[str, _Place] = {}

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, folder: Path, question: Question, *, anew: bool = False, mixed: bool = False
    ) -> Iterator[Self]:
        """For the images of `folder`; no other process has the same file open meanwhile.

        `anew` forgets what is there; a finished file stays in its place until the new one is done.
        Raises `SettingsError` where what is there is something else, or came about otherwise.
        """
        with Journal(journal_of(out)) as journal:
            finished = _finished(out)
            if anew:
                journal.clear()
            its = cls(out, folder, question, journal, adds=not anew, mixed=mixed)
            its._read_journal()
            if finished is not None and its._how["adds"]:
                its._read_finished(finished)
            yield its

    def __len__(self) -> int:
        return len(self._places)

    @property
    def errors(self) -> int:
        """Files that have an error in place of an answer."""
        return sum(place.error_code is not None for place in self._places.values())

    @property
    def where(self) -> Path:
        """The file that holds the answers at the moment."""
        return self._journal.path if self._journal.offsets else self.out

    def lacks(self, file: ImageFile) -> bool:
        """Whether a file has to be judged.

        So has one that was changed since, and one whose error was not the image's fault.
        """
        place = self._places.get(file.name)
        return (
            place is None
            or (place.bytes, place.modified) != (file.bytes, file.modified)
            or place.error_code not in (None, *IMAGE_CODES)
        )

    def keep(self, files: Sequence[ImageFile], rows: Sequence[Row]) -> None:
        """Take the answers of some files. Raises `SettingsError` for those of another model."""
        table = _to_table(files, rows).replace_schema_metadata({_HOW: json.dumps(self._how)})
        self._check_models(table)
        offset = self._journal.add(table)
        self._add_piece(partial(self._journal.read, offset), table)

    def finish(self) -> None:
        """Write the Parquet file, in one step, and forget the journal."""
        if not self._journal.offsets:
            return  # nothing is new
        whole = self.out.with_name(f".{self.out.name}.whole")
        try:
            self._write(whole)
            whole.replace(self.out)
        finally:
            whole.unlink(missing_ok=True)
        flush_to_disk([self.out.parent])
        self._journal.clear()

    def _read_journal(self) -> None:
        for offset in self._journal.offsets:
            table = self._journal.read(offset)
            how = _how(table.schema)
            self._how["adds"] = how.get("adds")
            self._check_how(how)
            self._check_models(table)
            self._add_piece(partial(self._journal.read, offset), table)

    def _read_finished(self, finished: pyarrow.parquet.ParquetFile) -> None:
        self._check_how(_how(finished.schema_arrow))
        # Before those of the journal, which may hold newer answers for the same files.
        newer, self._places = self._places, {}
        for group in range(finished.num_row_groups):
            table = finished.read_row_group(group, columns=_INDEX)
            self._check_models(table)
            self._add_piece(partial(finished.read_row_group, group), table)
        self._places |= newer

    def _add_piece(self, read: Callable[[], pa.Table], table: pa.Table) -> None:
        piece = len(self._pieces)
        self._pieces.append(read)
        columns = (table[name].to_pylist() for name in ("file", "bytes", "error_code"))
        modified = table["modified"].cast(pa.int64()).to_pylist()
        for row, (name, size, code) in enumerate(zip(*columns, strict=True)):
            self._places[name] = _Place(piece, row, size, modified[row], code)

    def _check_how(self, how: dict[str, Any]) -> None:
        """Whether answers that are there came about as those to come will."""
        for name, now in self._how.items():
            if name == "adds" or (name == "alpha" and self._mixed):
                continue
            if (before := how.get(name)) != now:
                raise SettingsError(
                    f"the answers in {self.where} came about with {name} {before}, and now it is"
                    f" {now}: choose another --out, or forget those answers with --anew"
                )

    def _check_models(self, table: pa.Table) -> None:
        if self._mixed:
            return
        names, versions = (table[name].to_pylist() for name in ("model_name", "model_version"))
        mine = (self._question.name, self._question.version)
        for model in set(zip(names, versions, strict=True)) - {mine}:
            raise SettingsError(
                f"some answers in {self.where} are by {':'.join(model)} and others by"
                f" {':'.join(mine)}: keep both with --mixed (each row names its model), forget"
                " what is there with --anew, or choose another --out"
            )

    def _write(self, path: Path) -> None:
        names = sorted(self._places)
        schema = SCHEMA.with_metadata({_HOW: json.dumps(self._how)})
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for start in range(0, len(names), _ROW_GROUP):
                writer.write_table(self._rows(names[start : start + _ROW_GROUP]))
        flush_to_disk([path])

    def _rows(self, names: Sequence[str]) -> pa.Table:
        """The rows of some files, in that order; holds the pieces in memory that have them."""
        places = [self._places[name] for name in names]
        tables: list[pa.Table] = []
        starts: dict[int, int] = {}
        rows = 0
        for piece in sorted({place.piece for place in places}):
            tables.append(self._pieces[piece]().replace_schema_metadata())
            starts[piece] = rows
            rows += len(tables[-1])
        return pa.concat_tables(tables).take([starts[its.piece] + its.row for its in places])


def journal_of(out: Path) -> Path:
    """Where answers are until the file is finished."""
    return out.with_name(f"{out.name}.partial")


def _finished(out: Path) -> pyarrow.parquet.ParquetFile | None:
    if not out.exists():
        return None
    try:
        found = pyarrow.parquet.ParquetFile(out)
    except pa.ArrowInvalid as error:
        raise SettingsError(
            f"{out} is there and is no Parquet file; choose another --out"
        ) from error
    if not _how(found.schema_arrow):
        raise SettingsError(f"{out} is there and holds other things; choose another --out")
    return found


def _how(schema: pa.Schema) -> dict[str, Any]:
    """How answers came about; empty for a table that holds none."""
    found = (schema.metadata or {}).get(_HOW)
    how: dict[str, Any] = json.loads(found) if found else {}
    return how


def _to_table(files: Sequence[ImageFile], rows: Sequence[Row]) -> pa.Table:
    columns = [_columns(file, row) for file, row in zip(files, rows, strict=True)]
    return pa.Table.from_pylist(columns, schema=SCHEMA)


def _columns(file: ImageFile, row: Row) -> dict[str, Any]:
    foreign, error = row["out_of_domain"] or {}, row["error"] or {}
    probabilities = row["probabilities"]
    return {
        "file": file.name,
        "bytes": file.bytes,
        "modified": file.modified,
        "id": row.get("id"),
        "labels": row["labels"],
        "best_probability": max(probabilities.values(), default=None),
        "probabilities": list(probabilities.items()),
        "set": row.get("set"),
        "flagged": foreign.get("flagged"),
        "p_value": foreign.get("p_value"),
        "score": foreign.get("score"),
        "error_code": error.get("code"),
        "error_message": error.get("message"),
        "model_name": row["model"]["name"],
        "model_version": row["model"]["version"],
    }
