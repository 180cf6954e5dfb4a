"""The page of `plumbline interpret`: the findings on one page that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.interpret import Interpretation
from training.pages import data_uri, thumbnail, write_page
from training.report import (
    confusion_table,
    how_good,
    metric_tiles,
    report_templates,
    two_by_two,
    wrong_label,
)
from training.report_text import percent
from training.top_losses import TopLoss

MOST_WRONG_LABELS = 24
_MOST_PAIRS = 8
_NEIGHBOUR_SIDE = 72  # px
_SPLIT_WORDS = {"test": "test", "valid": "validation", "all": "all"}


def write_interpret_page(path: Path, found: Interpretation) -> None:
    """Write the page, whole or not at all. Raises OSError."""
    write_page(path, render(found))


def render(found: Interpretation) -> str:
    """The page as one HTML document."""
    return (
        report_templates()
        .get_template("interpret.html")
        .render(
            found=found,
            verdict=verdict(found),
            shown_split=_SPLIT_WORDS[found.split],
            tiles=metric_tiles(found.metrics, None),
            confusion=confusion_table(found.metrics, found.confused),
            tables=two_by_two(found.metrics),
            pairs=found.confused[:_MOST_PAIRS],
            losses=[_loss(its) for its in found.top_losses],
            wrong_labels=[wrong_label(its) for its in found.wrong_labels[:MOST_WRONG_LABELS]],
        )
    )


def verdict(found: Interpretation) -> str:
    """The main things, in a few sentences."""
    told = [how_good(found.metrics, _SPLIT_WORDS[found.split]) + "."]
    if found.confused:
        worst = found.confused[0]
        told.append(
            f"Most often {worst.truth} is answered as {worst.answer}: {worst.count} of"
            f" {sum(its.count for its in found.confused)} confusions."
        )
    doubted = sum(its.doubted for its in found.label_checks)
    if doubted:
        told.append(f"{doubted} labels deserve a second look.")
    worse = next((its for its in found.slices if its.is_worse), None)
    if worse is not None:
        told.append(
            f"It is worse where {worse.name} is from {worse.low:.3g} to {worse.high:.3g}:"
            f" {percent(worse.accuracy)} right against {percent(worse.others_accuracy)}."
        )
    return " ".join(told)


def _loss(its: TopLoss) -> dict[str, Any]:
    return {
        **{name: getattr(its, name) for name in ("name", "split", "truth", "labels", "loss")},
        "confidence": its.confidence,
        "image": data_uri(thumbnail(its.image)),
        "heat": None if its.heat is None else data_uri(thumbnail(its.heat)),
        "heat_class": its.heat_class,
        "heat_truth": None if its.heat_truth is None else data_uri(thumbnail(its.heat_truth)),
        "heat_truth_class": its.heat_truth_class,
        "neighbours": [
            {
                "name": near.name,
                "truth": near.truth,
                "similarity": near.similarity,
                "differs": set(near.truth) != set(its.truth),
                "image": data_uri(thumbnail(near.image, _NEIGHBOUR_SIDE)),
            }
            for near in its.neighbours
        ],
    }
