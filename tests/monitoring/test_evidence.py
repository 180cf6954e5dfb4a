"""The alarm keeps its promise, sees change, and goes on after a restart as if nothing had been."""

from __future__ import annotations

import json
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import kstest, poisson

from monitoring.evidence import STREAMS, Evidence

EDGES = {name: np.linspace(-2, 2, 40) for name in STREAMS}


def fresh(calibration: int = 1000, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    reference = {name: rng.normal(size=calibration) for name in STREAMS}
    return Evidence.from_reference(reference, EDGES, seed=seed)


def values(rng: np.random.Generator, **shifts: float) -> dict[str, float]:
    return {name: float(rng.normal() + shifts.get(name, 0.0)) for name in STREAMS}


def largest(evidence: Evidence) -> float:
    return max(evidence.log10.values())


@pytest.mark.parametrize("calibration", [0, 5, 1000])
def test_p_values_are_uniform_whatever_the_bag(calibration):
    evidence = fresh(calibration)
    rng = np.random.default_rng(1)
    found = np.array([evidence.add(values(rng)) for _ in range(3000)])
    for stream in range(len(STREAMS)):
        assert kstest(found[:, stream], "uniform").pvalue > 0.001
    # No p-value tells anything of the next.
    pairs = np.corrcoef(found[:-1].ravel(), found[1:].ravel())
    assert abs(pairs[0, 1]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [200, 1000])
def test_false_alarms_do_not_refute_the_promise(calibration):
    """Runs of m = c / 10 images: at most one in ten may raise an alarm."""
    c, images, runs = 1_000.0, 100, 200
    alarms = 0
    for run in range(runs):
        evidence = fresh(calibration, seed=run)
        rng = np.random.default_rng(10_000 + run)
        for _ in range(images):
            evidence.add(values(rng))
            if largest(evidence) >= evidence.alarm_line(c):
                alarms += 1
                break
    assert poisson.sf(alarms - 1, runs * images / c) > 0.001, f"{alarms} alarms in {runs} runs"


@pytest.mark.parametrize("stream", STREAMS)
def test_a_change_in_any_stream_raises_the_alarm(stream):
    evidence = fresh()
    rng = np.random.default_rng(2)
    for _ in range(500):
        evidence.add(values(rng))
    line = evidence.alarm_line(1e5)
    assert largest(evidence) < line
    for _ in range(100):
        evidence.add(values(rng, **{stream: 1.5}))
    assert evidence.log10[stream] == largest(evidence) > line


def test_evidence_is_no_number_too_large():
    evidence = fresh()
    for _ in range(3000):
        evidence.add(dict.fromkeys(STREAMS, 50.0 if evidence.images % 2 else -50.0))
    assert all(math.isfinite(value) for value in evidence.log10.values())
    assert largest(evidence) > 300  # past what a float holds


def test_the_bag_forgets_nothing_in_constant_memory():
    evidence = fresh(1000)
    rng = np.random.default_rng(3)
    sizes = []
    for _ in range(2):
        for _ in range(2500):  # by then there are as many marks as there ever are
            evidence.add(values(rng))
        sizes.append(len(json.dumps(evidence.to_state())))
    state = evidence.to_state()
    assert [sum(counts) for counts in state["counts"]] == [6000] * len(STREAMS)
    assert sizes[1] < 1.1 * sizes[0]


def test_a_reset_clears_the_evidence_and_keeps_the_bag():
    evidence = fresh()
    rng = np.random.default_rng(4)
    for _ in range(200):
        evidence.add(values(rng, brightness=3.0))
    counts = evidence.to_state()["counts"]
    evidence.reset()
    assert (largest(evidence), evidence.images) == (-math.inf, 0)
    assert evidence.to_state()["counts"] == counts


def test_it_goes_on_from_its_state_exactly():
    one = fresh()
    rng = np.random.default_rng(5)
    for _ in range(137):
        one.add(values(rng))
    other = Evidence.from_state(json.loads(json.dumps(one.to_state())))
    for _ in range(137):
        its = values(rng)
        assert one.add(its) == other.add(its)
    assert one.log10 == other.log10


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.lists(st.integers(0, 90), min_size=1, max_size=4))
def test_it_makes_no_difference_how_many_images_come_at_once(sizes):
    """Not to the last bit, whether one at a time or many, with a restart between any two."""
    one, other = fresh(50), fresh(50)
    rows = np.random.default_rng(6).normal(size=(sum(sizes), len(STREAMS)))
    expected = [one.add(dict(zip(STREAMS, row, strict=True)), mark=False) for row in rows.tolist()]
    found = []
    for its in np.split(rows, np.cumsum(sizes)[:-1]):
        p_values, log_bets = other.bet(dict(zip(STREAMS, its.T, strict=True)))
        for row in log_bets:
            other.settle(row)
        found += p_values.tolist()
        other = Evidence.from_state(json.loads(json.dumps(other.to_state())))
    assert found == expected
    assert other.to_state() == one.to_state()


def test_counts_that_do_not_fit_the_edges_are_refused():
    counts = {name: np.zeros(40, int) for name in STREAMS}
    with pytest.raises(ValueError, match="40 edges make 41 bins, and 40 counts"):
        Evidence(EDGES, counts, seed=0)


def test_a_reset_can_take_the_bags_back_to_before_the_drift():
    """Clean images are not held to drifted ones, as they would be if those stayed."""
    alarms = {}
    for take_back in (1_300, None):
        evidence, rng = fresh(), np.random.default_rng(1)
        for _ in range(1_000):
            evidence.add(values(rng))
        for _ in range(300):
            evidence.add(values(rng, brightness=6.0))
        assert largest(evidence) > evidence.alarm_line(1e5)
        evidence.reset(take_back)
        alarms[take_back] = False
        for _ in range(3_000):
            evidence.add(values(rng))
            alarms[take_back] |= largest(evidence) >= evidence.alarm_line(1e5)
    assert alarms == {1_300: False, None: True}


@pytest.mark.parametrize(("take_back", "left"), [(0, 1500), (1, 1500), (600, 1000), (5000, 0)])
def test_bags_go_back_to_the_newest_mark_that_is_old_enough(take_back, left):
    evidence, rng = fresh(calibration=100), np.random.default_rng(1)
    for _ in range(1_700):
        evidence.add(values(rng))
    again = Evidence.from_state(json.loads(json.dumps(evidence.to_state())))
    for its in (evidence, again):
        its.reset(take_back)
        held = its.to_state()["counts"]
        assert [sum(counts) for counts in held] == [100 + left] * len(STREAMS)
        assert its.images == 0
