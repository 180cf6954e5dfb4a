"""`plumbline clean`: a list of suspected label errors and copies, for a person to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.errors import SettingsError
from plumbline.output import open_store, print_json, say
from plumbline.training_options import data_options, take_columns

if TYPE_CHECKING:
    from model.decision import Task


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
    from training.decoding_bar import DecodingBar

    if version is None and data is None:
        raise SettingsError("clean: give a VERSION, or --data, or both")
    if out.exists():
        raise SettingsError(
            f"--out {out} exists already, and may hold edits; choose another name, or remove it"
        )
    if not out.parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}; make it first")
    reading |= take_columns(reading)
    store = open_store()
    tell = (lambda message: None) if as_json else say
    bar = DecodingBar("looking for copies", enabled=not as_json)
    if version is not None:
        if task is not None or seed:
            raise SettingsError("--task and --seed are those of the VERSION; leave them out")
        from training.evaluate import reopen
        from training.suspects import suspects_of_version

        opened = reopen(store, version, data, split, **reading)
        kind, name = opened.manifest.task, opened.source.name
        with bar as progress:
            suspects = suspects_of_version(opened, progress=progress, say=tell)
    else:
        from training.sources import open_source
        from training.suspects import suspects_of_data

        source = open_source(
            str(data), task=task, seed=seed, home=store.home, for_training=False, **reading
        )
        kind, name = source.task, source.name
        with bar as progress:
            suspects = suspects_of_data(source, store.home, seed=seed, progress=progress, say=tell)
    count = write_suspects(out, suspects, kind)
    errors = sum(its.score is not None for its in suspects)
    if as_json:
        print_json(
            {
                "out": str(out),
                "data": name,
                "suspects": count,
                "label_errors": errors,
                "duplicates": count - errors,
            }
        )
        return
    click.echo(
        f"{count} rows of {name} to look at ({errors} labels, {count - errors} copies): {out}"
    )
    if count:
        say(f"fill in the column action, then: plumbline train --clean {out} ...")
