"""Where record files lie: a folder, or a bucket of an object store, by its fsspec URL."""

from __future__ import annotations

import inspect
import io
import os
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.errors import SettingsError

# Here an object appears whole or not at all, and there are no folders to make. Moving one would
# copy it, and delete the first.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}
)
# A store that does not answer: seconds until a worker gives a file up, and not minutes.
_S3_PATIENCE = {"connect_timeout": 5, "read_timeout": 15, "retries": {"max_attempts": 1}}
_PREFIX_CHARACTERS = 3  # of HHMMSS: ten minutes
_MOST_PREFIXES = 6
_REMOVED_AT_ONCE = 1_000

Given = ParamSpec("Given")
Found = TypeVar("Found")


def _as_os_error(call: Callable[Given, Found]) -> Callable[Given, Found]:
    """Every file system has errors of its own; whoever asks for records knows those of files."""

    @wraps(call)
    def told(*given: Given.args, **named: Given.kwargs) -> Found:
        try:
            return call(*given, **named)
        except (OSError, ValueError):
            raise
        except Exception as error:
            url = getattr(given[0], "url", "the store")
            raise OSError(f"the records in {url} cannot be reached: {error}") from error

    return told


class RecordStore:
    """The folders and files of one records URL.

    Raises `SettingsError` for a URL of no known kind, or of one whose package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = fsspec.core.url_to_fs(url, **_patience(url))
        except ImportError as error:
            raise SettingsError(f"PLUMBLINE_RECORDS_URL={url!r}: {_remedy(url, error)}") from error
        except ValueError as error:
            raise SettingsError(
                f"PLUMBLINE_RECORDS_URL={url!r}: {error}; valid is a folder, or a URL that fsspec"
                " knows, such as s3://BUCKET/FOLDER"
            ) from error
        self.is_local = isinstance(self.files, LocalFileSystem)
        protocols = self.files.protocol
        protocols = (protocols,) if isinstance(protocols, str) else tuple(protocols)
        self._appears_whole = not _OBJECT_STORES.isdisjoint(protocols)
        self._finds_prefixes = (
            self._appears_whole and "prefix" in inspect.signature(self.files.find).parameters
        )

    @_as_os_error
    def put(self, day: str, name: str, write: Callable[[Any], None]) -> None:
        """Make a file that `write` fills; it appears whole under its name, or not at all."""
        folder = f"{self.root}/{day}"
        if self._appears_whole:
            buffer = io.BytesIO()
            write(buffer)  # before the upload: what breaks off here leaves nothing there
            self.files.pipe_file(f"{folder}/{name}", buffer.getvalue())
            return
        partial = f"{folder}/.{name.removesuffix('.parquet')}-{uuid.uuid4().hex[:4]}.partial"
        try:
            self.files.makedirs(folder, exist_ok=True)
            with self.files.open(partial, "wb") as file:
                write(file)
            self.files.mv(partial, f"{folder}/{name}")
        except Exception:
            with suppress(Exception):
                self.files.rm_file(partial)
            raise

    @_as_os_error
    def folders(self) -> list[str]:
        """Names of the folders below the root, as they are now; none where there is no root."""
        # A store that keeps listings would not show new files.
        self.files.invalidate_cache()
        try:
            found = self.files.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(_name(path) for path in found)

    @_as_os_error
    def names(self, day: str, since: str = "", until: datetime | None = None) -> list[str]:
        """Names of the files of a day.

        Where `since` (HHMMSS) and `until` are given, an object store is asked for those of the ten
        minutes between alone: a day has tens of thousands, told a thousand at a time.
        """
        folder = f"{self.root}/{day}"
        prefixes = _prefixes(since, until) if self._finds_prefixes and until is not None else []
        try:
            if prefixes:
                return [
                    _name(path)
                    for prefix in prefixes
                    for path in self.files.find(folder, prefix=prefix)
                    if path.rpartition("/")[0] == folder
                ]
            if self.is_local and os.path.isdir(folder):
                return os.listdir(folder)  # several times as fast, at every look
            return [_name(path) for path in self.files.ls(folder, detail=False)]
        except FileNotFoundError:  # removed in the meantime
            return []

    @_as_os_error
    def content(self, path: str, limit_bytes: int) -> bytes:
        """The bytes of a file. Raises ValueError for what is none, or too large."""
        size = self._size(path)
        if size > limit_bytes:
            raise ValueError(f"{size} bytes; at most {limit_bytes} are read")
        if self.is_local:
            with open(path, "rb") as file:
                return file.read()
        content: bytes = self.files.cat_file(path)
        return content

    def _size(self, path: str) -> int:
        if self.is_local:
            its = os.stat(path)
            if not stat.S_ISREG(its.st_mode):  # a pipe would be waited on for ever
                raise ValueError("it is no file")
            return its.st_size
        known = self.files.info(path)
        if known["type"] != "file":
            raise ValueError(f"it is no file but a {known['type']}")
        return int(known["size"])


def remove(files: Any, paths: list[str]) -> int:
    """Remove files, many at a time where a store can; gives how many were there to remove."""
    if _OBJECT_STORES.isdisjoint(
        (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    ):
        return sum(_remove_one(files, path) for path in paths)
    for start in range(0, len(paths), _REMOVED_AT_ONCE):
        with suppress(FileNotFoundError):
            files.rm(paths[start : start + _REMOVED_AT_ONCE])
    return len(paths)


def _remove_one(files: Any, path: str) -> int:
    try:
        files.rm_file(path)
    except FileNotFoundError:
        return 0
    return 1


def _patience(url: str) -> dict[str, Any]:
    """What is set here of S3, under what the user has set by fsspec's own means."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**_S3_PATIENCE, **given}}


def _remedy(url: str, error: ImportError) -> str:
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        return "the package s3fs is not installed; install it: pip install 'plumbline[s3]'"
    return f"its package is not installed ({error}); install it, or set a folder or an s3:// URL"


def _prefixes(since: str, until: datetime) -> list[str]:
    """Of the names (HHMMSS...) of every ten minutes from `since` to `until`; none for too many."""
    if not since[:_PREFIX_CHARACTERS].isdigit():
        return []
    first = int(since[:2]) * 6 + int(since[2])
    last = until.hour * 6 + until.minute // 10
    found = [f"{number // 6:02d}{number % 6}" for number in range(first, last + 1)]
    return found if len(found) <= _MOST_PREFIXES else []


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
