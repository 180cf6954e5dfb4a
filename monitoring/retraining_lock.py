"""One retraining at a time: its row in the state database is the lock.

A row names its process, and the place from which that number means something: one boot of one
machine and, in it, one space of process numbers (every start of a container has its own). From
there the process is looked at. From elsewhere it is not seen, and lives as long as it says so: a
running retraining writes the time into its row, and one that falls silent for LEASE has ended.
Nothing hangs on the clock that a process was started by, which may be set.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, Row, select
from sqlalchemy.exc import SQLAlchemyError

from model.errors import MonitorError
from model.state import record, retrainings, write_transaction

log = logging.getLogger("plumbline.retrain")

BY_ALARM = "alarm: "  # how the reason of one begins that was started for an alarm
LEASE = timedelta(minutes=5)
_BEAT_SECONDS = 30.0
_PROC = Path("/proc")
_STATE_FIELD, _START_FIELD = 3, 22  # of /proc/PID/stat, counted from 1: proc_pid_stat(5)


def last_retraining(state: Engine, model: str, outcome: str | None = None) -> Row[Any] | None:
    """The latest row of a model name, or None; of one outcome where that is given."""
    query = select(retrainings).where(retrainings.c.model == model)
    if outcome is not None:
        query = query.where(retrainings.c.outcome == outcome)
    with state.connect() as connection:
        return connection.execute(query.order_by(retrainings.c.id.desc())).first()


def has_row(state: Engine, model: str, why: str) -> bool:
    """Whether a retraining of this model was ever started for this reason."""
    query = select(retrainings.c.id).where(retrainings.c.model == model, retrainings.c.why == why)
    with state.connect() as connection:
        return connection.execute(query.limit(1)).first() is not None


def running(state: Engine) -> list[int]:
    """The numbers of retrainings that have not ended."""
    query = select(retrainings.c.id).where(retrainings.c.outcome.is_(None))
    with state.connect() as connection:
        return list(connection.scalars(query))


def close_dead(state: Engine) -> list[int]:
    """Mark retrainings whose process is gone as failed; gives their numbers."""
    query = select(retrainings).where(retrainings.c.outcome.is_(None))
    with write_transaction(state) as connection:
        dead = [
            (row.id, fault)
            for row in connection.execute(query).all()
            if (fault := _cause_of_death(row)) is not None
        ]
        for number, fault in dead:
            _close(connection, number, "failed", {"error": fault})
    return [number for number, _ in dead]


def stop_here(state: Engine, model: str) -> list[int]:
    """Ask retrainings of this model that an alarm started on this machine to end; their numbers.

    Those that someone started by hand are left alone.
    """
    query = select(retrainings).where(
        retrainings.c.model == model,
        retrainings.c.outcome.is_(None),
        retrainings.c.why.startswith(BY_ALARM, autoescape=True),
    )
    with state.connect() as connection:
        rows = connection.execute(query).all()
    stopped = []
    for row in rows:
        place, _, start = row.process_started.rpartition(":")
        if place == _place() and _start(row.process) == start:
            os.kill(row.process, signal.SIGTERM)
            stopped.append(row.id)
    return stopped


def begin(state: Engine, model: str, why: str, asked_at: datetime) -> int:
    """Take the lock; gives the number. Raises `MonitorError` where another has it."""
    close_dead(state)
    process = os.getpid()
    with write_transaction(state) as connection:
        other = connection.execute(
            select(retrainings).where(retrainings.c.model == model, retrainings.c.outcome.is_(None))
        ).first()
        if other is not None:
            raise MonitorError(
                f"a retraining of {model} is running since {other.started_at:%Y-%m-%d %H:%M} UTC"
                f" (process {other.process} on {other.host}, last heard of at"
                f" {_last_beat(other):%H:%M:%S} UTC); wait for it, or stop it. One that is gone"
                f" bars the way for {LEASE.seconds // 60} minutes at most"
            )
        result = connection.execute(
            retrainings.insert().values(
                model=model,
                why=why,
                started_at=asked_at,
                host=socket.gethostname(),
                process=process,
                process_started=f"{_place()}:{_start(process)}",
                detail=_beat(),
            )
        )
        record(connection, "retrain", model, why)
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])


@contextmanager
def beating(state: Engine, number: int) -> Iterator[None]:
    """Say again and again that this process lives."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            try:
                with write_transaction(state) as connection:
                    connection.execute(_open_row(number).values(detail=_beat()))
            except SQLAlchemyError as error:  # the next one may get through
                log.warning("the state database does not take that this process lives: %s", error)

    thread = threading.Thread(target=beat, name="beating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def end(state: Engine, number: int, outcome: str, detail: dict[str, Any]) -> None:
    """Give the lock back, with what came of it."""
    with write_transaction(state) as connection:
        _close(connection, number, outcome, detail)


def _close(connection: Connection, number: int, outcome: str, detail: dict[str, Any]) -> None:
    connection.execute(
        _open_row(number).values(
            outcome=outcome, detail=json.dumps(detail), ended_at=datetime.now(UTC)
        )
    )


def _open_row(number: int) -> Any:
    return retrainings.update().where(retrainings.c.id == number, retrainings.c.outcome.is_(None))


def _beat() -> str:
    return json.dumps({"alive_at": datetime.now(UTC).isoformat()})


def _last_beat(row: Row[Any]) -> datetime:
    detail = json.loads(row.detail) if row.detail else {}
    if "alive_at" in detail:
        return datetime.fromisoformat(detail["alive_at"])
    started: datetime = row.started_at
    return started


def _cause_of_death(row: Row[Any]) -> str | None:
    """None while it lives, or may."""
    place, _, start = row.process_started.rpartition(":")
    if place == _place():
        return None if _start(row.process) == start else "its process was killed"
    # A beat from the future is no sign of life either: a clock was set back.
    if abs(datetime.now(UTC) - _last_beat(row)) < LEASE:
        return None
    return f"nothing was heard of its process on {row.host} for {LEASE.seconds // 60} minutes"


def _place() -> str:
    """What a process number means the same in. With a start at most 32 characters."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().replace("-", "")
        space = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:  # no Linux
        return socket.gethostname()[:12]
    return f"{boot[:8]}-{space:x}"


def _start(process: int) -> str | None:
    """When a process was started, by a count that no clock moves; None where it has ended.

    One that ended and was not waited for has ended, though it still has a number.
    """
    if not (_PROC / "self/stat").exists():
        return _start_elsewhere(process)
    try:
        stat = (_PROC / str(process) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, which is field 2, may hold spaces and brackets.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return fields[_START_FIELD - _STATE_FIELD]


def _start_elsewhere(process: int) -> str | None:
    try:
        found = psutil.Process(process)
        if found.status() == psutil.STATUS_ZOMBIE:
            return None
        return str(int(found.create_time()))
    except psutil.NoSuchProcess:
        return None
