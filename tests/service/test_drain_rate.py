"""How fast a queue empties is measured, and tells clients when to come back."""

from __future__ import annotations

import pytest

from service.drain_rate import WINDOW_SECONDS, DrainRate
from tests.service.clock import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def drain(clock):
    return DrainRate(clock=clock)


def play(drain, clock, *, batches: int, size: int, seconds: float) -> None:
    for _ in range(batches):
        clock.now += seconds
        drain.leave(size)


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.02), (8, 0.1), (8, 2.0)])
def test_a_steady_rate_is_found(drain, clock, size, seconds):
    drain.enter(10_000)
    play(drain, clock, batches=100, size=size, seconds=seconds)
    assert drain.per_second() == pytest.approx(size / seconds)


def test_entering_between_does_not_change_it(drain, clock):
    drain.enter(10_000)
    for _ in range(2_000):
        clock.now += 0.005
        drain.enter(1)
        clock.now += 0.005
        drain.leave(1)
    assert drain.per_second() == pytest.approx(100, rel=0.02)


def test_idle_time_does_not_slow_it(drain, clock):
    for _ in range(50):
        clock.now += 60
        drain.enter(1)
        clock.now += 0.1
        drain.leave(1)
    assert drain.per_second() == pytest.approx(10)


def test_a_change_is_seen_within_the_window(drain, clock):
    drain.enter(100_000)
    play(drain, clock, batches=1_000, size=1, seconds=0.01)
    play(drain, clock, batches=int(3 * WINDOW_SECONDS), size=1, seconds=1.0)
    assert 1 < drain.per_second() < 8  # of 100 before and 1 since


def test_a_queue_that_stands_still_gets_slower(drain, clock):
    drain.enter(1_000)
    play(drain, clock, batches=100, size=1, seconds=0.1)
    before = drain.seconds_until_empty(longest=10_000)
    clock.now += 20
    assert before == 90
    assert drain.seconds_until_empty(longest=10_000) > 4 * before


@pytest.mark.parametrize(
    ("inside", "seconds"), [(1, 1), (10, 1), (11, 2), (95, 10), (1_000, 30), (0, 1)]
)
def test_seconds_are_whole_at_least_one_and_at_most_the_longest(drain, clock, inside, seconds):
    drain.enter(500 + inside)
    play(drain, clock, batches=500, size=1, seconds=0.1)
    assert drain.seconds_until_empty(longest=29.5) == seconds


def test_before_anything_has_left_one_second_is_said(drain, clock):
    drain.enter(1_000)
    clock.now += 3
    assert drain.per_second() is None
    assert drain.seconds_until_empty(longest=60) == 1
