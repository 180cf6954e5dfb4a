"""The steps of the proof in docs/drift.md, each tried exactly: no figure here is an estimate.

Exchangeable means that every order is as likely, so of few values all orders are gone through.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations, product
from math import prod

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from monitoring.evidence import BET_BINS, Evidence

# Values that tie, and some that do not; edges anywhere, between equal values or beyond all of them.
FEW = st.lists(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.5, -4.0]), min_size=3, max_size=4)
EDGES = st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 1.0, 2.0, 9.0]), max_size=4, unique=True)
HISTORY = st.lists(st.floats(0, 0.999), min_size=1, max_size=40)


class Ties:
    """Stands for the generator: all ties fall alike, at the lower or the upper end."""

    def __init__(self, share: float) -> None:
        self._share = share

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self._share)


def p_values(calibration: Sequence[float], images: Sequence[float], edges, ties: float):
    """p-values of the images, N, where every tie falls so."""
    edges = np.array(sorted(edges))
    reference = {"brightness": np.array(calibration, float)}
    evidence = Evidence.from_reference(reference, {"brightness": edges}, seed=0)
    evidence._random = Ties(ties)
    found, _ = evidence.bet({"brightness": np.array(images, float)})
    return found[:, 0]


@hypothesis.settings(max_examples=25)
@hypothesis.given(FEW, EDGES, st.integers(0, 2))
def test_p_values_of_exchangeable_images_are_uniform_and_independent(values, edges, calibration):
    """The density of all p-values together, over all orders of the values, is 1 everywhere.

    A random tie spreads a p-value evenly between its ends; those of the n-th in the bag are
    multiples of 1 / n, so the density is constant on cells of that size.
    """
    sizes = range(calibration + 1, len(values) + 1)  # of the bag, with each image
    density = dict.fromkeys(product(*(range(size) for size in sizes)), Fraction(0))
    orders = list(permutations(values))
    for order in orders:
        split = order[:calibration], order[calibration:]
        low, high = (p_values(*split, edges, ties) for ties in (0.0, 1.0))
        ends = [
            (round(one * size), round(other * size))
            for one, other, size in zip(low, high, sizes, strict=True)
        ]
        height = prod(
            Fraction(size, end - start) for (start, end), size in zip(ends, sizes, strict=True)
        )
        for cell in product(*(range(*its) for its in ends)):
            density[cell] += height / len(orders)
    assert set(density.values()) == {Fraction(1)}


@hypothesis.settings(max_examples=25)
@hypothesis.given(HISTORY)
def test_a_bet_is_a_density_whatever_came_before(history):
    """So its mean is 1 for a uniform p-value: it is placed before that is known, and is fair."""
    edges = {"brightness": np.array([0.5])}
    evidence = Evidence(edges, {"brightness": np.array([5, 5])}, seed=0)
    evidence._log_bets(np.array(history).reshape(-1, 1))
    state = json.dumps(evidence.to_state())
    bets = []
    for place in range(BET_BINS):
        again = Evidence.from_state(json.loads(state))
        bets.append(np.exp(again._log_bets(np.array([[(place + 0.5) / BET_BINS]])))[0, 0])
    assert np.mean(bets) == pytest.approx(1, abs=1e-12)
    assert min(bets) >= 0.05


@hypothesis.given(st.lists(st.floats(0.05, 19), min_size=1, max_size=30))
def test_shiryaev_roberts_sums_the_bets_from_every_start(factors):
    """R of n images is the sum over j of e_j ... e_n, so its mean is n where each e has mean 1."""
    edges = {"brightness": np.array([0.5])}
    evidence = Evidence(edges, {"brightness": np.array([5, 5])}, seed=0)
    for factor in factors:
        evidence.settle(np.log([factor]))
    expected = sum(prod(factors[start:]) for start in range(len(factors)))
    assert 10 ** evidence.log10["brightness"] == pytest.approx(expected, rel=1e-9)


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 300), st.integers(0, 300), st.booleans())
def test_it_goes_on_exactly_from_a_state_taken_anywhere(before, after, drifted):
    """Past a mark, a drift and a new normal, too."""
    rng = np.random.default_rng(before)
    edges = {"brightness": np.linspace(-2, 2, 9), "predicted_class": np.array([0.5])}
    counts = {"brightness": np.arange(10), "predicted_class": np.array([3, 0])}
    one = Evidence(edges, counts, seed=before)
    rows = rng.normal(size=(before + 300 + after, 2))
    columns = dict(zip(edges, rows.T, strict=True))

    def play(its: Evidence, start: int, end: int) -> None:
        for row in its.bet({name: values[start:end] for name, values in columns.items()})[1]:
            its.settle(row)
        its.mark_if_due()

    play(one, 0, before)
    one.note_drift()
    play(one, before, before + 300)
    other = Evidence.from_state(json.loads(json.dumps(one.to_state())))
    for its in (one, other):
        its.reset(new_normal=drifted)
        play(its, before + 300, len(rows))
    assert one.to_state() == other.to_state()
    held = 300 + after + (0 if drifted else before + 45)
    assert sum(one.held("brightness")) == held
