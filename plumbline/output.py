"""What commands have in common: how they print, how they end, and the store they work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from model.settings import ModelSettings, read_settings

Command = Callable[..., Any]

# What a command needs it imports itself: a second or two less for those that need little.
if TYPE_CHECKING:
    from model.store import ModelStore


def open_store(settings: ModelSettings | None = None) -> ModelStore:
    """The versions of the home that the settings name."""
    from model.store import ModelStore

    return ModelStore(settings or read_settings(ModelSettings))


def coverage_option(help_text: str) -> Callable[[Command], Command]:
    """`--coverage`, between 0 and 1; the version asked decides how high it may be."""
    return click.option(
        "--coverage", type=str, callback=_read_coverage, metavar="SHARE", help=help_text
    )


def _read_coverage(
    context: click.Context, option: click.Parameter, given: str | None
) -> float | None:
    from model.conformal_sets import parse_coverage

    return None if given is None else parse_coverage(given)


def say(message: str) -> None:
    """To the person at the terminal; stdout is for the answer alone."""
    click.echo(message, err=True)


def print_table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_json(content: Any) -> None:
    """For programs; times and paths as text."""
    click.echo(json.dumps(content, indent=1, default=str))


def end_by_exception(number: int, frame: FrameType | None) -> None:
    """A signal handler: an exception lets whatever was begun be cleared away."""
    raise SystemExit(128 + number)
