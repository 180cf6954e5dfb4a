"""Evidence that a stream of images has drifted, and an alarm with a stated false-alarm rate.

A conformal e-detector. For every stream (outlier score, confidence, two principal components,
brightness, sharpness, predicted class) and every sampled image:

1. *Conformal p-value.* The value is compared with a bag of all values before it, which starts
   from the calibration split: p is the share of the bag above the value, ties broken at random,
   so that p is uniform and independent of the past as long as nothing changed (Vovk, Gammerman and
   Shafer 2005, "Algorithmic Learning in a Random World"). The bag holds integer counts over bins
   whose edges come from the fit split, so memory is constant and nothing is thrown away:
   thinning the bag would break the p-values.
2. *Bet.* A density over p, estimated from past p-values alone, gives the factor e; if nothing
   changed its mean is 1 whatever the density.
3. *Shiryaev-Roberts.* R = e (1 + R). Less the count of images it is then a martingale, so by
   Doob's inequality and a union over the K streams the chance that any R reaches K c within m
   images is at most m / c. That is the promise, anew after every reset.

After a real drift the bag holds images of another domain, and clean images would look drifted
against it (docs/drift.md has figures).
So a reset can take bags and bets back to a mark from before the drift, as if the images since had
never come; then the promise is for images exchangeable with those that stay. (Bets must not
remember p-values against a bag that they are played against once more: they would know its faults.)

What it cannot see: slow drift is absorbed by the growing bag, and after a long quiet time a
change takes longer to show. What breaks it: images that depend on each other (`sampling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

STREAMS = (
    "outlier_score",
    "confidence",
    "component_0",
    "component_1",
    "brightness",
    "sharpness",
    "predicted_class",
)

BET_BINS = 20
BET_MEMORIES = (50, 500)  # p-values that each of the histograms of past p-values remembers
BET_UNIFORM = 0.05  # share of the uniform density in every bet: no bet loses more than 95 %
MARK_IMAGES = 500  # sampled images between two marks that the bags can go back to
MARKS_KEPT = 4
BET_PRIOR = 10.0  # past p-values that the uniform density counts for in a histogram
_AT_ONCE = 64  # images that are compared with each other, each with each


class Evidence:
    """The evidence of all streams of one model version.

    `edges` and `counts` are given per stream: bin edges in rising order, and how many of the
    calibration split lie in each bin (one more than there are edges). `seed` draws the ties.

    >>> edges = {"brightness": np.linspace(0.1, 0.9, 9)}
    >>> counts = {"brightness": np.full(10, 100)}
    >>> evidence = Evidence(edges, counts, seed=0)
    >>> for _ in range(100):
    ...     p_values = evidence.add({"brightness": 0.95})
    >>> bool(evidence.log10["brightness"] > 6)
    True
    """

    def __init__(
        self,
        edges: Mapping[str, NDArray[Any]],
        counts: Mapping[str, NDArray[np.integer]],
        *,
        seed: int,
    ) -> None:
        self.streams = tuple(edges)
        for name in self.streams:
            if len(counts[name]) != len(edges[name]) + 1:
                raise ValueError(
                    f"stream {name}: {len(edges[name])} edges make {len(edges[name]) + 1} bins,"
                    f" and {len(counts[name])} counts were given"
                )
        self._edges = [np.asarray(edges[name], np.float64) for name in self.streams]
        # Streams with fewer bins leave the last ones empty for ever.
        bins = max(map(len, self._edges)) + 1
        self._counts = np.zeros((len(self.streams), bins), np.int64)
        for row, name in enumerate(self.streams):
            self._counts[row, : len(counts[name])] = counts[name]
        self._rows = np.arange(len(self.streams))
        self._random = np.random.default_rng(seed)
        # One histogram of past p-values per stream and memory.
        shape = (len(self.streams), len(BET_MEMORIES), BET_BINS)
        self._past = np.zeros(shape)
        keep = 1 - 1 / np.array(BET_MEMORIES, np.float64)[None, :, None]
        self._keep = np.broadcast_to(keep, shape).ravel()
        self._first_bins = np.arange(0, self._past.size, BET_BINS).reshape(shape[:2])
        self._log_evidence = np.full(len(self.streams), -np.inf)  # log R, natural
        self.images = 0  # since the last reset
        self._seen = 0  # in the bags beside the calibration split, or taken out of them again
        # (seen by then, counts, past): the start, and the newest ones.
        self._marks = [(0, self._counts.copy(), self._past.copy())]
        # (seen by then, counts) at the last reset, or at the drift after it.
        self._since = (0, self._counts.copy())

    @classmethod
    def from_reference(
        cls,
        reference: Mapping[str, NDArray[np.floating]],
        edges: Mapping[str, NDArray[np.floating]],
        *,
        seed: int,
    ) -> Self:
        """Start the bags from the calibration split's values; `edges` from the fit split."""
        counts = {
            name: np.bincount(
                np.searchsorted(edges[name], reference[name], side="right"),
                minlength=len(edges[name]) + 1,
            )
            for name in edges
        }
        return cls(edges, counts, seed=seed)

    def add(self, values: Mapping[str, float], *, mark: bool = True) -> list[float]:
        """Take one sampled image; gives its p-values, one per stream in the order of `streams`.

        `mark` says whether a mark to go back to may be made here. Of many images at once `bet` and
        `settle` make the same, several times as fast.
        """
        p_values, log_bets = self.bet({name: np.array([values[name]]) for name in self.streams})
        self.settle(log_bets[0])
        if mark:
            self.mark_if_due()
        return list(p_values[0].tolist())

    def bet(self, values: Mapping[str, NDArray[np.floating]]) -> tuple[FloatArray, FloatArray]:
        """p-values and log e (natural) of N sampled images in their order, N x K each.

        Bags and histograms move on, and hold all N afterwards; each image was held to those before
        it alone, so that it makes no difference in how many calls they come. The bets have to be
        settled, one after the other.
        """
        places = np.column_stack(
            [
                edges.searchsorted(values[name], side="right")
                for name, edges in zip(self.streams, self._edges, strict=True)
            ]
        )
        pieces = [
            self._bet_on(places[start : start + _AT_ONCE])
            for start in range(0, len(places), _AT_ONCE)
        ]
        if not pieces:
            return (np.zeros((0, len(self.streams))),) * 2
        p_values, log_bets = zip(*pieces, strict=True)
        return np.concatenate(p_values), np.concatenate(log_bets)

    def settle(self, log_bets: FloatArray) -> None:
        """Take the bets on one image, K, into the evidence."""
        np.logaddexp(0, self._log_evidence, out=self._log_evidence)
        self._log_evidence += log_bets
        self.images += 1

    @property
    def images_until_mark(self) -> int:
        """After so many images more a mark to go back to is due."""
        return MARK_IMAGES - self._seen % MARK_IMAGES

    def mark_if_due(self) -> None:
        """Remember bags and histograms as they are; only after every so many images."""
        if self._seen % MARK_IMAGES == 0:
            self._marks.append((self._seen, self._counts.copy(), self._past.copy()))
            self._marks = [self._marks[0], *self._marks[1:][-MARKS_KEPT:]]

    def held(self, stream: str) -> list[int]:
        """How many images the bag of a stream holds, by bin."""
        place = self.streams.index(stream)
        return list(self._counts[place, : len(self._edges[place]) + 1].tolist())

    @property
    def first_images(self) -> int:
        """How many images the bags began with."""
        return int(self._marks[0][1][0].sum())

    def note_drift(self) -> None:
        """Images from here on are of the drifted domain: what a new normal would be of.

        Said again before a reset it changes nothing.
        """
        since, _ = self._since
        if self._seen - since == self.images:
            self._since = self._seen, self._counts.copy()

    @property
    def log10(self) -> dict[str, float]:
        """log10 of R per stream; minus infinity before the first image."""
        found = self._log_evidence / math.log(10)
        return dict(zip(self.streams, found.tolist(), strict=True))

    @property
    def strongest(self) -> tuple[str, float]:
        """The stream with the most evidence, and its log10."""
        place = int(self._log_evidence.argmax())
        return self.streams[place], float(self._log_evidence[place]) / math.log(10)

    def alarm_line(self, false_alarm_images: float) -> float:
        """log10 of K c: the evidence of one stream at which an alarm is raised."""
        return math.log10(len(self.streams) * false_alarm_images)

    def reset(self, take_back: int | None = None, *, new_normal: bool = False) -> None:
        """Forget the evidence; the promise begins anew.

        Bags and bets are kept, or, given a number of sampled images to `take_back`, go back to
        the newest mark that is at least so old, at last to the calibration split. With
        `new_normal` the bags hold the images since the drift alone (`note_drift`; without one
        those since the last reset), and the bets begin anew.
        """
        self._log_evidence[:] = -np.inf
        self.images = 0
        if new_normal:
            self._counts = self._counts - self._since[1]
            self._past = np.zeros_like(self._past)
            self._marks = [(self._seen, self._counts.copy(), self._past.copy())]
        elif take_back is not None:
            wanted = self._seen - take_back
            self._marks = [self._marks[0], *(its for its in self._marks[1:] if its[0] <= wanted)]
            _, counts, past = self._marks[-1]
            self._counts, self._past = counts.copy(), past.copy()
        self._since = self._seen, self._counts.copy()

    def to_state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "streams": list(self.streams),
            "edges": [edges.tolist() for edges in self._edges],
            "counts": [
                counts[: len(edges) + 1].tolist()
                for counts, edges in zip(self._counts, self._edges, strict=True)
            ],
            "past": self._past.tolist(),
            # JSON knows no infinity.
            "log_evidence": [None if math.isinf(its) else its for its in self._log_evidence],
            "images": self.images,
            "seen": self._seen,
            "marks": [[seen, counts.tolist(), past.tolist()] for seen, counts, past in self._marks],
            "since": [self._since[0], self._since[1].tolist()],
            "random": self._random.bit_generator.state,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_state`; goes on as if it had never stopped."""
        names = state["streams"]
        edges = dict(zip(names, map(np.asarray, state["edges"]), strict=True))
        counts = dict(zip(names, map(np.asarray, state["counts"]), strict=True))
        evidence = cls(edges, counts, seed=0)
        evidence._past = np.asarray(state["past"], np.float64).reshape(evidence._past.shape)
        evidence._log_evidence = np.array(
            [-np.inf if its is None else its for its in state["log_evidence"]], np.float64
        )
        evidence.images, evidence._seen = int(state["images"]), int(state["seen"])
        shapes = evidence._counts.shape, evidence._past.shape
        evidence._marks = [
            (
                int(seen),
                np.asarray(counts, np.int64).reshape(shapes[0]),
                np.asarray(past, np.float64).reshape(shapes[1]),
            )
            for seen, counts, past in state["marks"]
        ]
        # States of before there were new normals lack it: the last reset's bags are not known.
        seen, counts = state.get("since", evidence._marks[0][:2])
        evidence._since = int(seen), np.asarray(counts, np.int64).reshape(shapes[0])
        evidence._random.bit_generator.state = state["random"]
        return evidence

    def _bet_on(self, places: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        p_values = self._p_values(places)
        log_bets = self._log_bets(p_values)
        self._seen += len(places)
        return p_values, log_bets

    def _p_values(self, places: NDArray[np.intp]) -> FloatArray:
        """Smoothed conformal p-values of images in the bins `places`, N x K, which join the bags.

        Above and beside each image lies what the bag held before all of them, and those of them
        that came before it.
        """
        earlier = np.tri(len(places), k=-1, dtype=bool)[:, :, None]
        held = self._counts[self._rows, places]
        at_least = self._counts[:, ::-1].cumsum(axis=1)[:, ::-1][self._rows, places]
        above = at_least - held + (earlier & (places > places[:, None])).sum(axis=1)
        # The value itself is one of those it ties with.
        beside = held + 1 + (earlier & (places == places[:, None])).sum(axis=1)
        in_bag = self._counts.sum(axis=1) + np.arange(1, len(places) + 1)[:, None]
        np.add.at(self._counts, (self._rows, places), 1)
        ties = self._random.random(places.shape) * beside
        return np.asarray((above + ties) / in_bag)

    def _log_bets(self, p_values: FloatArray) -> FloatArray:
        """log e of images with these p-values, N x K, by densities that know only the past."""
        images, streams = p_values.shape
        places = np.minimum((p_values * BET_BINS).astype(np.intp), BET_BINS - 1)
        # Histograms as each image comes, and after the last; flat, since NumPy is slow by the call.
        past = np.empty((images + 1, self._past.size))
        past[0] = self._past.ravel()
        bins = (self._first_bins + places[:, :, None]).reshape(images, -1)
        for before, after, its in zip(past, past[1:], bins, strict=False):
            np.multiply(before, self._keep, out=after)
            after[its] += 1
        shape = (images, streams, len(BET_MEMORIES))
        seen = np.take_along_axis(past[:-1], bins, axis=1).reshape(shape) + BET_PRIOR / BET_BINS
        sizes = past[:-1].reshape(*shape, BET_BINS).sum(axis=3) + BET_PRIOR
        densities = (BET_BINS * seen / sizes).mean(axis=2)
        self._past = past[-1].reshape(self._past.shape).copy()
        return np.asarray(np.log(BET_UNIFORM + (1 - BET_UNIFORM) * densities))
