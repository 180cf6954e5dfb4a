"""`plumbline up`: from nothing to a served model, in one command."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click

from model.errors import DataError, SettingsError
from model.listening import check_address
from model.settings import PREFIX, read_settings
from model.store import ModelStore, Version, check_name
from monitoring.retraining_lock import stop_here
from monitoring.settings import THIS_MACHINE, MonitoringSettings
from plumbline.client import Client
from service.serving import check_keys
from service.settings import ServiceSettings

DEFAULT_NAME = "fashion-mnist"
READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS, _LONG_PAUSE_SECONDS = 1.0, 60.0  # before a monitor is started again
_WRONG_USE = 2  # the exit code of what would fail again

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


def bring_up(data: str, name: str | None) -> int:
    """Train where the model has no champion, serve it, print how to ask, and wait for Ctrl-C.

    `name` None takes the model of the settings, else `fashion-mnist`. Returns the exit code of
    the service. Whatever would keep the service from starting is found before minutes of
    training.
    """
    settings = read_settings(ServiceSettings, model=name)
    wanted = settings.model or DEFAULT_NAME
    check_name(wanted)
    check_keys(settings)
    check_address(settings.host, settings.port, "PLUMBLINE_SERVE_ON")
    check_address(*settings.monitor_address, "PLUMBLINE_MONITOR_ON")
    with _on_signals(_interrupt):
        store = ModelStore(settings)
        champion = _champion_or_train(store, data, wanted)
        source = store.load(champion).manifest.data.source
        watched = {f"{PREFIX}MODEL": wanted, **_defaults()}
        try:
            with _running("serve", watched) as service:
                _wait_until_ready(service, f"http://{settings.serve_on}")
                example = _example_image(settings.home, source)
                click.echo(_welcome(settings, champion.tag, example))
                return _wait_beside_monitor(service, watched)
        finally:
            # A monitor that stops leaves it alone; whoever stops everything means that too.
            if stop_here(store.state, wanted):
                click.echo("stopping the retraining as well; nothing was registered", err=True)


def _champion_or_train(store: ModelStore, data: str, name: str) -> Version:
    # Only a missing champion is a reason to train; an unreadable database is an error.
    if not any(version.stage == "champion" for version in store.versions(name)):
        _train_champion(data, name)
    return store.champion(name)


def _train_champion(data: str, name: str) -> None:
    click.echo(f"no champion of {name} yet: training it on {data}, once", err=True)
    # A process of its own, so that the memory of training is given back before serving.
    with _running("train", {}, "--data", data, "--name", name, "--promote") as training:
        code = training.wait()
    if code:
        raise SettingsError("training failed, see above; nothing was registered or started")


def _defaults() -> dict[str, str]:
    """What holds here unless something else is said.

    The page shows flagged images, and retraining needs labelled ones. Whoever started all of this
    is trusted with labels: who asks without keys on this machine.
    """
    said = read_settings(ServiceSettings).model_fields_set
    said |= read_settings(MonitoringSettings).model_fields_set
    wanted = {"store_images": "true", "retrain_trusted_clients": THIS_MACHINE}
    return {f"{PREFIX}{name.upper()}": its for name, its in wanted.items() if name not in said}


@contextlib.contextmanager
def _running(
    command: str, settings: dict[str, str], *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then stops
    # the child in order. A signal that comes while the child is being started is kept until
    # there is something to stop; one that comes while it is being stopped changes nothing.
    early: list[int] = []
    with _on_signals(lambda number, frame: early.append(number)):
        child = subprocess.Popen(
            [sys.executable, "-m", "plumbline", command, *options],
            env={**os.environ, **settings},
            start_new_session=True,
        )
        try:
            with _on_signals(_interrupt):
                if early:
                    raise KeyboardInterrupt
                yield child
        finally:
            _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _on_signals(handler: Handler) -> Iterator[None]:
    """Handle what asks to stop; a hangup that is ignored, as by nohup, stays so."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, its in before.items():
            signal.signal(number, its)


def _wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    with Client(url, timeout_seconds=1.0) as client:
        while not client.is_ready():
            if service.poll() is not None:
                raise SettingsError("the service stopped while starting; its log is above")
            if time.monotonic() > deadline:
                raise SettingsError(f"the service was not ready in {READY_TIMEOUT_SECONDS:g} s")
            time.sleep(0.1)


def _wait_beside_monitor(service: subprocess.Popen[bytes], settings: dict[str, str]) -> int:
    """Until the service ends, or Ctrl-C; gives its exit code. Predictions need no monitor.

    One that was killed is started anew, ever later; one that refuses to start is told.
    """
    pause = _FIRST_PAUSE_SECONDS
    try:
        while service.poll() is None:
            with _running("monitor", settings) as monitor:
                started = time.monotonic()
                _wait_for_end(service, monitor)
                if service.returncode is not None:
                    break
            if monitor.returncode == _WRONG_USE:
                _tell_monitor_ended(monitor, "start it by hand once that is mended")
                _wait_for_end(service)
                break
            if time.monotonic() - started > _LONG_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            _tell_monitor_ended(monitor, f"it is started again in {pause:g} s")
            _wait_for_end(service, limit_seconds=pause)
            pause = min(2 * pause, _LONG_PAUSE_SECONDS)
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
        return 0
    click.echo(f"the service ended with code {service.returncode}; stopping the rest", err=True)
    return service.returncode or 0


def _wait_for_end(*children: subprocess.Popen[bytes], limit_seconds: float = math.inf) -> None:
    """Until one of them has ended, or the time is over."""
    until = time.monotonic() + limit_seconds
    while all(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(0.2)


def _tell_monitor_ended(monitor: subprocess.Popen[bytes], then: str) -> None:
    click.echo(
        f"the monitor ended with code {monitor.returncode}, its log is above; the service goes on,"
        f" and {then} (plumbline monitor)",
        err=True,
    )


def _example_image(home: Path, source: str) -> Path | None:
    """A test image as a PNG file, for the line that is printed; None where data are files."""
    from plumbline.example import write_example

    try:
        return write_example(home, source)
    except DataError:  # the data went away after the training: no reason to stop the service
        return None


def _welcome(settings: ServiceSettings, tag: str, example: Path | None) -> str:
    url, image = f"http://{settings.serve_on}", example or "IMAGE.jpg"
    key = '-H "Authorization: Bearer KEY" ' if settings.api_keys_file else ""
    return f"""
{tag} is served and watched.

  ask      curl {key}--data-binary @{image} {url}/v1/predict
  model    {url}/v1/model
  watch    http://{settings.monitor_on}
  docs     {url}/docs
  metrics  {url}/metrics

Ctrl-C stops it. Logs follow."""
