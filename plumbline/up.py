"""`plumbline up`: from nothing to a served model, in one command."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from model.errors import SettingsError, StoreError
from model.settings import read_settings
from model.store import ModelStore
from plumbline.client import Client
from service.serving import check_address, check_keys
from service.settings import ServiceSettings

READY_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0


def bring_up(data: str, name: str) -> int:
    """Train where there is no champion, serve, print how to ask, and wait for Ctrl-C.

    Returns the exit code of the service. Whatever would keep the service from starting is found
    before minutes of training.
    """
    settings = read_settings(ServiceSettings)
    check_keys(settings)
    check_address(settings.host, settings.port)
    store = ModelStore(settings)
    try:
        champion = store.champion(settings.model)
    except StoreError:
        _train_champion(data, name)
        champion = store.champion(settings.model)
    store.load(champion)
    with _running_service() as service:
        url = f"http://{settings.serve_on}"
        _wait_until_ready(service, url)
        click.echo(_welcome(url, champion.tag, _example_image(settings.home, data)))
        return _wait(service)


def _train_champion(data: str, name: str) -> None:
    click.echo(f"no champion yet: training {name} on {data}, once", err=True)
    # A process of its own, so that the memory of training is given back before serving.
    done = subprocess.run(
        [sys.executable, "-m", "plumbline", "train", "--data", data, "--name", name, "--promote"],
        check=False,
    )
    if done.returncode:
        raise SettingsError("training failed, see above; nothing was registered or started")


@contextlib.contextmanager
def _running_service() -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then stops
    # the service in order.
    service = subprocess.Popen([sys.executable, "-m", "plumbline", "serve"], start_new_session=True)
    try:
        yield service
    finally:
        if service.poll() is None:
            service.terminate()
        try:
            service.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            service.kill()


def _wait_until_ready(service: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    with Client(url, timeout_seconds=1.0) as client:
        while not client.is_ready():
            if service.poll() is not None:
                raise SettingsError("the service stopped while starting; its log is above")
            if time.monotonic() > deadline:
                raise SettingsError(f"the service was not ready in {READY_TIMEOUT_SECONDS:g} s")
            time.sleep(0.1)


def _wait(service: subprocess.Popen[bytes]) -> int:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return service.wait()
    except KeyboardInterrupt:
        click.echo("stopping", err=True)
        return 0


def _example_image(home: Path, data: str) -> Path | None:
    """A test image as a PNG file, for the line that is printed; None where data are files."""
    from plumbline.example import write_example

    return write_example(home, data)


def _welcome(url: str, tag: str, example: Path | None) -> str:
    image = example or "IMAGE.jpg"
    return f"""
{tag} is served.

  ask      curl --data-binary @{image} {url}/v1/predict
  model    {url}/v1/model
  docs     {url}/docs
  metrics  {url}/metrics

Ctrl-C stops it. Logs follow."""
