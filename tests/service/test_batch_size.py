"""The batch size is the largest that pays, and its batch is short enough to wait for."""

from __future__ import annotations

import pytest

from service.batch_size import choose_batch_size


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


def test_sizes_that_are_slower_end_the_search():
    class Thrashing(Engine):
        def run(self, size: int) -> None:
            super().run(size if size < 16 else 2 * size)

    engine = Thrashing(0.0, 0.0001)
    assert choose_batch_size(engine.run, clock=lambda: engine.now) == 8
    assert max(engine.sizes) == 2 * 16
