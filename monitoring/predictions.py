"""What the model predicted for the last sampled images, on disk, until labels come for them.

Labels come hours later, in any order, and state is saved after every look: so many predictions
have no place in it. They are in an SQLite file beside it, which may be ahead of the state and never
behind: what is read again after a crash is put in once, and what was used is marked only after the
state that used it is saved.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.errors import MonitorError

KEPT = 500_000  # about 150 bytes each, on disk
_ASKED_AT_ONCE = 500  # SQLite bounds the parameters of a query

_SCHEMA = """
create table if not exists predictions (
    number integer primary key,
    id text not null unique,
    model text not null,
    seconds real not null,
    labels text
)
"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """`seconds` is Unix time; `labels` a JSON list of class names."""

    id: str
    seconds: float
    labels: str


class Predictions:
    """The newest predictions; each is used for one label at most.

    Raises `MonitorError`, in every call, where the file cannot be used.
    """

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        self._path = path
        self._kept = kept

    def add(self, model: str, predictions: Sequence[Prediction]) -> None:
        """Keep these; one whose id is known is left as it is."""
        if not predictions:
            return
        rows = ((its.id, model, its.seconds, its.labels) for its in predictions[-self._kept :])
        with self._opened() as connection:
            connection.executemany(
                "insert or ignore into predictions (id, model, seconds, labels)"
                " values (?, ?, ?, ?)",
                rows,
            )
            connection.execute(
                "delete from predictions where number <= (select max(number) from predictions) - ?",
                (self._kept,),
            )

    def unused(self, model: str, ids: Sequence[str]) -> dict[str, Prediction]:
        """Those of a version that are kept and were not used, by id."""
        found: dict[str, Prediction] = {}
        if not ids or not self._path.exists():
            return found
        with self._opened() as connection:
            for start in range(0, len(ids), _ASKED_AT_ONCE):
                some = ids[start : start + _ASKED_AT_ONCE]
                rows = connection.execute(
                    "select id, seconds, labels from predictions where model = ?"
                    f" and labels is not null and id in ({', '.join('?' * len(some))})",
                    (model, *some),
                )
                found.update({row[0]: Prediction(*row) for row in rows})
        return found

    def mark_used(self, ids: Sequence[str]) -> None:
        """No label is held against these any more."""
        if not ids:
            return
        with self._opened() as connection:
            connection.executemany(
                "update predictions set labels = null where id = ?", ((its,) for its in ids)
            )

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path)
            try:
                connection.execute("pragma journal_mode = wal")
                connection.execute("pragma synchronous = normal")
                connection.execute(_SCHEMA)
                with connection:
                    yield connection
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            raise MonitorError(
                f"{self._path}, which labels are joined with, cannot be used: {error}; move it away"
                " to begin anew without the predictions so far, whose labels then count no more:"
                f" mv {self._path} {self._path}.damaged"
            ) from error
