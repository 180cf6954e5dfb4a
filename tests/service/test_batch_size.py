"""The batch size is the largest that pays, and its batch is short enough to wait for."""

from __future__ import annotations

import pytest

from service.batch_size import choose_batch_size, take_over


class Engine:
    """Takes so long for a batch, and remembers the sizes."""

    def __init__(self, fixed_seconds: float, seconds_an_image: float) -> None:
        self.fixed, self.each = fixed_seconds, seconds_an_image
        self.now = 0.0
        self.sizes: list[int] = []

    def run(self, size: int) -> None:
        self.sizes.append(size)
        self.now += self.fixed + self.each * size


@pytest.mark.parametrize(
    ("fixed", "each", "chosen"),
    [
        (0.010, 0.0001, 64),  # a GPU: the larger the better
        (0.0, 0.0002, 64),  # no better in batches, and no worse
        (0.002, 0.010, 8),  # 8 take 82 ms; 16 would take too long
        (0.020, 0.020, 2),  # slow: 2 take 60 ms, and 4 might take 120
        (1.0, 1.0, 1),  # one alone takes too long already
    ],
)
def test_the_largest_size_near_the_best_pace_is_chosen(fixed, each, chosen):
    engine = Engine(fixed, each)
    assert choose_batch_size(engine.run, clock=lambda: engine.now) == chosen


def test_a_size_that_would_take_too_long_is_never_run():
    engine = Engine(0.002, 0.010)
    choose_batch_size(engine.run, clock=lambda: engine.now)
    assert max(engine.sizes) == 8


class Thrashing(Engine):
    """Twice as slow from a size on."""

    def __init__(self, least: int, most: int = 1_000) -> None:
        super().__init__(0.0, 0.001)
        self.range = range(least, most + 1)

    def run(self, size: int) -> None:
        self.sizes.append(size)
        self.now += self.each * size * (2 if size in self.range else 1)


def test_two_sizes_in_a_row_that_are_slower_end_the_search():
    engine = Thrashing(8)
    assert choose_batch_size(engine.run, clock=lambda: engine.now) == 4
    assert max(engine.sizes) == 16


def test_one_slow_size_among_good_ones_is_taken_for_noise():
    engine = Thrashing(2, 2)
    assert choose_batch_size(engine.run, clock=lambda: engine.now) == 64


class Disturbed(Engine):
    """For a while everything takes a fifth longer: another guest has the core."""

    def __init__(self, since: int, until: int) -> None:
        super().__init__(0.001, 0.0045)
        self.disturbed = range(since, until)

    def run(self, size: int) -> None:
        slower = 1.2 if len(self.sizes) in self.disturbed else 1
        self.sizes.append(size)
        self.now += slower * (self.fixed + self.each * size)


@pytest.mark.parametrize("since", range(0, 20, 2))
def test_a_moment_in_which_all_is_slower_chooses_nothing(since):
    engine = Disturbed(since, since + 6)
    assert choose_batch_size(engine.run, clock=lambda: engine.now) == 16


def test_a_size_that_cannot_be_computed_ends_the_search_and_one_image_must_be():
    engine = Engine(0.0, 0.0001)

    def run(size: int) -> None:
        if size > 8:
            raise RuntimeError("out of memory")
        engine.run(size)

    assert choose_batch_size(run, clock=lambda: engine.now) == 8
    with pytest.raises(RuntimeError, match="out of memory"):
        choose_batch_size(lambda size: run(9), clock=lambda: engine.now)


@pytest.mark.parametrize(("measured", "sizes"), [(1, [1]), (8, [1, 2, 4, 8])])
def test_a_size_that_is_taken_over_has_run_once_with_all_below_it(measured, sizes):
    engine = Engine(1.0, 1.0)  # however slow
    assert take_over(engine.run, measured) == measured
    assert engine.sizes == sizes


def test_a_size_that_cannot_be_computed_is_not_taken_over_and_one_image_must_be():
    def run(size: int) -> None:
        if size > 8:
            raise RuntimeError("out of memory")

    assert take_over(run, 32) == 8
    with pytest.raises(RuntimeError, match="out of memory"):
        take_over(lambda size: run(9), 32)
