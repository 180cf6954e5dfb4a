"""Who is asking, and whether they may: API keys, or loopback names where there are none."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request

from monitoring.settings import THIS_MACHINE
from service.errors import RequestError
from service.keys import KeyRing, Scope, read_keys
from service.settings import ServiceSettings

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_SECRET_FILE = "client-hash.key"
# Headers by which proxies say that they pass on what somebody else asks.
_OF_PROXIES = re.compile(
    rb"forwarded|x-forwarded(-.+)?|via|x-real-ip|.*-client-ip|cf-.+|x-envoy-.+|x-original-.+"
)


class Clients:
    """Admits requests and names their client for feedback and records.

    The name is the key's. Without keys it is `THIS_MACHINE` for whoever asks on this machine, where
    it alone is served, and else an HMAC of the address under a secret of this installation, so that
    records hold no addresses. What a proxy on this machine passes on is of one client more.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        keys_file = settings.api_keys_file
        self._keys: KeyRing | None = None if keys_file is None else read_keys(keys_file)
        self._anyone = settings.allow_without_keys
        self._secret = _installation_secret(settings.home)

    def admit(self, request: Request, scope: Scope) -> str:
        """Return the client's name. Raises `RequestError` unauthorized or forbidden."""
        if self._keys is None:
            self._check_local(request)
            return self._name_without_key(request)
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise RequestError(
                "unauthorized",
                "send a known key as 'Authorization: Bearer KEY'",
                {"WWW-Authenticate": "Bearer"},
            )
        if scope not in key.scopes:
            raise RequestError("forbidden", f"the key {key.name!r} lacks the scope {scope!r}")
        return key.name

    def _check_local(self, request: Request) -> None:
        """Without keys, serve this machine alone, however the service was started."""
        if self._anyone:
            return
        if request.client is not None and not _is_loopback_address(request.client.host):
            raise RequestError("forbidden", "without API keys only this machine is served")
        # A page in a browser can be made to call loopback under a name of its own (DNS
        # rebinding), or post to it from its own origin; only these headers show it.
        origin = request.headers.get("origin", "http://localhost").partition("://")[2]
        for header, value in (("Host", request.headers.get("host", "")), ("Origin", origin)):
            if _name(value) not in _LOOPBACK_NAMES:
                raise RequestError(
                    "forbidden",
                    f"the {header} header names {value[:80]!r}; without API keys only loopback"
                    " names are served",
                )

    def _name_without_key(self, request: Request) -> str:
        """`THIS_MACHINE` where nobody else asks, as far as can be seen.

        A proxy on this machine passes everybody off as it, but for the headers that most of them
        add. Where whoever reaches the port is served, there may be one, and nobody is taken for it.
        Where this machine alone is served, its addresses are not so many clients: it has all of
        127.0.0.0/8.
        """
        address = "" if request.client is None else request.client.host
        if self._anyone:
            return _keyed_hash(self._secret, address)
        if request.client is None or any(map(_is_of_proxies, request.headers.raw)):
            return _keyed_hash(self._secret, "")
        return THIS_MACHINE


def _is_of_proxies(header: tuple[bytes, bytes]) -> bool:
    name, value = header
    # RFC 9110 7.6.1: what it names is taken away by the next that passes it on.
    removed = b"forwarded" in value.lower() if name == b"connection" else False
    return removed or _OF_PROXIES.fullmatch(name) is not None


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    before, _, port = host.lower().rpartition(":")
    return before if before and port.isdecimal() else host.lower()


@lru_cache(1024)
def _keyed_hash(secret: bytes, address: str) -> str:
    return hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:16]


@lru_cache(1024)
def _is_loopback_address(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _installation_secret(home: Path) -> bytes:
    """The secret of this home folder, made once; two workers that start at once agree on one."""
    path = home / _SECRET_FILE
    home.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Written whole under another name first: nobody ever reads half a secret.
        own = path.with_name(f".{_SECRET_FILE}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    return path.read_bytes()
