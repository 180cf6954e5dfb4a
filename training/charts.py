"""Small SVG charts that follow the page they stand in: colours are its CSS variables.

Written by hand because a chart drawn by a plotting library brings its own fonts and a fixed
background, and is unreadable in one of the two themes. No scripts; a hover shows the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Array = NDArray[Any]
Style = Literal["line", "faint", "dots", "dashed"]

WIDTH, HEIGHT = 460, 280  # user units; the page scales the drawing
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 48
MOST_POINTS = 300  # of one line; more cannot be seen and makes the file large


@dataclass(frozen=True)
class Series:
    """One line or set of dots; `colour` is 1 or 2, the page's first or second chart colour."""

    name: str
    x: Array
    y: Array
    style: Style = "line"
    colour: int = 1


@dataclass(frozen=True)
class Chart:
    """A chart of series over a common pair of axes, see `draw`.

    The y label may be empty where the heading above the chart says it.
    `band` shades a stretch of x, `marks` are labelled vertical lines; `title` is read out to
    those who cannot see the drawing.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    band: tuple[float, float] | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)


def draw(chart: Chart) -> Markup:
    """The chart as an SVG element; points that are not finite are left out."""
    series = [_finite(each) for each in chart.series]
    x_low, x_high = chart.x_range or _range(np.concatenate([each.x for each in series]))
    y_low, y_high = chart.y_range or _padded(_range(np.concatenate([each.y for each in series])))
    across = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    upward = _scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    parts = [
        *_band(chart.band, across),
        *_y_axis(nice_ticks(y_low, y_high), upward, chart.y_label),
        *_x_axis(nice_ticks(x_low, x_high), across, chart.x_label),
        *_marks(chart.marks, across),
        *(_one_series(each, across, upward) for each in series),
    ]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, chart.title, Markup("").join(parts))


# Of the page that a chart stands in, for one that stands alone.
_STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --ink: #111110; --soft: #55544f;
        --rule: #e4e3dc; --axis: #c3c2b7; --one: #2a78d6; --two: #d9581f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #1a1a19; --ink: #f7f7f4; --soft: #c0bfb6; --rule: #2d2d2a; --axis: #44443f;
          --one: #5a9df0; --two: #ee8250; } }
svg { background: var(--page); font: 12px system-ui, "DejaVu Sans", sans-serif; }
text { fill: var(--soft); } .label { text-anchor: middle; }
.grid { stroke: var(--rule); } .axis { stroke: var(--axis); }
polyline { fill: none; stroke-width: 2; } .c1 { stroke: var(--one); } .c2 { stroke: var(--two); }
.mark { stroke: var(--two); stroke-dasharray: 4 3; } .mark-label { fill: var(--ink); }
"""


def stand_alone(chart: Chart) -> str:
    """The chart as an SVG document of its own, light or dark as its reader is."""
    drawing = str(draw(chart))
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{2 * HEIGHT}" '
    return drawing.replace("<svg ", start, 1).replace(">", f"><style>{_STYLE}</style>", 1) + "\n"


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many of them.

    >>> nice_ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _finite(series: Series) -> Series:
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) > MOST_POINTS:
        chosen = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
        x, y = x[chosen], y[chosen]
    return Series(series.name, x, y, series.style, series.colour)


def _range(values: Array) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(limits: tuple[float, float]) -> tuple[float, float]:
    """A little air above and below, without crossing zero for what is never negative."""
    low, high = limits
    air = 0.06 * (high - low)
    return (max(0.0, low - air) if low >= 0 else low - air), high + air


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _y_axis(ticks: list[float], upward: Callable[[float], float], label: str) -> list[Markup]:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    text = Markup('<text x="{}" y="{}" text-anchor="end" dy="0.33em">{}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [
        *(line.format(LEFT, WIDTH - RIGHT, upward(tick), upward(tick)) for tick in ticks),
        *(text.format(LEFT - 7, upward(tick), _number(tick)) for tick in ticks),
        Markup('<text class="label" transform="translate(13 {}) rotate(-90)">{}</text>').format(
            middle, label
        ),
    ]


def _x_axis(ticks: list[float], across: Callable[[float], float], label: str) -> list[Markup]:
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    floor = HEIGHT - BOTTOM
    return [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            LEFT, WIDTH - RIGHT, floor, floor
        ),
        *(text.format(across(tick), floor + 17, _number(tick)) for tick in ticks),
        Markup('<text class="label" x="{}" y="{}">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label
        ),
    ]


def _band(band: tuple[float, float] | None, across: Callable[[float], float]) -> list[Markup]:
    if band is None:
        return []
    low, high = across(band[0]), across(band[1])
    shape = '<rect class="band" x="{}" y="{}" width="{}" height="{}"/>'
    return [Markup(shape).format(low, TOP, round(high - low, 1), HEIGHT - TOP - BOTTOM)]


def _marks(marks: Sequence[tuple[float, str]], across: Callable[[float], float]) -> list[Markup]:
    """Labelled vertical lines; a label without room to the right stands left of its line."""
    parts = []
    for index, (value, label) in enumerate(marks):
        x, first = across(value), index == 0
        others = [across(other) for other, _ in marks if other > value]
        left = x > 0.72 * WIDTH or any(other - x < 60 for other in others)
        parts.append(
            Markup(
                '<line class="mark{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="mark-label{}" x="{}" y="{}" text-anchor="{}">{}</text>'
            ).format(
                "" if first else " minor",
                *(x, x, TOP, HEIGHT - BOTTOM),
                "" if first else " minor",
                x - 5 if left else x + 5,
                HEIGHT - BOTTOM - 8 - 16 * index,
                "end" if left else "start",
                label,
            )
        )
    return parts


def _one_series(
    series: Series, across: Callable[[float], float], upward: Callable[[float], float]
) -> Markup:
    points = [(across(x), upward(y)) for x, y in zip(series.x, series.y, strict=True)]
    path = " ".join(f"{x},{y}" for x, y in points)
    line = Markup('<polyline class="{} c{}" points="{}"><title>{}</title></polyline>').format(
        series.style, series.colour, path, series.name
    )
    if series.style != "dots":
        return line
    dot = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="4"><title>{}</title></circle>')
    dots = [
        dot.format(series.colour, x, y, f"{series.name}: {_number(at)}, {value:.3g}")
        for (x, y), at, value in zip(points, series.x, series.y, strict=True)
    ]
    return line + Markup("").join(dots)


def legend(series: Sequence[Series]) -> Markup:
    """The key to a chart with more than one series, as a list in the page's own text."""
    item = Markup('<li><span class="key {} c{}"></span>{}</li>')
    items = [item.format(each.style, each.colour, each.name) for each in series]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _number(value: float) -> Markup:
    if value and abs(value) < 1e-3:
        return escape(f"{value:.0e}".replace("e-0", "e-"))
    return escape(f"{value:,.6g}")
