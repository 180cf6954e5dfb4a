"""`plumbline serve`: check that serving can work, prepare the environment, start the workers."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from pathlib import Path
from types import FrameType

from model.errors import SettingsError
from model.listening import check_address, is_loopback
from model.logs import configure_logging
from model.settings import CONFIG_FILE_VARIABLE, PREFIX, config_file
from service.keys import read_keys
from service.settings import ServiceSettings
from service.supervisor import run_workers, usable_cores
from service.workers import plan_workers

# One core runs one worker: libraries must not start threads of their own. Large blocks are kept
# for reuse instead of being given back to the kernel after every batch.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}

log = logging.getLogger("plumbline.service")


def serve(settings: ServiceSettings) -> None:
    """Serve the champion until SIGINT, SIGTERM or SIGHUP.

    Raises `SettingsError` before anything is started: address or port not to be had, no keys
    beyond loopback. Raises `StartError` before anything is answered: no champion, or one that does
    not verify, as the workers find out.
    """
    check_keys(settings)
    check_address(settings.host, settings.port, "PLUMBLINE_SERVE_ON")
    check_records(settings.records)
    configure_logging(settings.log_format)
    plan = plan_workers(settings, cores=usable_cores())
    settings = settings.model_copy(update={"decode_threads": plan.decode_threads})
    tell_who_is_served(settings)
    log.info(
        "starting %d workers%s on http://%s; Ctrl-C stops them",
        plan.workers,
        f" on {len(plan.devices)} GPUs" if plan.devices else "",
        settings.serve_on,
    )
    # Until the supervisor listens to signals: end by an exception, which removes the folder.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    with tempfile.TemporaryDirectory(prefix="plumbline-") as own:
        # BentoML keeps files in its home; two servers must not share one.
        os.environ["BENTOML_HOME"] = own
        _export(settings)
        run_workers(
            settings.host,
            settings.port,
            workers=plan.workers,
            devices=plan.devices,
            folder=Path(own),
            stop_seconds=settings.drain_grace_seconds + settings.stop_seconds,
        )


def check_keys(settings: ServiceSettings) -> None:
    """Raise `SettingsError` for an unreadable keys file, and for none beyond loopback."""
    if settings.api_keys_file is not None:
        read_keys(settings.api_keys_file)
    elif not (is_loopback(settings.host) or settings.allow_without_keys):
        raise SettingsError(
            f"{settings.host} can be reached from other machines and there are no API keys; make"
            " one (plumbline keys add --name NAME --scope predict), or set"
            " PLUMBLINE_ALLOW_WITHOUT_KEYS=true to serve whoever asks"
        )


def tell_who_is_served(settings: ServiceSettings) -> None:
    """Log it where there are no keys to say so."""
    if settings.api_keys_file is not None:
        return
    if settings.allow_without_keys:
        log.warning(
            "no API keys: whoever reaches %s is served (PLUMBLINE_ALLOW_WITHOUT_KEYS=true)",
            settings.serve_on,
        )
    else:
        log.info("no API keys: only this machine is served")


def check_records(url: str) -> None:
    """Raise `SettingsError` when records cannot be written to a URL of this kind."""
    if "://" in url:  # a folder needs nothing
        from monitoring.record_store import RecordStore

        RecordStore(url)


def _export(settings: ServiceSettings) -> None:
    """Hand the settings in force to the workers, which read them from their environment."""
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    path = config_file()
    if path is not None:
        os.environ[CONFIG_FILE_VARIABLE] = str(path.absolute())
    for name in type(settings).model_fields:
        if name == "engine" and not settings.engine_is_given:
            continue  # the workers choose when they load a model, with torch at hand
        value = getattr(settings, name)
        if value is not None:
            absolute = value.absolute() if isinstance(value, Path) else value
            os.environ[PREFIX + name.upper()] = str(absolute)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
