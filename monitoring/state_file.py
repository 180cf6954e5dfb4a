"""A JSON file that is whole or the one before, says when it was damaged, and has one writer."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import MonitorError

SCHEMA = 2


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the monitor's lock in a folder; it ends with the process, however that ends.

    Raises `MonitorError` where another process holds it: two would write over each other's state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise MonitorError(
                f"another monitor (process {file.read().strip() or 'unknown'}) keeps its state in"
                f" {folder}; stop it, or give this one a home of its own with PLUMBLINE_HOME"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def save(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step; after a crash it is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(content, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(f'{{"schema":{SCHEMA},"sha256":"{digest}"}}\n{body}\n')
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """The content, or None where there is no file.

    Raises `MonitorError` for a file that is damaged or of another schema: it is never taken for
    no file, since that would silently forget the evidence.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MonitorError(f"{path} cannot be read: {error}; {_way_back(path)}") from error
    head, _, body = text.partition("\n")
    body = body.removesuffix("\n")
    try:
        header = json.loads(head)
        schema, digest = header["schema"], header["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise MonitorError(f"{path} is no state of the monitor; {_way_back(path)}") from error
    if schema != SCHEMA:
        raise MonitorError(
            f"{path} has schema {schema!r}; this Plumbline reads {SCHEMA}. Use the Plumbline that"
            f" wrote it, or: {_way_back(path)}"
        )
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        raise MonitorError(f"{path} is damaged: its SHA-256 is another; {_way_back(path)}")
    content = json.loads(body)
    assert isinstance(content, dict)
    return content


def _way_back(path: Path) -> str:
    return (
        "restore it from a backup, or move it away to begin anew without the evidence so far:"
        f" mv {path} {path}.damaged"
    )
