"""Figures, shares and names as the report writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def percent(share: float | None) -> str:
    """A share as a percentage, or a dash.

    >>> percent(0.9264)
    '92.6\\xa0%'
    """
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def figure(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def short(value: float) -> str:
    """Three digits for shares, whole numbers for pixels.

    >>> short(0.0712), short(640.0)
    ('0.0712', '640')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def thousands(value: float) -> str:
    """A whole number, thousands parted."""
    return f"{value:,.0f}"


def span(interval: Sequence[float], written: Any) -> str:
    """Both ends of an interval, as `written` writes one."""
    return f"{written(interval[0])} to {written(interval[1])}"


def plain(value: Any) -> str:
    """A setting, whatever its type.

    >>> plain({"a linear model": {"value": 0.84, "count": 50}})
    'a linear model (value 0.84, count 50)'
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(_named(name, each) for name, each in value.items()) or "none"
    return "not set" if value is None else str(value)


def _named(name: Any, value: Any) -> str:
    return f"{name} ({plain(value)})" if isinstance(value, Mapping) else f"{name} {plain(value)}"


def words(name: str) -> str:
    """The name of a metric in words."""
    return name.replace("_", " ").replace("f1", "F1")


def labels(names: Sequence[str]) -> str:
    """Labels in a row; of none, that it is none."""
    return ", ".join(names) or "none of the classes"
