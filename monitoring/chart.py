"""The evidence over time, as an SVG picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

# Okabe and Ito's palette, which people with colour blindness can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
CLIP_LINES = 2.5  # evidence beyond so many times the alarm line is drawn at the upper edge
_WIDTH, _HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 190, 16, 36

Point = tuple[int, Sequence[float | None]]
Scale = Callable[[float], float]


def evidence_chart(streams: Sequence[str], history: Sequence[Point], line: float) -> str:
    """log10 evidence of every stream over sampled images, and the alarm line.

    `history` holds (sampled images, one value per stream). Evidence far beyond the line is drawn
    at the upper edge; its number stands beside its name.
    """
    values = [its for _, row in history for its in row if its is not None]
    low, high = min([-1.0, *values]), min(max([line + 1, *values]), CLIP_LINES * line)
    last = max([1, *(images for images, _ in history)])

    def x(images: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * images / last

    def y(value: float) -> float:
        shown = min(value, high)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (shown - low) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="Evidence of drift per stream against the alarm line">',
        *_grid(x, y, low, high, last),
        f'<line x1="{_LEFT}" x2="{x(last):.1f}" y1="{y(line):.1f}" y2="{y(line):.1f}"'
        ' class="alarm-line"/>',
        f'<text x="{_LEFT + 6}" y="{y(line) - 6:.1f}" class="alarm-label">alarm line</text>',
    ]
    ends = []
    for place, name in enumerate(streams):
        points = [(images, row[place]) for images, row in history]
        path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in points if v is not None)
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<polyline points="{path}" stroke="{colour}" class="stream"/>')
        latest = points[-1][1] if points else None
        ends.append((y(latest if latest is not None else low), name, colour, latest))
    parts += _labels(ends)
    return "".join([*parts, "</svg>"])


def _grid(x: Scale, y: Scale, low: float, high: float, last: int) -> list[str]:
    parts = []
    step = max(1, round((high - low) / 6))
    for power in range(int(low) // step * step, int(high) + 1, step):
        if power < low:
            continue
        parts.append(
            f'<line x1="{_LEFT}" x2="{x(last):.1f}" y1="{y(power):.1f}" y2="{y(power):.1f}"'
            f' class="grid"/><text x="{_LEFT - 8}" y="{y(power) + 4:.1f}" class="tick"'
            f' text-anchor="end">10<tspan dy="-5" font-size="9">{power}</tspan></text>'
        )
    for share in (0, 0.5, 1):
        images = round(last * share)
        parts.append(
            f'<text x="{x(images):.1f}" y="{_HEIGHT - 19}" class="tick"'
            f' text-anchor="middle">{images:,}</text>'
        )
    middle = (x(0) + x(last)) / 2
    parts.append(
        f'<text x="{middle - 90:.1f}" y="{_HEIGHT - 4}" class="tick">images sampled</text>'
    )
    return parts


def _labels(ends: list[tuple[float, str, str, float | None]]) -> list[str]:
    """Names at the ends of the lines, pushed apart where they would lie on each other."""
    parts = []
    floor = 0.0
    least = 15.0
    room = _HEIGHT - _BOTTOM + 10
    for place, (height, name, colour, latest) in enumerate(sorted(ends, key=lambda its: its[0])):
        below = len(ends) - place - 1
        height = min(max(height + 4, floor + least), room - least * below)
        floor = height
        value = "" if latest is None else f" {latest:.1f}"
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{height:.1f}" fill="{colour}"'
            f' class="name">{escape(name.replace("_", " "))}{value}</text>'
        )
    return parts
