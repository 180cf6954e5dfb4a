"""`plumbline evaluate`: the metrics of a version on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from plumbline.output import open_store, print_json, print_table
from plumbline.training_options import data_options, take_columns


@click.command()
@click.argument("version")
@click.option("--data", required=True, help="As for train.")
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "all"]),
    help="Default: test for the data it was trained on, all for other data.",
)
@data_options
@click.option("--json", "as_json", is_flag=True)
def evaluate(version: str, data: str, split: str | None, as_json: bool, **reading: Any) -> None:
    """Measure a VERSION on labelled images."""
    from training.evaluate import evaluate_version

    reading |= take_columns(reading)
    found = evaluate_version(open_store(), version, data, split, **reading)
    if as_json:
        print_json(found)
        return
    title = f"{version} on {found['count']} images, split: {found['split']}"
    rows = [
        (name, f"{value:.4f}", _interval(found["intervals"].get(name)))
        for name, value in found.items()
        if isinstance(value, float)
    ]
    print_table(title, ("metric", "value", "95 % interval"), rows)


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
