"""`plumbline models`, `promote` and `rollback`: the versions and which one is champion."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from model.errors import BundleError
from model.settings import ModelSettings, read_settings
from plumbline.output import open_store, print_json, print_table

if TYPE_CHECKING:
    from model.store import Version


@click.group()
def models() -> None:
    """List, show and verify model versions."""


@models.command("list")
@click.option("--name", help="Of one model only.")
@click.option("--json", "as_json", is_flag=True)
def list_models(name: str | None, as_json: bool) -> None:
    """List versions with their stages, newest first."""
    found = open_store().versions(name)
    if as_json:
        print_json([_version_row(version) for version in found])
        return
    if not found:
        click.echo("no versions yet; train one: plumbline train --help")
        return
    rows = [(its.tag, its.stage, f"{its.registered_at:%Y-%m-%d %H:%M}") for its in found]
    print_table(None, ("version", "stage", "registered (UTC)"), rows)


@models.command("show")
@click.argument("version")
def show_model(version: str) -> None:
    """Print the manifest of a VERSION as JSON."""
    store = open_store()
    bundle = store.load(store.find(version))
    click.echo(bundle.manifest.model_dump_json(indent=1))


@models.command("verify")
@click.argument("version")
def verify_model(version: str) -> None:
    """Check every hash of a VERSION; exit code 1 when one is wrong."""
    store = open_store()
    found = store.find(version)
    try:
        store.load(found)
    except BundleError as error:
        click.echo(f"not intact: {error}")
        sys.exit(1)
    click.echo(f"{found.tag} is intact")


def _version_row(version: Version) -> dict[str, Any]:
    return {
        "version": version.tag,
        "stage": version.stage,
        "registered_at": version.registered_at,
        "stage_since": version.stage_since,
    }


@click.command()
@click.argument("version")
def promote(version: str) -> None:
    """Make VERSION the champion; a running service follows within seconds."""
    click.echo(f"champion: {open_store().promote(version).tag}")


@click.command()
@click.option(
    "--name",
    help="Of this model. Default: PLUMBLINE_MODEL, else the only one with a champion.",
)
def rollback(name: str | None) -> None:
    """Make the champion before the present one champion again; repeated, go further back."""
    settings = read_settings(ModelSettings, model=name)
    click.echo(f"champion: {open_store(settings).rollback(settings.model).tag}")
