"""Images that say they are from before a reset, though their records came after it was obeyed.

They are no evidence, for they may show what the reset was for. A few such are late; where most are,
a service's clock is behind, and silence about them would look like "all is well".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

WINDOW_IMAGES = 400
MANY_IMAGES = 200
FEW_IMAGES = 20  # are enough where the reset is long ago: late records are there by then
LONG_AGO_SECONDS = 600.0


class BeforeReset:
    """Counts them since the reset, and among the last sampled images.

    >>> its = BeforeReset()
    >>> its.add([True] * 30)
    >>> its.why_not(seconds_since_reset=60.0) is None
    True
    >>> its.why_not(seconds_since_reset=700.0)
    'of the images since the reset 30 say that they are from before it: a clock may be behind'
    """

    def __init__(self) -> None:
        self.images = 0
        self._last: deque[bool] = deque(maxlen=WINDOW_IMAGES)

    def add(self, are_before: Iterable[bool]) -> None:
        """Of sampled images, whether each says that it is from before."""
        for is_before in are_before:
            self.images += is_before
            self._last.append(is_before)

    def why_not(self, *, seconds_since_reset: float) -> str | None:
        """Why nothing can be promised of the images since the reset, or None."""
        before = sum(self._last)
        is_long_ago = seconds_since_reset > LONG_AGO_SECONDS
        if before < (FEW_IMAGES if is_long_ago else MANY_IMAGES) or 2 * before < len(self._last):
            return None
        return (
            f"of the images since the reset {self.images:,} say that they are from before it: a"
            " clock may be behind"
        )

    def clear(self) -> None:
        """Another reset was obeyed."""
        self.images = 0
        self._last.clear()

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"images": self.images, "last": list(map(int, self._last))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self.images = int(state["images"])
        self._last.extend(map(bool, state["last"]))
