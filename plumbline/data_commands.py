"""`plumbline data check` and `plumbline data show`: look at the data before any training."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.settings import ModelSettings, read_settings
from plumbline.training_options import (
    data_options,
    network_options,
    take_columns,
    take_knobs,
    training_options,
)

if TYPE_CHECKING:
    from training.data_check import DataCheck
    from training.data_show import Step

_MOST_TOLD = 3  # examples of a finding, at the terminal


@click.group()
def data() -> None:
    """Look at data before training on them."""


@data.command("check")
@click.option("--data", "place", required=True, help="As for train.")
@click.option("--task", type=click.Choice(["single", "multi"]), help="Default: by the labels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the splits.")
@data_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page here. Default: $PLUMBLINE_HOME/reports/data-NAME.html.",
)
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings too.")
@click.option("--json", "as_json", is_flag=True)
def check(place: str, out: Path | None, strict: bool, as_json: bool, **reading: Any) -> None:
    """Decode every image once, and tell what is wrong with the data.

    Counts per class and split, imbalance, corrupt files, exact and near duplicates, those across
    splits (leakage) or with conflicting labels, sizes; and a page with samples. Nothing is
    changed. Exit code 1 where train would refuse the data.
    """
    from training.data_check import check_data
    from training.data_pages import verdict, write_check_page
    from training.decoding_bar import DecodingBar
    from training.sources import open_source

    home = read_settings(ModelSettings).home
    skips = reading.pop("skip_bad")
    reading |= take_columns(reading)
    source = open_source(place, home=home, skip_bad=True, for_training=False, **reading)
    with DecodingBar("looking", enabled=not as_json) as bar:
        found = check_data(source, progress=bar, skip_bad=skips)
    page = out or home / "reports" / f"data-{source.name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_check_page(page, source, found)
    if as_json:
        content = asdict(found) | {"clean": found.is_clean, "page": str(page)}
        click.echo(json.dumps(content, indent=1))
    else:
        _print_check(found)
        click.echo(verdict(found))
        click.echo(f"page: {page}", err=True)
    warned = any(finding.severity == "warning" for finding in found.findings)
    if not found.is_clean or (strict and warned):
        sys.exit(1)


def _print_check(found: DataCheck) -> None:
    for finding in found.findings:
        click.echo(f"{finding.severity}: {finding.kind}: {finding.sentence}")
        for example in finding.examples[:_MOST_TOLD]:
            # Names of files may hold line ends, and bytes that are no text.
            click.echo(f"    {example if example.isprintable() else ascii(example)}")
        left = len(finding.examples) - _MOST_TOLD
        if left > 0:
            click.echo(f"    and {left} more")


@data.command("show")
@click.option("--item", default="0", show_default=True, help="Its name, or its number from 0.")
@network_options
@data_options
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with pictures."
)
@click.option("--json", "as_json", is_flag=True)
@training_options
def show(item: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Run one item through the pipeline step by step, as train would.

    After each step: shape, dtype, least and largest value; with --out, a picture too. Trains
    nothing. Exit code 1 where a step fails.
    """
    from model.store import ModelStore
    from training.data_pages import write_show_page
    from training.data_show import find_row, show_item
    from training.preparation import choose_pipeline
    from training.request import TrainRequest

    knobs = take_knobs(options)
    options |= take_columns(options)
    request = TrainRequest(name="data-show", knobs=knobs, **options)
    source, spec, settings = choose_pipeline(request, ModelStore(read_settings(ModelSettings)))
    row = find_row(source, item)
    steps = show_item(source, row, spec, settings)
    if out is not None:
        write_show_page(out, source.names[row], steps)
    if as_json:
        click.echo(json.dumps([_plain(step) for step in steps], indent=1))
    else:
        click.echo(source.names[row])
        for step in steps:
            click.echo(_line(step))
        if out is not None:
            click.echo(f"page: {out}", err=True)
    if steps[-1].name == "failed":
        sys.exit(1)


def _plain(step: Step) -> dict[str, Any]:
    names = ("name", "says", "shape", "dtype", "least", "most")
    return {name: getattr(step, name) for name in names}


def _line(step: Step) -> str:
    shape = " x ".join(map(str, step.shape))
    values = "" if step.least is None else f"{step.least:.3g} to {step.most:.3g}"
    return f"{step.name:27} {shape:15} {step.dtype:8} {values:16} {step.says}"
