"""Which images count as evidence, and how far they depend on each other.

The promise of the alarm holds for images that are exchangeable. Traffic is not: clients retry,
cameras send one scene again and again. The sampler therefore leaves near-duplicates out and
bounds what one client contributes, without ever looking at what the model said; the promise is
for the sampled stream. What dependence is left is measured, and past a limit nothing is promised.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.settings import MonitoringSettings

BLOCK = 20  # images within which dependence is measured
LAGS = 8  # images apart that are compared within a block
FAR_LAGS = 150  # and across blocks
FAR_CHANCE = 4.0  # standard errors that the largest of so many correlations reaches by chance
INTERVALS_KEPT = 16  # of a client's share
DEMAND_INTERVALS = 4  # of which the busiest tells how far a client's images are thinned
AT_ONCE_OF_A_NEW_CLIENT = 10  # images, before its share is spread by time
_AT_ONCE = 64  # arrivals that are compared with each other

FloatArray = NDArray[np.float64]


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
    `client_images` per `client_seconds`, spread over them, unless it is the only one: the rule
    protects clients from each other.

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
        self._hashes = np.zeros(window_images, np.uint64)
        self._names: deque[str] = deque()  # sha256, of as many images
        self._known: Counter[str] = Counter()  # the same, to look up
        self._seen = 0
        self._repeats: deque[bool] = deque(maxlen=window_images)
        self._shares = ClientShares(images=client_images, seconds=client_seconds, spread=True)

    def takes(self, arrival: Arrival) -> bool:
        """Whether this image counts; every arrival has to be asked, in order."""
        return self.takes_which([arrival])[0]

    def takes_which(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Which of these images count; the same as to ask for one after the other, but faster."""
        at_once = min(len(self._hashes), _AT_ONCE)
        return [
            self._takes(arrival, near)
            for start in range(0, len(arrivals), at_once)
            for arrival, near in self._with_near(arrivals[start : start + at_once])
        ]

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
            **self._shares.to_state(),
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
        self._known.update(self._names)
        self._seen = int(state["seen"])
        self._repeats.extend(map(bool, state["repeats"]))
        self._shares.restore(state)

    def _takes(self, arrival: Arrival, near: bool) -> bool:
        repeated = near or arrival.image_sha256 in self._known
        self._repeats.append(repeated)
        self._remember_name(arrival.image_sha256)
        return self._shares.admit(arrival, counted=not repeated) and not repeated

    def _with_near(self, arrivals: Sequence[Arrival]) -> Iterable[tuple[Arrival, bool]]:
        """Each with whether its hash is near one of the window before it; not more than that."""
        hashes = np.array([its.perceptual_hash for its in arrivals], np.uint64)
        near = self._near_in_window(hashes) | self._near_each_other(hashes)
        self._hashes[(self._seen + np.arange(len(hashes))) % len(self._hashes)] = hashes
        self._seen += len(hashes)
        return zip(arrivals, near.tolist(), strict=True)

    def _near_in_window(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each is near one from before all of them that is still in the window, N."""
        length = len(self._hashes)
        near = self._are_near(self._hashes[: self._seen], hashes)  # N x window
        if self._seen + len(hashes) > length and near.any():
            # Those before an image have taken the places of the oldest.
            for row in range(1, len(hashes)):
                if (gone := self._seen + row - length) > 0:
                    oldest = max(0, self._seen - length)
                    near[row, np.arange(oldest, gone) % length] = False
        return np.asarray(near.any(axis=1))

    def _near_each_other(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each is near one of those before it, N."""
        return np.asarray(np.tril(self._are_near(hashes, hashes), k=-1).any(axis=1))

    def _are_near(self, known: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.asarray(np.bitwise_count(hashes[:, None] ^ known) <= self._near_bits)

    def _remember_name(self, name: str) -> None:
        self._names.append(name)
        self._known[name] += 1
        if len(self._names) > len(self._hashes):
            _forget(self._known, self._names.popleft())


class ClientShares:
    """What each of several clients may contribute in an interval; a lone one is not held back.

    What comes first counts, or with `spread`: of a client that sends more, every so many-th image,
    by what it sent before; of one that sent nothing before, a few at once and then as many as its
    share allows by the time. Neighbours in its stream often show the same: taken one after the
    other, its share would be a block of them at the start of each interval.

    >>> shares = ClientShares(images=2, seconds=60, spread=True)
    >>> [shares.admit(Arrival(float(at), "", 0, name)) for at, name in enumerate("abaaab")]
    [True, True, True, False, False, True]
    >>> [shares.admit(Arrival(60.0 + at, "", 0, name)) for at, name in enumerate("baaaa")]
    [True, True, False, True, False]
    """

    def __init__(self, *, images: int, seconds: float, spread: bool = False) -> None:
        self._images = images
        self._spread = spread
        self._seconds = seconds
        # By interval and client, of the intervals begun last: records come a little out of order.
        self._taken: dict[int, dict[str, int]] = {}
        self._came: dict[int, dict[str, int]] = {}  # repeats aside
        # What clients sent before who sent more than their share.
        self._demand: dict[int, dict[str, int]] = {}
        self._new: dict[int, dict[str, float]] = {}  # when those came who sent nothing before
        self._clients_before = 0  # in the interval begun before the last

    def admit(self, arrival: Arrival, *, counted: bool = True) -> bool:
        """Whether the client has not had its share; takes one off it where this one is counted."""
        interval = int(arrival.seconds // self._seconds)
        its = self._taken.get(interval)
        if its is None:
            its = self._begin(interval)
        client, came = arrival.client, self._came[interval]
        if client not in its:
            self._meet(arrival, interval)
        taken = its.setdefault(client, 0)
        came[client] = number = came.get(client, 0) + counted
        if not self._is_alone(client, its):
            if taken >= min(self._images, self._by_time(arrival, interval)):
                return False
            if not self._is_due(number, self._demand[interval].get(client, 0)):
                return False
        its[client] = taken + counted
        return True

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "taken": [[interval, taken] for interval, taken in self._taken.items()],
            "came": [[interval, came] for interval, came in self._came.items()],
            "demand": [[interval, demand] for interval, demand in self._demand.items()],
            "new": [[interval, new] for interval, new in self._new.items()],
            "clients_before": self._clients_before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._taken = {int(interval): dict(taken) for interval, taken in state["taken"]}
        # States of before shares were spread have none.
        parts: dict[str, dict[int, Any]] = {
            "came": self._came,
            "demand": self._demand,
            "new": self._new,
        }
        for name, its in parts.items():
            its.update({interval: {} for interval in self._taken})
            its.update({int(interval): dict(found) for interval, found in state.get(name, [])})
        self._clients_before = int(state["clients_before"])

    def _is_alone(self, client: str, interval: Mapping[str, int]) -> bool:
        return self._clients_before <= 1 and set(interval) <= {client}

    def _meet(self, arrival: Arrival, interval: int) -> None:
        """Note a client that sent nothing in the intervals before."""
        others = [its for number, its in self._came.items() if number != interval]
        known = any(arrival.client in its for its in others[-DEMAND_INTERVALS:])
        if self._spread and not known:
            self._new[interval][arrival.client] = arrival.seconds

    def _by_time(self, arrival: Arrival, interval: int) -> float:
        """How many images of its client may count so far; infinite where it sent some before."""
        came = self._new[interval].get(arrival.client)
        if came is None:
            return math.inf
        since = max(0.0, arrival.seconds - came)
        return AT_ONCE_OF_A_NEW_CLIENT + self._images * since / self._seconds

    def _is_due(self, number: int, demand: int) -> bool:
        """Whether the image of that number, of so many that are to be expected, counts."""
        if demand <= self._images or not self._spread:
            return True
        due, due_before = (-(-its * self._images // demand) for its in (number, number - 1))
        return due > due_before

    def _begin(self, interval: int) -> dict[str, int]:
        self._clients_before = len(next(reversed(self._taken.values()), ()))
        demand: dict[str, int] = {}
        for came in list(self._came.values())[-DEMAND_INTERVALS:]:
            for client, count in came.items():
                if count > max(self._images, demand.get(client, 0)):
                    demand[client] = count
        self._demand[interval], self._came[interval], self._new[interval] = demand, {}, {}
        begun = self._taken[interval] = {}
        while len(self._taken) > INTERVALS_KEPT:
            oldest = next(iter(self._taken))
            for kept in (self._taken, self._came, self._demand, self._new):
                del kept[oldest]
        return begun


class Dependence:
    """How far neighbouring images of the sampled stream depend on each other.

    The correlation of p-values with those of later images, less the mean of their block of BLOCK
    images: a change of the domain moves whole blocks and hardly shows; images that come in runs
    do (`correlation`, one to LAGS images apart), and so do cameras that take turns and groups of
    images that are sent again (`far_correlation`, up to FAR_LAGS apart).
    """

    def __init__(self, window_images: int) -> None:
        self._rows = window_images - window_images % BLOCK
        self._ring: FloatArray | None = None  # made with the first, which says how many streams
        self._seen = 0

    def add(self, p_values: Sequence[float] | FloatArray) -> None:
        """The p-values of one sampled image, one per stream."""
        if self._ring is None:
            self._ring = np.zeros((self._rows, len(p_values)))
        self._ring[self._seen % self._rows] = p_values
        self._seen += 1

    @property
    def images(self) -> int:
        """How many images the correlation is of."""
        return min(self._seen, self._rows)

    @property
    def correlation(self) -> float | None:
        """The largest over the streams, about 0 for exchangeable images; None before a block."""
        return None if self.images < BLOCK else block_correlation(self._values())

    @property
    def far_correlation(self) -> float | None:
        """The mean of the streams, less what chance makes of it; None before a block."""
        return None if self.images < BLOCK else far_correlation(self._values())

    def clear(self) -> None:
        """Begin a new window."""
        self._seen = 0

    def to_state(self) -> list[list[float]]:
        """Everything, as JSON values."""
        return list(self._values().tolist())

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from `to_state`."""
        for p_values in state:
            self.add(p_values)

    def _values(self) -> FloatArray:
        """The oldest first."""
        if self._ring is None:
            return np.zeros((0, 0))
        if self._seen <= self._rows:
            return self._ring[: self._seen]
        oldest = self._seen % self._rows
        return np.concatenate([self._ring[oldest:], self._ring[:oldest]])


def block_correlation(values: FloatArray) -> float:
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
    products = [
        np.einsum("btk,btk->bk", centred[:, lag:], centred[:, :-lag]) for lag in range(1, LAGS + 1)
    ]
    return float((np.stack(products) / squares).mean(axis=1).max()) + 1 / BLOCK


def far_correlation(values: FloatArray) -> float:
    """Largest over lags of the columns' mean correlation LAGS to FAR_LAGS rows apart (N x K).

    It is less what chance makes of the largest of so many: below 0 for nearly all independent rows.

    >>> rng = np.random.default_rng(0)
    >>> far_correlation(rng.random((400, 7))) < 0
    True
    >>> groups = [np.tile(rng.random((40, 7)), (3, 1)) for _ in range(4)]
    >>> far_correlation(np.concatenate(groups)[:400]) > 0.4
    True
    >>> far_correlation(groups[0][:78]) > 0.4  # as soon as the second of a group has half come
    True
    """
    blocks = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK, values.shape[1])
    centred = blocks - blocks.mean(axis=1, keepdims=True)
    spread = np.maximum(np.sqrt((centred**2).mean(axis=1, keepdims=True)), 1e-6)
    # Every block has one vote here, too.
    flat = (centred / spread).reshape(-1, values.shape[1])
    lags = np.arange(LAGS + 1, min(FAR_LAGS, len(flat) - BLOCK) + 1)
    if not len(lags):
        return -1.0
    # All lags at once, by the Fourier transform, so long that none of them goes round; the mean
    # before going back.
    length = 2 * ((len(flat) + FAR_LAGS + 1) // 2)
    transformed = np.fft.rfft(np.ascontiguousarray(flat.T), length)
    products = np.fft.irfft((transformed.real**2 + transformed.imag**2).mean(axis=0))[lags]
    pairs = len(flat) - lags
    # Columns that say the same make the mean no surer: its variance is that of their correlations.
    alike = ((flat.T @ flat / len(flat)) ** 2).mean()
    return float((products / pairs - FAR_CHANCE * np.sqrt(alike / pairs)).max())


class Repeats:
    """How many images of the sampled stream were answered exactly as one before.

    Images that come again after the sampler's window, or changed too little for the model and too
    much for the perceptual hash. Only ever withdraws the promise: a sampler that looked at answers
    would choose its own evidence.

    >>> repeats = Repeats(back=3, window_images=4)
    >>> for answer in "abab":
    ...     repeats.add(answer)
    >>> repeats.share
    0.5
    """

    def __init__(self, *, back: int, window_images: int) -> None:
        self._back = back
        self._answers: deque[str] = deque()
        self._known: Counter[str] = Counter()  # the same, to look up
        self._repeated: deque[bool] = deque(maxlen=window_images)

    def add(self, answer: str) -> None:
        """The answer to one sampled image, in a form that is equal for equal ones."""
        self._repeated.append(answer in self._known)
        self._remember(answer)

    @property
    def images(self) -> int:
        """How many images the share is of."""
        return len(self._repeated)

    @property
    def share(self) -> float:
        """Of the images in the window; 0 before there are any."""
        return sum(self._repeated) / len(self._repeated) if self._repeated else 0.0

    def to_state(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"answers": list(self._answers), "repeated": list(map(int, self._repeated))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        for answer in state["answers"]:
            self._remember(answer)
        self._repeated.extend(map(bool, state["repeated"]))

    def _remember(self, answer: str) -> None:
        self._answers.append(answer)
        self._known[answer] += 1
        if len(self._answers) > self._back:
            _forget(self._known, self._answers.popleft())


def _forget(known: Counter[str], its: str) -> None:
    """Take one off its count."""
    left = known[its] - 1
    if left:
        known[its] = left
    else:
        known.pop(its)  # several times as fast as to delete it


def new_sampler(settings: MonitoringSettings) -> Sampler:
    """The rule that production and reference are sampled by."""
    return Sampler(
        window_images=settings.sample_window_images,
        near_bits=settings.sample_near_bits,
        client_images=settings.sample_client_images,
        client_seconds=settings.sample_client_seconds,
    )


def usual_sampler() -> Sampler:
    """That rule by the defaults of the settings, whatever this process is set to."""
    return new_sampler(MonitoringSettings.model_construct())
