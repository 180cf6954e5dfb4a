"""`plumbline learning-curve`: would more data help?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from model.settings import ModelSettings, read_settings
from plumbline.training_options import (
    data_options,
    network_options,
    take_columns,
    take_knobs,
    training_options,
)


class Shares(click.ParamType[tuple[float, ...]]):
    """Shares of the data, parted by commas."""

    name = "SHARE,SHARE..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Two or more that rise."""
        try:
            shares = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            shares = ()
        rising = list(shares) == sorted(set(shares))
        if len(shares) < 2 or not rising or not 0 < shares[0] <= shares[-1] <= 1:
            self.fail(
                f"{value!r}: valid are two or more that rise, over 0 and at most 1, parted by"
                " commas, such as 0.125,0.25,0.5,1"
            )
        return shares


@click.command("learning-curve")
@click.option("--epochs", type=click.IntRange(0), help="On all of the data; more on a share.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="The highest.")
@click.option("--batch-size", type=click.IntRange(1))
@network_options
@data_options
@click.option("--shares", type=Shares(), default="0.125,0.25,0.5,1", show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture, an SVG."
)
@click.option("--json", "as_json", is_flag=True)
@training_options
def learning_curve(
    shares: tuple[float, ...], out: Path | None, as_json: bool, **options: Any
) -> None:
    """Train on growing shares of the data, and say whether more would help.

    Each share is trained for as many steps as all of the data would be. Nothing is registered.
    """
    from model.store import ModelStore
    from training.learning_curve import learning_curve as measure
    from training.learning_curve import picture
    from training.preparation import prepare_training
    from training.request import TrainRequest

    knobs = take_knobs(options)
    options |= take_columns(options)
    store = ModelStore(read_settings(ModelSettings))
    request = TrainRequest(name="learning-curve", knobs=knobs, **options)
    prepared = prepare_training(request, store, show_progress=not as_json)
    say = (lambda message: None) if as_json else (lambda message: click.echo(message))
    curve = measure(prepared, store, shares, show_progress=not as_json, say=say)
    if out is not None:
        out.write_text(picture(curve), encoding="utf-8")
    click.echo(json.dumps(asdict(curve), indent=1) if as_json else curve.sentence)
