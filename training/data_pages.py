"""The pages of `plumbline data check` and `plumbline data show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import ImageError
from model.images import InputSpec
from training.data_check import DataCheck
from training.pages import data_uri, templates, write_page
from training.sources import Source

if TYPE_CHECKING:  # which needs torch, and the page of a check does not
    from training.data_show import Step

_THUMBNAIL = InputSpec(size=72, mean=(0.5,) * 3, std=(0.5,) * 3)
_MOST_EXAMPLES = 50  # of a finding, on the page
_MOST_GROUPS = 8  # of a finding, as pictures
_MOST_IN_GROUP = 4
_MOST_CLASSES = 100  # with a row of samples


def write_check_page(path: Path, source: Source, found: DataCheck) -> None:
    """Counts, findings and a grid of samples on one page. Raises OSError."""
    names = list(found.samples)[:_MOST_CLASSES]
    text = (
        templates()
        .get_template("data_check.html")
        .render(
            check=found,
            verdict=verdict(found),
            most_examples=_MOST_EXAMPLES,
            largest=max((sum(its.values()) for its in found.counts.values()), default=1) or 1,
            samples=[(name, _pictures(source, found.samples[name])) for name in names],
            left_out=len(found.samples) - len(names),
            groups=[
                [_pictures(source, group[:_MOST_IN_GROUP]) for group in its.rows[:_MOST_GROUPS]]
                for its in found.findings
            ],
        )
    )
    write_page(path, text)


def write_show_page(path: Path, name: str, steps: Sequence[Step]) -> None:
    """One row per step, with its picture. Raises OSError."""
    pictured = [(step, None if step.picture is None else data_uri(step.picture)) for step in steps]
    write_page(path, templates().get_template("data_show.html").render(name=name, steps=pictured))


def verdict(found: DataCheck) -> str:
    """All in one sentence."""
    errors = sum(finding.severity == "error" for finding in found.findings)
    warnings = sum(finding.severity == "warning" for finding in found.findings)
    total = sum(found.images.values())
    start = f"{total} images of {len(found.classes)} classes, {found.task}-label: "
    if errors:
        end = f"training would refuse them; {_count(errors, 'error')} to mend"
        return start + end + (f", {_count(warnings, 'warning')}." if warnings else ".")
    if warnings:
        return f"{start}they can be trained on; look at {_count(warnings, 'warning')} first."
    return f"{start}nothing stands in the way of training."


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number > 1 else ''}"


def _pictures(source: Source, rows: Sequence[int]) -> list[tuple[str, str | None]]:
    """Name and small picture of some rows; None where it cannot be read any more."""
    found: list[tuple[str, str | None]] = []
    for row in rows:
        try:
            found.append((source.names[row], data_uri(source.reader.prepare(row, _THUMBNAIL))))
        except (ImageError, OSError):
            found.append((source.names[row], None))
    return found
