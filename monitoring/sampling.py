"""Which images count as evidence, and how far they depend on each other.

The promise of the alarm holds for images that are exchangeable. Traffic is not: clients retry,
cameras send one scene again and again. The sampler therefore leaves near-duplicates out and
bounds what one client contributes, without ever looking at what the model said; the promise is
for the sampled stream. What dependence is left is measured, and past a limit nothing is promised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 20  # images within which dependence is measured
LAGS = 8  # images apart that are compared


@dataclass(frozen=True, slots=True)
class Arrival:
    """All that the sampler may know of an image. `seconds` is Unix time."""

    seconds: float
    image_sha256: str
    perceptual_hash: int
    client: str


class Sampler:
    """Takes an image unless it repeats one of the last ones, or its client has had its share.

    `window_images` is how many images back a near-duplicate is looked for; near are equal bytes,
    or perceptual hashes that differ in at most `near_bits` of 64. A client contributes at most
    `client_images` per `client_seconds`, unless it is the only one: the rule protects clients from
    each other.

    >>> sampler = Sampler(window_images=100, near_bits=2, client_images=10, client_seconds=60)
    >>> first = Arrival(0.0, "aa", 0b1111, "shop")
    >>> near = Arrival(1.0, "bb", 0b1110, "shop")
    >>> other = Arrival(2.0, "cc", 0b1111 << 40, "shop")
    >>> [sampler.takes(arrival) for arrival in (first, near, other)]
    [True, False, True]
    """

    def __init__(
        self, *, window_images: int, near_bits: int, client_images: int, client_seconds: float
    ) -> None:
        self._near_bits = near_bits
        self._client_images = client_images
        self._client_seconds = client_seconds
        self._hashes = np.zeros(window_images, np.uint64)
        self._names: deque[str] = deque(maxlen=window_images)  # sha256
        self._seen = 0
        self._repeats: deque[bool] = deque(maxlen=window_images)
        self._interval = -1
        self._taken: dict[str, int] = {}  # by client, in this interval
        self._clients_before = 0  # in the interval before

    def takes(self, arrival: Arrival) -> bool:
        """Whether this image counts; every arrival has to be asked, in order."""
        repeated = self._repeats_another(arrival)
        self._repeats.append(repeated)
        place = self._seen % len(self._hashes)
        self._hashes[place] = arrival.perceptual_hash
        self._names.append(arrival.image_sha256)
        self._seen += 1
        return self._within_share(arrival, repeated) and not repeated

    @property
    def repeated_share(self) -> float:
        """Share of near-duplicates among the images in the window; 0 before there are any."""
        return sum(self._repeats) / len(self._repeats) if self._repeats else 0.0

    @property
    def window_is_full(self) -> bool:
        """Whether the share is one of a whole window."""
        return len(self._repeats) == len(self._hashes)

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "hashes": self._hashes.tolist(),
            "names": list(self._names),
            "seen": self._seen,
            "repeats": list(map(int, self._repeats)),
            "interval": self._interval,
            "taken": dict(self._taken),
            "clients_before": self._clients_before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`. Raises ValueError when the window has another length."""
        if len(state["hashes"]) != len(self._hashes):
            raise ValueError(
                f"the sampler's window was {len(state['hashes'])} images and is set to"
                f" {len(self._hashes)}"
            )
        self._hashes = np.array(state["hashes"], np.uint64)
        self._names.extend(state["names"])
        self._seen = int(state["seen"])
        self._repeats.extend(map(bool, state["repeats"]))
        self._interval = int(state["interval"])
        self._taken = {str(name): int(count) for name, count in state["taken"].items()}
        self._clients_before = int(state["clients_before"])

    def _repeats_another(self, arrival: Arrival) -> bool:
        known = self._hashes[: self._seen]
        differing = np.bitwise_count(known ^ np.uint64(arrival.perceptual_hash))
        near = bool(len(known)) and int(differing.min()) <= self._near_bits
        return near or arrival.image_sha256 in self._names

    def _within_share(self, arrival: Arrival, repeated: bool) -> bool:
        interval = int(arrival.seconds // self._client_seconds)
        if interval != self._interval:
            self._clients_before = len(self._taken)
            self._interval, self._taken = interval, {}
        taken = self._taken.get(arrival.client, 0)
        alone = set(self._taken) <= {arrival.client} and self._clients_before <= 1
        if taken >= self._client_images and not alone:
            return False
        self._taken[arrival.client] = taken + (not repeated)
        return True


class Dependence:
    """How far neighbouring images of the sampled stream depend on each other.

    The correlation of p-values with those one to LAGS images later, within blocks of BLOCK images
    less the block's mean: a change of the domain moves whole blocks and hardly shows; images that
    come in runs do, and so do several cameras that take turns.
    """

    def __init__(self, window_images: int) -> None:
        self._p_values: deque[Sequence[float]] = deque(maxlen=window_images - window_images % BLOCK)

    def add(self, p_values: Sequence[float]) -> None:
        """The p-values of one sampled image, one per stream."""
        self._p_values.append(p_values)

    @property
    def images(self) -> int:
        """How many images the correlation is of."""
        return len(self._p_values)

    @property
    def correlation(self) -> float | None:
        """The largest over the streams, about 0 for exchangeable images; None before a block."""
        if len(self._p_values) < BLOCK:
            return None
        return block_correlation(np.array(self._p_values))

    def clear(self) -> None:
        """Begin a new window."""
        self._p_values.clear()

    def to_state(self) -> list[Sequence[float]]:
        """Everything, as JSON values."""
        return list(self._p_values)

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from `to_state`."""
        self._p_values.extend(state)


def block_correlation(values: NDArray[np.float64]) -> float:
    """Largest over lags and columns of the mean correlation within blocks of BLOCK rows (N x K).

    >>> rng = np.random.default_rng(0)
    >>> independent = rng.random((400, 7))
    >>> block_correlation(independent) < 0.25
    True
    >>> block_correlation(np.repeat(independent[:200], 2, axis=0)) > 0.4
    True
    """
    blocks = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK, values.shape[1])
    centred = blocks - blocks.mean(axis=1, keepdims=True)
    squares = np.maximum((centred**2).sum(axis=1), 1e-12)
    # Taking the block's own mean off makes independent values look opposed by 1 / BLOCK. Every
    # block has one vote: the one that a change falls into does not decide.
    found = [
        ((centred[:, lag:] * centred[:, :-lag]).sum(axis=1) / squares).mean(axis=0).max()
        for lag in range(1, LAGS + 1)
    ]
    return float(max(found)) + 1 / BLOCK
