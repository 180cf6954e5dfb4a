"""`plumbline serve`: check that serving can work, prepare the environment, start the workers."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from pathlib import Path

import fsspec

from model.errors import SettingsError
from model.settings import CONFIG_FILE_VARIABLE, PREFIX, config_file
from model.store import ModelStore
from service.keys import read_keys
from service.settings import ServiceSettings

# One core runs one worker: libraries must not start threads of their own. Large blocks are kept
# for reuse instead of being given back to the kernel after every batch.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}
_GRACE_SECONDS = 20


def serve(settings: ServiceSettings) -> None:
    """Serve the champion until SIGINT or SIGTERM.

    Raises `SettingsError`, `StoreError` or `BundleError` before anything is started: address or
    port not to be had, no keys beyond loopback, no champion, a champion that does not verify.
    """
    check_keys(settings)
    check_address(settings.host, settings.port)
    check_records(settings.records)
    store = ModelStore(settings)
    store.load(store.champion(settings.model))
    store.state.dispose()
    with tempfile.TemporaryDirectory(prefix="plumbline-") as own:
        # BentoML keeps metric files in its home; two servers must not share one.
        os.environ["BENTOML_HOME"] = own
        _export(settings)
        _run_workers(settings)


def check_keys(settings: ServiceSettings) -> None:
    """Raise `SettingsError` for an unreadable keys file, and for none beyond loopback."""
    if settings.api_keys_file is not None:
        read_keys(settings.api_keys_file)
    elif not (_is_loopback(settings.host) or settings.allow_without_keys):
        raise SettingsError(
            f"{settings.host} can be reached from other machines and there are no API keys; make"
            " one (plumbline keys add --name NAME --scope predict), or set"
            " PLUMBLINE_ALLOW_WITHOUT_KEYS=true to serve whoever asks"
        )


def check_records(url: str) -> None:
    """Raise `SettingsError` when records cannot be written to a URL of this kind."""
    try:
        fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"PLUMBLINE_RECORDS_URL={url!r}: {error}; valid is a folder or a URL whose fsspec"
            " package is installed"
        ) from error


def check_address(host: str, port: int) -> None:
    """Raise `SettingsError` when the address cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port}: {error.strerror or error};"
                " stop what uses the port, or choose another with --port"
            ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise SettingsError(f"{host!r} is no IP address; give one, for example 127.0.0.1") from None


def _export(settings: ServiceSettings) -> None:
    """Hand the settings in force to the workers, which read them from their environment."""
    for name, value in _WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    path = config_file()
    if path is not None:
        os.environ[CONFIG_FILE_VARIABLE] = str(path.absolute())
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            absolute = value.absolute() if isinstance(value, Path) else value
            os.environ[PREFIX + name.upper()] = str(absolute)


def _run_workers(settings: ServiceSettings) -> None:
    from _bentoml_impl.server import serve_http

    from service.app import service

    service.inject_config()
    serve_http(
        service,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        bentoml_home=os.environ["BENTOML_HOME"],
    )
