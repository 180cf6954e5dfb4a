"""`plumbline evaluate`: the metrics of a version on labelled images."""

from __future__ import annotations

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
@click.option(
    "--tta",
    is_flag=True,
    help="Beside it the figures with test-time augmentation: the mean over several views of each"
    " image.",
)
@data_options
@click.option("--json", "as_json", is_flag=True)
def evaluate(
    version: str, data: str, split: str | None, tta: bool, as_json: bool, **reading: Any
) -> None:
    """Measure a VERSION on labelled images."""
    from training.evaluate import evaluate_version

    reading |= take_columns(reading)
    found = evaluate_version(open_store(), version, data, split, tta=tta, **reading)
    if as_json:
        print_json(found)
        return
    title = f"{version} on {found['count']} images, split: {found['split']}"
    columns = ("metric", "value", "95 % interval", *(("with --tta", "95 % interval") * tta))
    print_table(title, columns, _rows(found))


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """One for each metric, with its value under every way of looking."""
    ways = [found, found["tta"]] if "tta" in found else [found]
    return [
        (name, *(cell for way in ways for cell in _cells(name, way)))
        for name, value in found.items()
        if isinstance(value, float)
    ]


def _cells(name: str, found: dict[str, Any]) -> tuple[str, str]:
    value, bounds = found[name], found["intervals"].get(name)
    interval = f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
    return ("" if value is None else f"{value:.4f}"), interval
