"""`plumbline predict`: ask a version here, or a running service."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from model.errors import SettingsError
from model.settings import read_settings
from plumbline.output import coverage_option, open_store, print_table
from plumbline.settings import ClientSettings
from service.settings import ServiceSettings

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


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
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines.")
@click.option("--json", "as_json", is_flag=True)
def predict(
    path: Path,
    version: str | None,
    url: str | None,
    coverage: float | None,
    tta: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Predict one image, or every JPEG, PNG and WebP below a folder."""
    from plumbline.predict import predict_by_service, predict_here

    if version and url:
        raise SettingsError("give --version or --url, not both")
    if tta and url:
        raise SettingsError("--tta and --url: a service looks at each image once; leave one out")
    images = _image_files(path)
    if url:
        key = read_settings(ClientSettings).api_key
        rows = predict_by_service(images, url, key, coverage=coverage)
    else:
        settings = read_settings(ServiceSettings)
        rows = predict_here(
            images,
            open_store(settings),
            version,
            model=settings.model,
            engine=settings.engine,
            precision=settings.precision,
            alpha=settings.alpha,
            coverage=coverage,
            augment=tta,
        )
    lines = [json.dumps(row) for row in rows]
    if out is not None:
        out.write_text("".join(f"{line}\n" for line in lines))
    elif as_json:
        click.echo("\n".join(lines))
    else:
        _print_predictions(rows, coverage)
    if any(row["error"] for row in rows):
        sys.exit(1)


def _image_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
    )
    if not found:
        raise SettingsError(f"{path} holds no {', '.join(_IMAGE_SUFFIXES)} file")
    return found


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
