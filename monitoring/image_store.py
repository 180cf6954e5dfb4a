"""Keeps images that were predicted, for the page and for retraining. Off unless switched on.

Written from a thread of its own; an image that finds the queue full is not kept. Flagged images
lie apart from the others, which go first when there is no room. One file per image, named by the
prediction's id, in `flagged/` or `others/`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("plumbline.images")

FOLDERS = ("others", "flagged")  # in the order in which they give way
SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_QUEUE_BYTES = 64 * 2**20
_TIDY_SECONDS = 10.0
_TIDY_SHARE = 0.02  # of the room, that may be written until it is tidied again


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Bytes to keep under a prediction's id."""

    prediction_id: str
    flagged: bool
    format: str
    data: bytes


class ImageStore:
    """Writes below `folder`, `limit_bytes` in all and at most 2 % more, for `keep_seconds`.

    Several workers may share one folder: each tidies it, by what lies there.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, keep_seconds: float) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._keep_seconds = keep_seconds
        self._queue: queue.SimpleQueue[StoredImage | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._counting = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="image-store", daemon=True)
        self._thread.start()

    def offer(self, image: StoredImage) -> None:
        """Take an image to be kept, or drop and count it; never waits."""
        with self._counting:
            if self._waiting_bytes + len(image.data) > _QUEUE_BYTES:
                self.dropped += 1
                return
            self._waiting_bytes += len(image.data)
        self._queue.put(image)

    def close(self) -> None:
        """Write what is waiting and stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        tidied, written_bytes = -_TIDY_SECONDS, 0
        while True:
            is_full = written_bytes > _TIDY_SHARE * self._limit_bytes
            if is_full or time.monotonic() - tidied >= _TIDY_SECONDS:
                self._tidy()
                tidied, written_bytes = time.monotonic(), 0
            try:
                image = self._queue.get(timeout=_TIDY_SECONDS)
            except queue.Empty:
                continue
            if image is None:
                self._tidy()
                return
            with self._counting:
                self._waiting_bytes -= len(image.data)
            written_bytes += self._write(image)

    def _tidy(self) -> None:
        try:
            tidy(self._folder, self._limit_bytes, self._keep_seconds)
        except OSError as error:
            log.error("stored images could not be tidied: %s", error)

    def _write(self, image: StoredImage) -> int:
        """Gives the room that it takes, in bytes."""
        folder = self._folder / FOLDERS[image.flagged]
        name = f"{image.prediction_id}{SUFFIXES[image.format]}"
        partial = folder / f".{name}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(image.data)
            # Some file systems give a file its room later.
            room = max(len(image.data), _room(partial.stat()))
            partial.replace(folder / name)
            return room
        except OSError as error:
            self.dropped += 1
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            log.error("an image was not kept: %s", error)
            return 0


def find_image(folder: Path, prediction_id: str) -> Path | None:
    """The stored image of a prediction; None for what is no id: records come from others, too."""
    try:
        name = str(uuid.UUID(prediction_id))
    except ValueError:
        return None
    for where in reversed(FOLDERS):
        for suffix in SUFFIXES.values():
            path = folder / where / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def tidy(folder: Path, limit_bytes: int, keep_seconds: float) -> None:
    """Remove what is too old, then the oldest until the rest fits, unflagged ones first."""
    now = time.time()
    kept: list[tuple[int, float, Path, int]] = []
    for rank, where in enumerate(FOLDERS):
        for path, seconds, size in _files(folder / where):
            if now - seconds > keep_seconds:
                path.unlink(missing_ok=True)
            else:
                kept.append((rank, seconds, path, size))
    surplus = sum(size for *_, size in kept) - limit_bytes
    for _, _, path, size in sorted(kept, key=lambda its: its[:2]):
        if surplus <= 0:
            return
        path.unlink(missing_ok=True)
        surplus -= size


def _files(folder: Path) -> Iterator[tuple[Path, float, int]]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another worker tidied too
            continue
        yield path, status.st_mtime, _room(status)


def _room(status: os.stat_result) -> int:
    """Bytes that a file takes up on the disk."""
    return 512 * status.st_blocks
