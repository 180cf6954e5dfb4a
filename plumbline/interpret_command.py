"""`plumbline interpret`: what a version gets wrong, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plumbline.output import open_store, print_json, print_table, say
from plumbline.training_options import data_options, take_columns

if TYPE_CHECKING:
    from training.interpret import Interpretation

_MOST_TOLD = 8  # of each kind, at the terminal


@click.command()
@click.argument("version")
@click.option("--data", help="As for train. Default: the data it was trained on, read as then.")
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "all"]),
    help="Default: test for the data it was trained on, all for other data.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="How many of the costliest answers to show.",
)
@data_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page here. Default: $PLUMBLINE_HOME/reports/interpret-VERSION.html.",
)
@click.option("--json", "as_json", is_flag=True)
def interpret(
    version: str,
    data: str | None,
    split: str | None,
    top: int,
    out: Path | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Show what a VERSION gets wrong, and why.

    Confusions, precision and recall per class, the answers that cost most with Grad-CAM and the
    training images nearest to them, labels that are likely wrong, and kinds of images that it is
    worse on: on one page, and with --json for programs.

    Labels are judged by the model's own probabilities where it did not learn them (validation,
    calibration and test rows). Those of rows that it was fitted to would repeat what it learned, so
    with --split all they are judged by linear heads fitted without them, on the model's embedding;
    where the body was trained on these rows too, that finds fewer errors than there are.
    """
    from training.interpret import as_json as plain
    from training.interpret import interpret_version
    from training.interpret_page import verdict, write_interpret_page

    reading |= take_columns(reading)
    store = open_store()
    found = interpret_version(store, version, data, split, top=top, **reading)
    name = found.version.replace(":", "-")
    page = out or store.home / "reports" / f"interpret-{name}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_interpret_page(page, found)
    if as_json:
        print_json({**plain(found), "page": str(page)})
        return
    click.echo(verdict(found))
    _print(found)
    for note in found.notes:
        say(f"note: {note}")
    say(f"page: {page}")


def _print(found: Interpretation) -> None:
    if found.confused:
        print_table(
            "most confused",
            ("truth", "answered as", "images", "of its class"),
            [
                (its.truth, its.answer, str(its.count), f"{its.share:.1%}")
                for its in found.confused[:_MOST_TOLD]
            ],
        )
    if found.wrong_labels:
        print_table(
            f"labels that are likely wrong ({len(found.wrong_labels)})",
            ("name", "split", "label", "rather", "score"),
            [
                (
                    # Names of files may hold line ends, and bytes that are no text.
                    its.name if its.name.isprintable() else ascii(its.name),
                    its.split,
                    ", ".join(its.label) or "none",
                    ", ".join(its.suggested) or "none",
                    f"{its.score:.3f}",
                )
                for its in found.wrong_labels[:_MOST_TOLD]
            ],
        )
    worse = [its for its in found.slices if its.is_worse]
    if worse:
        print_table(
            "worse by more than chance",
            ("property", "from", "to", "images", "right", "others"),
            [
                (
                    its.name,
                    f"{its.low:.3g}",
                    f"{its.high:.3g}",
                    str(its.count),
                    f"{its.accuracy:.1%}",
                    f"{its.others_accuracy:.1%}",
                )
                for its in worse[:_MOST_TOLD]
            ],
        )
