"""`plumbline serve`, `up` and `keys`: the service and who may ask it."""

from __future__ import annotations

import sys

import click

from model.errors import SettingsError
from model.settings import PREFIX, read_settings
from plumbline.output import say
from service.settings import ServiceSettings


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option(
    "--workers", type=click.IntRange(1), help="Worker processes. Default: one a core, or one a GPU."
)
@click.option("--engine", type=click.Choice(["openvino", "torch"]))
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "int8"]),
    help="Default: the one that the model was measured in.",
)
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    engine: str | None,
    precision: str | None,
) -> None:
    """Serve the champion over HTTP until Ctrl-C."""
    from service.serving import serve as run_service

    settings = read_settings(ServiceSettings, workers=workers, engine=engine, precision=precision)
    if host or port:
        settings = settings.listening_on(host, port)
    run_service(settings)


@click.command()
@click.option("--data", default="fashion-mnist", show_default=True, help="As for train.")
@click.option("--name", help="Name of the model. Default: PLUMBLINE_MODEL, else fashion-mnist.")
def up(data: str, name: str | None) -> None:
    """Train where there is no champion yet, then serve and watch it: what `make up` runs."""
    from plumbline.up import bring_up

    sys.exit(bring_up(data, name))


@click.group()
def keys() -> None:
    """API keys of the service."""


@keys.command("add")
@click.option("--name", required=True, help="Whose key it is; records name the client so.")
@click.option("--scope", "scopes", multiple=True, required=True, help="predict, feedback, metrics.")
def add_key(name: str, scopes: tuple[str, ...]) -> None:
    """Make a key and show it once; the file keeps its hash alone."""
    from service.keys import add_key as make_key

    settings = read_settings(ServiceSettings)
    path = settings.api_keys_file or settings.home / "api-keys.json"
    try:
        key = make_key(path, name, scopes)
    except OSError as error:
        raise SettingsError(
            f"the API keys file {path} cannot be written: {error.strerror or error};"
            f" name another with {PREFIX}API_KEYS_FILE"
        ) from error
    click.echo(key)
    say(f"kept in {path}; in force with {PREFIX}API_KEYS_FILE={path} after a restart")
