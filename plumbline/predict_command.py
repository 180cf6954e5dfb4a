"""`plumbline predict`: ask a version here, or a running service."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.errors import SettingsError
from model.settings import read_settings
from plumbline.image_files import ImageFile, find_images
from plumbline.output import coverage_option, open_store, print_json, print_table, say
from plumbline.settings import ClientSettings
from service.settings import ServiceSettings

if TYPE_CHECKING:
    from plumbline.predict import Judging


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--version", "version", help="Predict here, with this VERSION.")
@click.option("--url", help="Ask a running service. Its key comes from PLUMBLINE_API_KEY.")
@coverage_option(
    "Add the set of labels that holds on average this share of the true ones, such as 0.9."
)
@click.option(
    "--tta",
    is_flag=True,
    help="Test-time augmentation: the mean over several views of each image, which takes three"
    " to six times as long. Here, not by a service.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write Parquet where the name ends in .parquet, else JSON lines. A Parquet file is"
    " for bulk work: the same command goes on where it was stopped, and adds what is new.",
)
@click.option("--anew", is_flag=True, help="With Parquet: forget the answers that are there.")
@click.option(
    "--mixed",
    is_flag=True,
    help="With Parquet: keep answers of several models in one file; else a change of the model"
    " stops the work. Each row names its model.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    help="With --url: requests in flight. Default: 4.",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    help="With --url: how often a request that is answered 429 or 503 is sent again, later each"
    " time. Default: 8, a minute or so in all.",
)
@click.option("--json", "as_json", is_flag=True, help="Rows; with Parquet, a summary.")
def predict(
    path: Path,
    version: str | None,
    url: str | None,
    coverage: float | None,
    tta: bool,
    out: Path | None,
    anew: bool,
    mixed: bool,
    concurrency: int | None,
    retries: int | None,
    as_json: bool,
) -> None:
    """Predict one image, or every JPEG, PNG and WebP below a folder.

    Exit code 1 when a file has an error in place of an answer.
    """
    as_parquet = out is not None and out.suffix.lower() == ".parquet"
    _refuse_idle(version, url, tta, as_parquet, anew, mixed, concurrency, retries)
    if out is not None and not out.parent.is_dir():
        raise SettingsError(f"--out {out}: there is no folder {out.parent}; make it first")
    files = find_images(path)
    judging = (
        _by_service(url, coverage, concurrency, retries) if url else _here(version, coverage, tta)
    )
    if as_parquet:
        assert out is not None
        failed = _write_parquet(out, path, files, judging, anew, mixed, as_json)
    else:
        failed = _tell_rows(files, judging, out, as_json, coverage)
    if failed:
        sys.exit(1)


def _refuse_idle(
    version: str | None,
    url: str | None,
    tta: bool,
    as_parquet: bool,
    anew: bool,
    mixed: bool,
    concurrency: int | None,
    retries: int | None,
) -> None:
    """Refuse options that would do nothing."""
    if version and url:
        raise SettingsError("give --version or --url, not both")
    if tta and url:
        raise SettingsError("--tta and --url: a service looks at each image once; leave one out")
    if (anew or mixed) and not as_parquet:
        raise SettingsError("--anew and --mixed are for --out FILE.parquet; leave them out")
    if not (url or (concurrency is None and retries is None)):
        raise SettingsError("--concurrency and --retries are for --url; leave them out")


def _here(version: str | None, coverage: float | None, tta: bool) -> Judging:
    from plumbline.predict import judging_here

    settings = read_settings(ServiceSettings)
    return judging_here(
        open_store(settings),
        version,
        model=settings.model,
        engine=settings.engine,
        precision=settings.precision,
        alpha=settings.alpha,
        coverage=coverage,
        augment=tta,
    )


def _by_service(
    url: str, coverage: float | None, concurrency: int | None, retries: int | None
) -> Judging:
    from plumbline.predict import CONCURRENCY, RETRIES, judging_by_service

    return judging_by_service(
        url,
        read_settings(ClientSettings).api_key,
        coverage=coverage,
        concurrency=CONCURRENCY if concurrency is None else concurrency,
        retries=RETRIES if retries is None else retries,
    )


def _write_parquet(
    out: Path,
    path: Path,
    files: Sequence[ImageFile],
    judging: Judging,
    anew: bool,
    mixed: bool,
    as_json: bool,
) -> bool:
    """Whether a file has an error."""
    from plumbline.bulk import predict_into

    done = asyncio.run(predict_into(out, path, files, judging, anew=anew, mixed=mixed))
    if as_json:
        print_json(asdict(done))
    else:
        say(
            f"{out}: {done.images} images, {done.judged} of them judged now by {done.model};"
            f" {done.errors} with an error"
        )
    return done.errors > 0


def _tell_rows(
    files: Sequence[ImageFile],
    judging: Judging,
    out: Path | None,
    as_json: bool,
    coverage: float | None,
) -> bool:
    """Whether a file has an error."""
    from plumbline.predict import predict_all

    rows = predict_all(files, judging)
    lines = [json.dumps(row) for row in rows]
    if out is not None:
        out.write_text("".join(f"{line}\n" for line in lines))
    elif as_json:
        click.echo("\n".join(lines))
    else:
        _print_predictions(rows, coverage)
    return any(row["error"] for row in rows)


def _print_predictions(rows: Sequence[dict[str, Any]], coverage: float | None) -> None:
    columns = ["file", "labels", "probability", "out of domain"]
    if coverage is None:
        print_table(None, columns, [_prediction_row(row) for row in rows])
        return
    columns.insert(2, f"set at {coverage:g}")
    print_table(None, columns, [_with_set(row) for row in rows])


def _prediction_row(row: dict[str, Any]) -> list[str]:
    if row["error"]:
        return [row["file"], f"error: {row['error']['message']}", "", ""]
    best = max(row["probabilities"].values())
    foreign = row["out_of_domain"]
    note = f"p = {foreign['p_value']:.4f}" + (" FLAGGED" if foreign["flagged"] else "")
    return [row["file"], ", ".join(row["labels"]) or "(none)", f"{best:.3f}", note]


def _with_set(row: dict[str, Any]) -> list[str]:
    cells = _prediction_row(row)
    cells.insert(2, "" if row["error"] else ", ".join(row["set"]) or "(none is sure enough)")
    return cells
