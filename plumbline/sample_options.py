"""Which random sample of production is meant: options that two commands share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from model.errors import SettingsError

Command = Callable[..., Any]

MOST_IMAGES = 20_000  # all of their records are held in memory


def images_option(command: Command) -> Command:
    """`--images N`."""
    return click.option(
        "--images",
        type=click.IntRange(1, MOST_IMAGES),
        required=True,
        help="How many predictions are drawn.",
    )(command)


def since_option(command: Command) -> Command:
    """`--since TIME`."""
    return click.option(
        "--since",
        callback=_read_time,
        metavar="TIME",
        help="Of predictions from then on, as 2026-11-26 or 2026-11-26T08:00 (UTC). Not given: of"
        " all that are recorded.",
    )(command)


def until_option(*, required: bool, help_text: str) -> Callable[[Command], Command]:
    """`--until TIME`."""
    return click.option(
        "--until", callback=_read_time, metavar="TIME", required=required, help=help_text
    )


def _read_time(
    context: click.Context, option: click.Parameter, given: str | None
) -> datetime | None:
    """UTC where the text names no other zone."""
    if given is None:
        return None
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise SettingsError(
            f"--{option.name} is {given[:40]!r}; valid is a date or a time such as 2026-11-26 or"
            " 2026-11-26T08:00:00 (UTC)"
        ) from None
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise SettingsError(f"--{option.name} is {given[:40]!r}; no clock shows that") from None
