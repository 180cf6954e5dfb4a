"""Options of the training loop, shared by the commands that train; each is a field of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_LAYOUTS = ("", " channels_last")


def _precision_names() -> list[str]:
    return ["auto", *(name + layout for name in _PRECISIONS[1:] for layout in _LAYOUTS)]


_SHARE = click.FloatRange(0, 1)
_OPTIONS = {
    "optimizer": click.option("--optimizer", type=click.Choice(["sgd", "adamw"])),
    "weight_decay": click.option("--weight-decay", type=click.FloatRange(0)),
    "frozen_groups": click.option(
        "--frozen-groups",
        type=click.IntRange(0, 2),
        help="Of two groups of layers below the head, how many, from the first, fine-tuning leaves"
        " as they are.",
    ),
    "head": click.option(
        "--head",
        type=click.Choice(["softmax", "sigmoid"]),
        help="Of single-label training. sigmoid: every class for itself. Default: softmax.",
    ),
    "label_smoothing": click.option("--label-smoothing", type=_SHARE, help="Single-label alone."),
    "small_epochs_share": click.option(
        "--small-epochs",
        "small_epochs_share",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the epochs, the first, that train on smaller images; 0: none.",
    ),
    "small_share": click.option(
        "--small-share",
        type=click.FloatRange(0.25, 1),
        help="Side of those smaller images over that of the network's.",
    ),
    "flip": click.option("--flip/--no-flip", default=None, help="Mirror images left to right."),
    "presize": click.option(
        "--presize",
        type=click.FloatRange(0, 4),
        help="Side of the images to be warped over that of the network's; 0: no warps.",
    ),
    "least_crop": click.option(
        "--least-crop",
        type=click.FloatRange(0, 1, min_open=True),
        help="Share that a warp keeps at least, of the area of the largest cut that fits.",
    ),
    "rotation_degrees": click.option(
        "--rotation-degrees", type=click.FloatRange(0, 60), help="At most, either way."
    ),
    "perspective": click.option(
        "--perspective",
        type=click.FloatRange(0, 0.5, max_open=True),
        help="Share by which one side may come nearer.",
    ),
    "lighting": click.option(
        "--lighting",
        type=click.FloatRange(0, 0.5, max_open=True),
        help="Share by which brightness and contrast change at most.",
    ),
    "mixup": click.option(
        "--mixup", type=click.FloatRange(0), help="Blend images: alpha, for example 0.4."
    ),
    "cutmix": click.option(
        "--cutmix", type=click.FloatRange(0), help="Paste images into others: alpha, for example 1."
    ),
    "erase_probability": click.option(
        "--erase", "erase_probability", type=_SHARE, help="Chance of a random rectangle of noise."
    ),
    "sampling": click.option(
        "--sampling",
        type=click.Choice(["shuffled", "balanced"]),
        help="balanced: rare classes are drawn as often as frequent ones.",
    ),
    "class_weights": click.option(
        "--class-weights",
        type=click.Choice(["none", "balanced"]),
        help="balanced: mistakes on rare classes cost more.",
    ),
    "accumulate_batches": click.option(
        "--accumulate-batches", type=click.IntRange(1), help="Batches per step of the optimizer."
    ),
    "clip_gradient_norm": click.option(
        "--clip-gradient-norm", type=click.FloatRange(0, min_open=True)
    ),
    "average_decay": click.option(
        "--average-decay",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Keep a moving average of the weights, for example 0.99.",
    ),
    "precision": click.option(
        "--precision", type=click.Choice(_precision_names()), help="Default: timed at the start."
    ),
    "device": click.option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one."),
    "compile": click.option("--compile/--no-compile", default=None, help="torch.compile."),
    "deterministic": click.option(
        "--deterministic/--no-deterministic",
        default=None,
        help="Only algorithms that give the same bits each time.",
    ),
}


_DATA_OPTIONS = (
    click.option(
        "--pattern",
        help="Regular expression whose first group, in a file's name, is its label, such as"
        r" '(.+)_\d+.jpg$'.",
    ),
    click.option("--file-column", help="Of a table. Default: fname, file, filename, path, image."),
    click.option(
        "--label-column",
        "label_columns",
        multiple=True,
        help="Of a table, several times for several. Default: labels or label.",
    ),
    click.option("--split-column", help="Of a table. Default: split or is_valid, if any."),
    click.option("--delimiter", default=" ", help="Parts the labels in a table. Default: a space."),
    click.option("--skip-bad", is_flag=True, help="Leave unusable images out, and say so."),
    click.option(
        "--clean",
        type=click.Path(exists=True, dir_okay=False),
        help="A list that plumbline clean wrote, after someone filled in its column action: rows"
        " are deleted or labelled anew before anything else.",
    ),
)


_NETWORK_OPTIONS = (
    click.option("--data", required=True, help="As for train."),
    click.option("--task", type=click.Choice(["single", "multi"]), help="Default: by the labels."),
    click.option("--architecture", help="As for train."),
    click.option("--weights", help="As for train."),
    click.option("--size", type=click.IntRange(8, 4096), help="Side of the input in pixels."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)


_THRESHOLD_OPTIONS = (
    click.option(
        "--objective",
        help="Several labels: what thresholds are tuned for. macro_f1 (default), micro_f1, another"
        " F-beta such as macro_f2, cost, 'precision>=0.9' or 'recall>=0.9'.",
    ),
    click.option(
        "--cost-matrix",
        type=click.Path(exists=True, dir_okay=False),
        help="CSV with the columns class,false_positive,false_negative for --objective cost; the"
        " class * stands for all others.",
    ),
    click.option(
        "--per-class-thresholds/--no-per-class-thresholds",
        default=None,
        help="Several labels: a class gets a threshold of its own where that is surely better."
        " Default: yes.",
    ),
)


def threshold_options(command: Command) -> Command:
    """Add the options that say what thresholds are tuned for."""
    for option in reversed(_THRESHOLD_OPTIONS):
        command = option(command)
    return command


def network_options(command: Command) -> Command:
    """Add the options that name data and network to a command that tries what train would do."""
    for option in reversed(_NETWORK_OPTIONS):
        command = option(command)
    return command


def data_options(command: Command) -> Command:
    """Add the options that say how to read data to a command."""
    for option in reversed(_DATA_OPTIONS):
        command = option(command)
    return command


def take_columns(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the names of columns from a command's options; the same as one `columns`."""
    from training.tables import Columns

    file, split = options.pop("file_column"), options.pop("split_column")
    return {"columns": Columns(file, options.pop("label_columns"), split)}


def training_options(command: Command) -> Command:
    """Add every option of the loop to a command."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def take_knobs(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the loop's options from those of a command; those that were given, by field."""
    taken = {name: options.pop(name) for name in _OPTIONS}
    return {name: value for name, value in taken.items() if value is not None}
