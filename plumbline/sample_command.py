"""`plumbline monitor sample`: predictions drawn at random, for people to label."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.settings import read_settings
from monitoring.settings import MonitoringSettings
from plumbline.output import open_store, print_json, print_table, say
from plumbline.sample_options import images_option, since_option, until_option

if TYPE_CHECKING:
    from monitoring.random_sample import Period, RandomSample

_COLUMNS = ("id", "time", "image")
_NOT_KEPT = "not kept"


@dataclass(frozen=True)
class _Drawn:
    """One prediction to label."""

    prediction_id: str
    time: datetime
    image: Path | None  # None where it is not kept

    @property
    def row(self) -> tuple[str, str, str]:
        """As text."""
        time = f"{self.time:%Y-%m-%dT%H:%M:%SZ}"
        return self.prediction_id, time, str(self.image or _NOT_KEPT)


@click.command("sample")
@images_option
@since_option
@until_option(required=False, help_text="And before then. Not given: up to a moment ago.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a CSV file.")
@click.option(
    "--copy-to",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy the images into this folder: there they stay, and no folder says which are flagged.",
)
@click.option("--json", "as_json", is_flag=True)
def sample(
    images: int,
    since: datetime | None,
    until: datetime | None,
    out: Path | None,
    copy_to: Path | None,
    as_json: bool,
) -> None:
    """Draw predictions of the champion at random, whatever was predicted, for people to label.

    Of one period it is the same sample each time, in an order that tells nothing, and more images
    are the same ones and some more. Label all of them by POST /v1/feedback, then use plumbline
    recalibrate.
    """
    from monitoring.random_sample import Period, random_sample

    settings = read_settings(MonitoringSettings)
    period = Period(since, until or _a_moment_ago(settings))
    store = open_store(settings)
    champion = store.load(store.champion(settings.model))
    found = random_sample(settings, champion, images, period)
    drawn = _with_images(found, settings.images)
    if copy_to is not None:
        drawn = _copied(drawn, copy_to)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *(its.row for its in drawn)])
    then = _then(images, period)
    if as_json:
        print_json(
            {
                "model": champion.manifest.tag,
                "recorded": found.recorded,
                "since": None if since is None else since.isoformat(),
                "until": period.until.isoformat(),
                "images": [
                    {"id": its.prediction_id, "time": its.time.isoformat(), "image": its.image}
                    for its in drawn
                ],
                "then": then,
            }
        )
        return
    if out is None:
        print_table(None, _COLUMNS, [its.row for its in drawn])
    _tell(drawn, found.recorded, champion.manifest.tag, period)
    say(f"Label all of them (POST /v1/feedback), then: {then}")


def _a_moment_ago(settings: MonitoringSettings) -> datetime:
    """When all that was predicted is written, in whole seconds."""
    return (datetime.now(UTC) - timedelta(seconds=settings.merge_seconds)).replace(microsecond=0)


def _with_images(found: RandomSample, folder: Path) -> list[_Drawn]:
    from monitoring.image_store import find_image

    return [
        _Drawn(its["id"], its["time"], find_image(folder, its["id"]))
        for its in found.records.select(["id", "time"]).to_pylist()
    ]


def _copied(drawn: Sequence[_Drawn], folder: Path) -> list[_Drawn]:
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _Drawn(its.prediction_id, its.time, None if its.image is None else _copy(its.image, folder))
        for its in drawn
    ]


def _copy(image: Path, folder: Path) -> Path | None:
    try:
        return shutil.copyfile(image, folder / image.name)
    except FileNotFoundError:  # its time was up
        return None


def _tell(drawn: Sequence[_Drawn], recorded: int, tag: str, period: Period) -> None:
    from monitoring.recalibration import LEAST_CONFIRMED, MOST_UNANSWERED

    say(f"{len(drawn)} of {recorded} predictions of {tag} {period}, drawn at random.")
    gone = sum(its.image is None for its in drawn)
    if gone:
        told = (
            f"; plumbline recalibrate refuses where over {MOST_UNANSWERED:.0%} have no answer, so"
            " ask for a later --since, and see PLUMBLINE_STORE_IMAGES"
        )
        say(
            f"Of {gone} the image is not kept{told if gone > MOST_UNANSWERED * len(drawn) else ''}."
        )
    if len(drawn) < LEAST_CONFIRMED:
        say(f"At least {LEAST_CONFIRMED} confirmed ones are needed to recalibrate.")


def _then(images: int, period: Period) -> str:
    """The command that takes the same sample."""
    since = "" if period.since is None else f" --since {_typed(period.since)}"
    until = _typed(period.until)
    return f'plumbline recalibrate --images {images}{since} --until {until} --why "..."'


def _typed(time: datetime) -> str:
    """As it is given on the command line, in UTC."""
    return time.replace(tzinfo=None).isoformat()
