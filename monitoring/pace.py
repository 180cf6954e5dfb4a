"""The pace of the sampled images, and the false-alarm promise in days of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHANCE = 0.05  # of a false alarm, that the promise is told for
_MINUTE, _HOUR = 60.0, 3600.0
_DAY_HOURS = 24
_HOURS_KEPT = 60  # some may be of clocks that are wrong


class Pace:
    """How many images are sampled in a day, by those of the day before the last one.

    >>> pace = Pace()
    >>> for number in range(120):
    ...     pace.add(60.0 * number)
    >>> round(pace.a_day)  # one a minute
    1452
    """

    def __init__(self) -> None:
        self._by_hour: dict[int, int] = {}
        self._first: float | None = None  # Unix time, as the next
        self._last = 0.0

    def add(self, seconds: float) -> None:
        """One sampled image of this Unix time."""
        hour = int(seconds // _HOUR)
        self._by_hour[hour] = self._by_hour.get(hour, 0) + 1
        self._last = seconds
        if self._first is None:
            self._first = seconds
        if len(self._by_hour) > _HOURS_KEPT:
            del self._by_hour[min(self._by_hour)]

    @property
    def a_day(self) -> float | None:
        """Images a day; what has been seen for less than a day is taken to go on so.

        None in the first minute, which says nothing.
        """
        if self._first is None or self._last - self._first < _MINUTE:
            return None
        hour = int(self._last // _HOUR)
        images = sum(self._by_hour.get(hour - back, 0) for back in range(_DAY_HOURS))
        begun = max(self._first, (hour + 1 - _DAY_HOURS) * _HOUR)
        return images * _DAY_HOURS * _HOUR / max(self._last - begun, _MINUTE)

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "by_hour": [[hour, images] for hour, images in self._by_hour.items()],
            "first": self._first,
            "last": self._last,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._by_hour = {int(hour): int(images) for hour, images in state["by_hour"]}
        self._first = None if state["first"] is None else float(state["first"])
        self._last = float(state["last"])


def promised_days(false_alarm_images: float, a_day: float | None) -> float | None:
    """Days within which the chance of a false alarm is at most CHANCE: m / c, solved for m."""
    return None if not a_day else CHANCE * false_alarm_images / a_day


def in_days(false_alarm_images: float, a_day: float | None) -> str:
    """The promise in a sentence, days rounded down; empty before there are images."""
    days = promised_days(false_alarm_images, a_day)
    if days is None:
        return ""
    return (
        f"At the pace of the last day ({a_day:,.0f} sampled images a day) the chance of a false"
        f" alarm within {_in_words(days)} is at most {CHANCE:.0%}."
    )


def _in_words(days: float) -> str:
    """Rounded down, in the largest unit of which there is one.

    >>> [_in_words(days) for days in (400.5, 20.83, 1.59, 0.5, 0.01)]
    ['400 days', '20 days', '1.5 days', '12 hours', '14 minutes']
    """
    for unit, per_day in (("days", 1), ("hours", 24), ("minutes", 24 * 60)):
        count = days * per_day
        if count >= 1 or unit == "minutes":
            break
    rounded = math.floor(count) if count >= 10 else math.floor(10 * count) / 10
    return f"{rounded:g} {unit}"
