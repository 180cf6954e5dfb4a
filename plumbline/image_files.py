"""The image files that a path means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from model.errors import SettingsError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file as it was when it was found; `modified` in microseconds since 1970."""

    path: Path
    bytes: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises OSError."""
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns // 1_000)

    @property
    def name(self) -> str:
        """The path as text, also where a name is no UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")


def find_images(path: Path) -> list[ImageFile]:
    """A file itself, or every JPEG, PNG and WebP below a folder, sorted."""
    if path.is_file():
        return [ImageFile.of(path)]
    found: list[ImageFile] = []
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            with suppress(FileNotFoundError):  # it went away just now
                found.append(ImageFile.of(file))
    if not found:
        raise SettingsError(f"{path} holds no {', '.join(SUFFIXES)} file")
    return found


def in_requests(
    files: Sequence[ImageFile], *, most_images: int, most_bytes: int
) -> Iterator[list[ImageFile]]:
    """In order, so many files and bytes at most together; a larger file goes alone."""
    together: list[ImageFile] = []
    room = most_bytes
    for file in files:
        if together and (len(together) == most_images or file.bytes > room):
            yield together
            together, room = [], most_bytes
        together.append(file)
        room -= file.bytes
    if together:
        yield together
