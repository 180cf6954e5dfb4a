"""`plumbline models`, `promote` and `rollback`: the versions and which one is champion."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from model.errors import BundleError
from model.settings import ModelSettings, read_settings
from plumbline.output import open_store, print_json, print_table

if TYPE_CHECKING:
    from model.bundle import EngineGate
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


@models.command("engines")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True)
def show_engines(version: str, as_json: bool) -> None:
    """Show what each engine of a VERSION did at its gate, and why others are refused."""
    store = open_store()
    manifest = store.load(store.find(version)).manifest
    if as_json:
        gates = {key: gate.model_dump() for key, gate in manifest.engines.items()}
        print_json({"engines": gates, "left_out": manifest.engines_left_out})
        return
    rows = [_engine_row(key, gate) for key, gate in manifest.engines.items()]
    rows += [(key, *[""] * 6, f"left out: {why}") for key, why in manifest.engines_left_out.items()]
    columns = ("engine", "same labels", "accuracy", "lost (95 %)", "ECE", "flagged", "images/s", "")
    print_table(f"{manifest.tag} on validation images, beside torch in float32", columns, rows)


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


def _engine_row(key: str, gate: EngineGate) -> tuple[str, ...]:
    lost, speed = gate.accuracy_lost, gate.images_per_second
    interval = "" if lost is None else f"{lost.low:+.2%} to {lost.high:+.2%}"
    return (
        f"{key} {gate.precision}" if "-" not in key else key,  # the former of schema 1
        f"{gate.label_agreement:.2%}",
        f"{gate.accuracy:.4f}",
        interval,
        "" if gate.ece is None else f"{gate.ece:.4f}",
        f"{gate.flagged_share:.2%}",
        "" if speed is None else f"{speed:,.0f}",
        "passed" if gate.passed else f"refused: {gate.reason}",
    )


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
