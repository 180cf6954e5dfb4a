"""`plumbline predict --out FILE.parquet`: many files, with a bar; goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from model.errors import SettingsError
from plumbline.image_files import ImageFile
from plumbline.output import say
from plumbline.predict import Judging, Row, judge_all
from plumbline.predictions_file import PredictionsFile


@dataclass(frozen=True)
class Summary:
    """What a run did: `images` in the file, `judged` of them now, `errors` in all."""

    out: str
    model: str
    images: int
    judged: int
    errors: int


async def predict_into(
    out: Path,
    folder: Path,
    files: Sequence[ImageFile],
    judging: Judging,
    *,
    anew: bool = False,
    mixed: bool = False,
) -> Summary:
    """Write a Parquet file with a row for each file; those that are answered are not judged again.

    Whatever ends it early keeps the answers so far, and a next call goes on. Raises `ServiceError`
    for what is no image's fault, and `SettingsError` where the file holds something else.
    """
    async with judging as judge:
        question = judge.question
        with PredictionsFile.open(out, folder, question, anew=anew, mixed=mixed) as predictions:
            missing = [file for file in files if predictions.lacks(file)]
            with _told_how_to_go_on(predictions), _bar(len(files), missing) as advance:

                def keep(some: Sequence[ImageFile], rows: list[Row]) -> None:
                    predictions.keep(some, rows)
                    advance(rows)

                await judge_all(judge, missing, keep)
                predictions.finish()
            return Summary(
                out=str(out),
                model=f"{question.name}:{question.version}",
                images=len(predictions),
                judged=len(missing),
                errors=predictions.errors,
            )


@contextmanager
def _told_how_to_go_on(predictions: PredictionsFile) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if len(predictions):
            told = f"stopped: {len(predictions)} files are answered, in {predictions.where}"
            if not isinstance(error, SettingsError):  # which says itself what to do
                told += "; the same command (without --anew) goes on from there"
            say(told)
        raise


@contextmanager
def _bar(total: int, missing: Sequence[ImageFile]) -> Iterator[Callable[[Sequence[Row]], None]]:
    """On a terminal, on stderr."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("predicting"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[errors]} errors"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=total, completed=total - len(missing), errors=0)
        errors = 0

        def advance(rows: Sequence[Row]) -> None:
            nonlocal errors
            errors += sum(row["error"] is not None for row in rows)
            progress.update(bar, advance=len(rows), errors=errors)

        yield advance
