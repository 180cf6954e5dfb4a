"""`plumbline lr-find`: the learning rate to train with, read from a sweep."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from model.errors import SettingsError
from model.settings import ModelSettings, read_settings
from plumbline.training_options import (
    data_options,
    network_options,
    take_columns,
    take_knobs,
    training_options,
)


@click.command("lr-find")
@click.option("--batch-size", type=click.IntRange(1))
@network_options
@data_options
@click.option("--lowest", type=click.FloatRange(0, min_open=True), default=1e-7, show_default=True)
@click.option("--highest", type=click.FloatRange(0, min_open=True), default=10, show_default=True)
@click.option("--steps", type=click.IntRange(30, 10_000), default=100, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture, an SVG."
)
@click.option("--json", "as_json", is_flag=True)
@training_options
def lr_find(
    lowest: float, highest: float, steps: int, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Sweep the learning rate upwards, and suggest one.

    With pretrained weights a linear head is fitted first, as train does, and the sweep is that
    of all layers together.
    """
    if lowest >= highest:
        raise SettingsError(f"--lowest {lowest} must be under --highest {highest}")
    from model.store import ModelStore
    from training.learning_rate import picture
    from training.recipe import sweep_learning_rate
    from training.request import TrainRequest

    knobs = take_knobs(options)
    store = ModelStore(read_settings(ModelSettings))
    options |= take_columns(options)
    request = TrainRequest(name="lr-find", knobs=knobs, **options)
    sweep = sweep_learning_rate(
        request, store, lowest=lowest, highest=highest, steps=steps, show_progress=not as_json
    )
    suggestions = sweep.suggest()
    if out is not None:
        out.write_text(picture(sweep, suggestions), encoding="utf-8")
    if as_json:
        rates, losses = sweep.rates.tolist(), sweep.losses.tolist()
        content = {"suggestions": asdict(suggestions), "rates": rates, "losses": losses}
        click.echo(json.dumps(content, indent=1))
        return
    for name, rate in asdict(suggestions).items():
        click.echo(f"{name:8} {rate:.1e}")
    click.echo(f"start with --learning-rate {suggestions.valley:.1e}", err=True)
