"""`plumbline evaluate`: the metrics of a version on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from plumbline.output import coverage_option, open_store, print_json, print_table
from plumbline.training_options import data_options, take_columns


@click.command()
@click.argument("version")
@click.option("--data", required=True, help="As for train.")
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "all"]),
    help="Default: test for the data it was trained on, all for other data.",
)
@coverage_option("Measure the prediction sets of this coverage too, such as 0.9.")
@click.option(
    "--tta",
    is_flag=True,
    help="Beside it the figures with test-time augmentation: the mean over several views of each"
    " image.",
)
@data_options
@click.option("--json", "as_json", is_flag=True)
def evaluate(
    version: str,
    data: str,
    split: str | None,
    coverage: float | None,
    tta: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Measure a VERSION on labelled images."""
    from training.evaluate import evaluate_version

    reading |= take_columns(reading)
    found = evaluate_version(
        open_store(), version, data, split, coverage=coverage, tta=tta, **reading
    )
    if as_json:
        print_json(found)
        return
    title = f"{version} on {found['count']} images, split: {found['split']}"
    columns = ("metric", "value", "95 % interval", *(("with --tta", "95 % interval") * tta))
    rows = _rows(found)
    if coverage is not None:
        rows += _rows_of_sets(found["prediction_sets"], len(columns))
    print_table(title, columns, rows)


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """One for each metric, with its value under every way of looking."""
    ways = [found, found["tta"]] if "tta" in found else [found]
    return [
        (name, *(cell for way in ways for cell in _cells(name, way)))
        for name, value in found.items()
        if isinstance(value, float)
    ]


def _rows_of_sets(found: dict[str, Any], columns: int) -> list[tuple[str, ...]]:
    """Realised coverage, size of the sets, and the class that they cover least."""
    at = f"at {found['coverage']:g}"
    shown = {
        f"coverage {at}": found["realised"],
        f"mean set size {at}": found["mean_size"],
        f"sets of one class {at}": found["size_one"],
        f"empty sets {at}": found["empty"],
    }
    if found["by_class"]:
        least = min(found["by_class"], key=lambda name: found["by_class"][name]["value"])
        shown[f"coverage {at} of {least}, the least"] = found["by_class"][least]
    return [
        (name, f"{its['value']:.4f}", _interval((its["low"], its["high"])), *[""] * (columns - 3))
        for name, its in shown.items()
        if its is not None and its["value"] is not None
    ]


def _interval(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def _cells(name: str, found: dict[str, Any]) -> tuple[str, str]:
    value, bounds = found[name], found["intervals"].get(name)
    return ("" if value is None else f"{value:.4f}"), _interval(bounds)
