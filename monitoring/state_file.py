"""A JSON file that is whole or the one before, and says when it was damaged."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from model.errors import MonitorError

SCHEMA = 2


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
