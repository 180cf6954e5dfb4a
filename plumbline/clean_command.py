"""`plumbline clean`: a list of suspected label errors and copies, for a person to edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.errors import SettingsError
from plumbline.output import open_store, print_json, say
from plumbline.training_options import data_options, take_columns

if TYPE_CHECKING:
    from model.decision import Task
    from training.cleaning import Suspect


@click.command()
@click.argument("version", required=False)
@click.option("--data", help="As for train. Default: the data VERSION was trained on.")
@click.option("--task", type=click.Choice(["single", "multi"]), help="Default: by the labels.")
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "all"]),
    default="all",
    show_default=True,
    help="Rows to look at, with a VERSION.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the splits.")
@data_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Write the list here, a CSV; an existing one is not overwritten.",
)
@click.option("--json", "as_json", is_flag=True)
def clean(
    version: str | None,
    data: str | None,
    task: Task | None,
    split: str,
    seed: int,
    out: Path,
    as_json: bool,
    **reading: Any,
) -> None:
    """List suspected label errors and duplicates as a CSV to edit.

    Its columns are file, label, suggested, reason, score (the lower, the likelier the label is
    wrong) and action, which is empty. Fill in action: keep, delete, none (no label applies), or
    the right class (label:NAME for a class named as one of these words; a set parted by |). Then:
    plumbline train --clean FILE.

    With a VERSION its answers judge the labels it did not learn, and linear heads on its embedding,
    each fitted without the rows it judges, those that it did. Without one, linear heads on features
    of the pretrained network do (on pixels where images are tiny).
    """
    from training.cleaning import write_suspects

    if version is None and data is None:
        raise SettingsError("clean: give a VERSION, or --data, or both")
    if version is not None and (task is not None or seed):
        raise SettingsError("--task and --seed are those of the VERSION; leave them out")
    _check_out(out)
    reading |= take_columns(reading)
    tell = (lambda message: None) if as_json else say
    if version is not None:
        found = _of_version(version, data, split, reading, tell, show_progress=not as_json)
    else:
        found = _of_data(str(data), task, seed, reading, tell, show_progress=not as_json)
    count = write_suspects(out, found.suspects, found.task)
    errors = sum(its.score is not None for its in found.suspects)
    if as_json:
        print_json(
            {
                "out": str(out),
                "data": found.data,
                "suspects": count,
                "label_errors": errors,
                "duplicates": count - errors,
            }
        )
        return
    click.echo(
        f"{count} rows of {found.data} to look at ({errors} labels, {count - errors} copies): {out}"
    )
    if count:
        say(f"fill in the column action, then: plumbline train --clean {out} ...")


@dataclass(frozen=True)
class _Found:
    """Suspects, and what they are rows of."""

    suspects: list[Suspect]
    task: Task
    data: str


def _check_out(out: Path) -> None:
    if out.exists():
        raise SettingsError(
            f"--out {out} exists already, and may hold edits; choose another name, or remove it"
        )
    if not out.parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}; make it first")


def _of_version(
    version: str,
    data: str | None,
    split: str,
    reading: dict[str, Any],
    tell: Callable[[str], None],
    *,
    show_progress: bool,
) -> _Found:
    from training.decoding_bar import DecodingBar
    from training.evaluate import reopen
    from training.suspects import suspects_of_version

    opened = reopen(open_store(), version, data, split, **reading)
    with DecodingBar("looking for copies", enabled=show_progress) as progress:
        suspects = suspects_of_version(opened, progress=progress, say=tell)
    return _Found(suspects, opened.manifest.task, opened.source.name)


def _of_data(
    data: str,
    task: Task | None,
    seed: int,
    reading: dict[str, Any],
    tell: Callable[[str], None],
    *,
    show_progress: bool,
) -> _Found:
    from training.decoding_bar import DecodingBar
    from training.sources import open_source
    from training.suspects import suspects_of_data

    home = open_store().home
    source = open_source(data, task=task, seed=seed, home=home, for_training=False, **reading)
    with DecodingBar("looking for copies", enabled=show_progress) as progress:
        suspects = suspects_of_data(source, home, seed=seed, progress=progress, say=tell)
    return _Found(suspects, source.task, source.name)
