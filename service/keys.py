"""API keys: made once, shown once, kept as SHA-256.

A key is 256 random bits, so a plain hash needs no salt and no stretching.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from model.errors import SettingsError
from monitoring.settings import THIS_MACHINE

Scope = Literal["predict", "feedback", "metrics"]
SCOPES: tuple[str, ...] = get_args(Scope)

_SHA256 = re.compile("[0-9a-f]{64}")
_LIMIT_NAME = 128  # characters; the state database has that much room for a client's name


@dataclass(frozen=True)
class ApiKey:
    """A key as the file holds it."""

    name: str
    scopes: frozenset[str]
    sha256: str


class KeyRing:
    """The keys in force."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, in time that does not depend on which it is."""
        digest = _digest(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def read_keys(path: Path) -> KeyRing:
    """Read the keys file. Raises `SettingsError` when it is missing or not of its form."""
    return KeyRing(_read(path))


def add_key(path: Path, name: str, scopes: Iterable[str]) -> str:
    """Add a key to the file, made with mode 0600 where there is none; return the key itself.

    Raises `SettingsError` for a name that is taken and for unknown scopes.
    """
    wanted = frozenset(scopes)
    unknown = wanted - set(SCOPES)
    if unknown or not wanted:
        raise SettingsError(
            f"unknown scopes {sorted(unknown)}; valid are one or more of: {', '.join(SCOPES)}"
        )
    _check_name(name)
    secret = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_with(path):
        keys = _read(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise SettingsError(f"there is a key named {name!r} in {path}; give another name")
        _write(path, [*keys, ApiKey(name, wanted, _digest(secret))])
    return secret


def _check_name(name: str) -> None:
    """A key of the name of those without one would have what that one is trusted with."""
    # PLUMBLINE_RETRAIN_TRUSTED_CLIENTS separates names by commas.
    if name != name.strip() or "," in name or not 0 < len(name) <= _LIMIT_NAME:
        raise SettingsError(
            f"{name!r} is no name of a key; valid: 1 to {_LIMIT_NAME} characters, no comma, no"
            " blank at either end"
        )
    if name == THIS_MACHINE:
        raise SettingsError(
            f"{name!r} is what whoever asks without keys on this machine is called; give another"
            " name"
        )


@contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    """Others who add a key wait. Readers need not: the file is replaced whole."""
    # A file of its own, since the keys file is replaced; it stays, since to remove it would let
    # one who waits for it and one who makes it anew both in.
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(path: Path) -> list[ApiKey]:
    try:
        rows = json.loads(path.read_text())["keys"]
        keys = [_parse(row) for row in rows]
    except OSError as error:
        raise SettingsError(
            f"the API keys file {path} cannot be read: {error};"
            " make one with: plumbline keys add --name NAME --scope predict"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is no API keys file ({error!r}); valid is what `plumbline keys add` writes"
        ) from error
    return keys


def _parse(row: dict[str, Any]) -> ApiKey:
    name, scopes, digest = row["name"], row["scopes"], row["sha256"]
    if not (isinstance(name, str) and isinstance(scopes, list) and set(scopes) <= set(SCOPES)):
        raise ValueError(f"the key {name!r} has the scopes {scopes!r}")
    if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise ValueError(f"the key {name!r} has no SHA-256")
    if name == THIS_MACHINE:
        raise ValueError(f"{name!r} names whoever asks without keys: rename that key")
    return ApiKey(name, frozenset(scopes), digest)


def _write(path: Path, keys: list[ApiKey]) -> None:
    rows = [{"name": key.name, "scopes": sorted(key.scopes), "sha256": key.sha256} for key in keys]
    # Made with mode 0600.
    descriptor, name = tempfile.mkstemp(".partial", f".{path.name}.", path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({"keys": rows}, file, indent=1)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
