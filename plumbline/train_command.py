"""`plumbline train`: from labelled images to a registered version."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from model.settings import read_settings
from plumbline.output import end_by_exception, open_store, print_json, say
from plumbline.training_options import (
    data_options,
    take_columns,
    take_knobs,
    threshold_options,
    training_options,
)
from service.settings import ServiceSettings


class LearningRate(click.ParamType[tuple[float | None, float]]):
    """LR, or LOW:HIGH for the first layers and the head."""

    name = "LR|LOW:HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | None, float]:
        """(lowest or None, highest)."""
        try:
            rates = [float(part) for part in str(value).split(":")]
        except ValueError:
            rates = []
        if len(rates) not in (1, 2) or any(not 0 < rate < 100 for rate in rates):
            self.fail(f"{value!r}: valid is a rate such as 1e-3, or a range such as 1e-5:1e-3")
        return (rates[0] if len(rates) == 2 else None, rates[-1])


@click.command()
@click.option(
    "--data",
    required=True,
    help="Folder of class folders, folder of idx files, CSV or Parquet file, or the word"
    " fashion-mnist.",
)
@click.option("--name", required=True, help="Name of the model.")
@click.option("--task", type=click.Choice(["single", "multi"]), help="Default: by the labels.")
@click.option("--none", "none_allowed", is_flag=True, help="May say: none of the classes.")
@click.option(
    "--architecture",
    help="small-resnet, small-resnet-wide or a name of timm's. Default: by the images.",
)
@click.option(
    "--weights",
    help="none, timm, package, a safetensors FILE, or a VERSION. Default: by the images.",
)
@click.option("--size", type=click.IntRange(8, 4096), help="Side of the input in pixels.")
@click.option("--epochs", type=click.IntRange(0), help="0: only the head, on frozen features.")
@click.option("--learning-rate", type=LearningRate())
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@data_options
@click.option(
    "--more",
    type=click.Path(exists=True, dir_okay=False),
    help="CSV or Parquet file of labelled images to add, as retraining does. Test rows stay.",
)
@click.option(
    "--negatives",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of images of none of the classes to learn from, with --none.",
)
@click.option(
    "--foreign",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of images that the model is not made for, to choose and check the outlier score"
    " by. Not trained on.",
)
@click.option(
    "--leave-classes-out",
    type=click.IntRange(1),
    metavar="N",
    help="Train a second time without N of the classes, to choose and check the outlier score by"
    " their images. Doubles the time.",
)
@click.option(
    "--none-loss",
    type=click.FloatRange(0, 0.5, min_open=True),
    help="With --none: share of images of the classes that may get no label or a flag. Default:"
    " 0.02.",
)
@click.option(
    "--intended-use",
    default="",
    metavar="TEXT",
    help="What the model is meant for, and what not; for its model card.",
)
@click.option("--promote", is_flag=True, help="Make the new version champion.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, no progress.")
@click.option(
    "--resume", is_flag=True, help="Go on from the checkpoint of an interrupted training."
)
@click.option(
    "--keep-fine-tuned",
    is_flag=True,
    help="Keep the fine-tuned network also where the linear head is better on validation.",
)
@click.option(
    "--retrain-to-overfit-point",
    is_flag=True,
    help="Where validation loss turned, train anew with that many epochs.",
)
@click.option(
    "--track",
    type=click.Choice(["tensorboard", "mlflow", "none"]),
    default="tensorboard",
    show_default=True,
    help="Where losses, rates and metrics go: below $PLUMBLINE_HOME/runs, or MLFLOW_TRACKING_URI"
    " ($PLUMBLINE_HOME/mlflow.db).",
)
@threshold_options
@click.option(
    "--int8/--no-int8",
    default=False,
    show_default=True,
    help="Export in 8-bit integers, too: served where it decides like the network and is faster."
    " Takes some ten seconds to minutes.",
)
@training_options
def train(
    learning_rate: tuple[float | None, float] | None,
    promote: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model, register it, and print its VERSION.

    Several devices: torchrun --nproc-per-node N -m plumbline train ...
    """
    from model.store import check_name
    from training.request import TrainRequest, choose_objective, open_request

    lowest, highest = learning_rate or (None, None)
    settings = read_settings(ServiceSettings)
    knobs = take_knobs(options)
    options |= take_columns(options)
    request = TrainRequest(
        knobs=knobs,
        learning_rate=highest,
        body_learning_rate=lowest,
        alpha=settings.alpha,
        **options,
    )
    store = open_store(settings)
    tell = (lambda message: None) if as_json else say
    # By an exception what is half-written is removed too.
    signal.signal(signal.SIGTERM, end_by_exception)
    check_name(request.name)
    # Of torchrun's processes the first opens the data, then the others.
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    source = open_request(request, store.home) if is_alone else None
    if source is not None:
        choose_objective(request, source)
    # Imported after that: it takes seconds, and wrong data are told at once.
    from training.recipe import run_training

    bundle = run_training(request, store, source=source, show_progress=not as_json, say=tell)
    if bundle is None:  # torchrun's first process speaks for all
        return
    manifest = bundle.manifest
    if promote:
        store.promote(manifest.tag)
    if as_json:
        print_json(
            {
                "version": manifest.tag,
                "stage": store.find(manifest.tag).stage,
                "metrics_split": manifest.metrics_split,
                "metrics": {name: its.value for name, its in manifest.metrics.items()},
                "report": str(bundle.path("report.html")),
            }
        )
        return
    say(f"report: {bundle.path('report.html')}")
    click.echo(manifest.tag)
