"""What is inside the door is counted, bounded, and given back."""

from __future__ import annotations

import pytest

from service.errors import RequestError
from service.occupancy import Occupancy


class Clock:
    """Seconds that only the test lets pass."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def an_occupancy(clock: Clock | None = None) -> Occupancy:
    return Occupancy(most_images=10, most_bytes=100, longest_seconds=15, clock=clock or Clock())


def test_a_visit_gives_everything_back_also_after_an_error():
    occupancy = an_occupancy()
    with pytest.raises(ValueError, match="broken"), occupancy.visit() as visit:
        visit.take_images(3)
        visit.take_bytes(50)
        assert (occupancy.images, occupancy.bytes) == (3, 50)
        raise ValueError("broken")
    assert (occupancy.images, occupancy.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("seconds_an_image", "retry_after"), [(0.01, "1"), (0.5, "4"), (0.7, "6"), (100, "15")]
)
def test_images_beyond_the_limit_are_refused_with_the_time_to_drain(seconds_an_image, retry_after):
    clock = Clock()
    occupancy = an_occupancy(clock)
    for _ in range(200):
        with occupancy.visit() as visit:
            visit.take_images(1)
            clock.now += seconds_an_image
    with occupancy.visit() as first, occupancy.visit() as second:
        first.take_images(8)
        with pytest.raises(RequestError) as refusal:
            second.take_images(3)
        assert (refusal.value.status, refusal.value.shed) == (429, "queue_full")
        assert refusal.value.headers["Retry-After"] == retry_after
        second.take_images(2)
    assert occupancy.images == 0


def test_refusals_are_no_sign_of_how_fast_images_are_answered():
    clock = Clock()
    occupancy = an_occupancy(clock)
    for _ in range(200):
        with occupancy.visit() as visit:
            visit.take_images(1)
            clock.now += 0.5

    def retry_after() -> str:
        with pytest.raises(RequestError) as refusal, occupancy.visit() as visit:
            visit.take_images(1)
            clock.now += 0.001
            visit.take_images(10)
        return refusal.value.headers["Retry-After"]

    with occupancy.visit() as first:
        first.take_images(8)
        told = [retry_after() for _ in range(100)]
    assert told[0] == told[-1] != "1"


def test_bytes_beyond_the_limit_are_refused():
    occupancy = an_occupancy()
    with occupancy.visit() as first, occupancy.visit() as second:
        first.take_bytes(60)
        with pytest.raises(RequestError) as refusal:
            second.take_bytes(41)
        assert (refusal.value.code, refusal.value.shed) == ("overloaded", "memory_full")
        second.take_bytes(40)
