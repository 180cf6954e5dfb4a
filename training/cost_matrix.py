"""The file that says what a mistake costs, by class."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.errors import DataError
from training.objectives import Cost

COLUMNS = ("class", "false_positive", "false_negative")
EVERY_CLASS = "*"


def read_cost_matrix(path: Path, classes: Sequence[str]) -> Cost:
    """Costs from a CSV file of the columns class, false_positive, false_negative.

    One row per class, or rows for some and one of the class `*` for the others. Raises `DataError`
    that names file and row for columns that are not these, a class twice, unknown or missing,
    and a cost that is negative or no number.
    """
    by_class = _read_rows(path)
    unknown = [name for name in by_class if name not in (*classes, EVERY_CLASS)]
    if unknown:
        raise DataError(
            f"{path} has costs of {', '.join(map(repr, unknown[:5]))}, which the data do not have;"
            f" its classes are {', '.join(classes)}, or {EVERY_CLASS} for all others"
        )
    missing = [name for name in classes if name not in by_class]
    if missing and EVERY_CLASS not in by_class:
        raise DataError(
            f"{path} has no costs of {', '.join(map(repr, missing[:5]))}; add a row for each, or"
            f" one of the class {EVERY_CLASS} for all that have none"
        )
    pairs = [by_class.get(name) or by_class[EVERY_CLASS] for name in classes]
    wrong, missed = (tuple(column) for column in zip(*pairs, strict=True))
    for costs, column, choice in (
        (wrong, "false_positive", "every class"),
        (missed, "false_negative", "none of the classes"),
    ):
        if not any(costs):
            raise DataError(
                f"{path}: every {column} costs 0, so the cheapest model always answers {choice};"
                " give what such a mistake costs"
            )
    return Cost(wrong, missed)


def _read_rows(path: Path) -> Mapping[str, tuple[float, float]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = enumerate(csv.reader(file), start=1)
            rows = [(number, [cell.strip() for cell in row]) for number, row in lines if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV in UTF-8: {error}") from error
    header = ",".join(COLUMNS)
    columns = rows[0][1] if rows else []
    if sorted(columns) != sorted(COLUMNS):
        got = f"got {','.join(columns)}" if columns else "it is empty"
        raise DataError(f"{path}: its first line must be {header}; {got}")
    found: dict[str, tuple[float, float]] = {}
    for number, row in rows[1:]:
        where = f"{path}, row {number}"
        if len(row) != len(COLUMNS):
            raise DataError(f"{where}: expected {len(COLUMNS)} cells ({header}), got {row}")
        cells = dict(zip(columns, row, strict=True))
        name = cells["class"]
        if name in found:
            raise DataError(f"{where}: the class {name!r} has costs above already; keep one row")
        found[name] = (
            _cost(where, "false_positive", cells["false_positive"]),
            _cost(where, "false_negative", cells["false_negative"]),
        )
    if not found:
        raise DataError(f"{path} has no rows below its header; add one per class, or one of *")
    return found


def _cost(where: str, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise DataError(f"{where}: {column} is {cell!r}; it must be a number of 0 or more")
    return value
