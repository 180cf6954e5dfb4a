"""Addresses that a server of ours listens on."""

from __future__ import annotations

import ipaddress
import socket

from model.errors import SettingsError


def check_address(host: str, port: int, setting: str) -> None:
    """Raise `SettingsError` when the address cannot be listened on; `setting` names it."""
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port}: {error.strerror or error};"
                f" stop what uses the port, or choose another: --port, or {setting}=ADDRESS:PORT"
            ) from error


def family_of(host: str) -> socket.AddressFamily:
    """Of an IP address, version 4 or 6."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def is_loopback(host: str) -> bool:
    """Whether an IP address is this machine's own. Raises `SettingsError` for what is none."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise SettingsError(f"{host!r} is no IP address; give one, for example 127.0.0.1") from None
