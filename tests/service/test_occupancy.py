"""What is inside the door is counted, bounded, and given back."""

from __future__ import annotations

import pytest

from service.errors import RequestError
from service.occupancy import Occupancy


def an_occupancy(**given: float) -> Occupancy:
    speed = given.pop("images_per_second", 2.0)
    limits = {"most_images": 10, "most_bytes": 100, **given}
    return Occupancy(images_per_second=lambda: speed, **limits)


def test_a_visit_gives_everything_back_also_after_an_error():
    occupancy = an_occupancy()
    with pytest.raises(ValueError, match="broken"), occupancy.visit() as visit:
        visit.take_images(3)
        visit.take_bytes(50)
        assert (occupancy.images, occupancy.bytes) == (3, 50)
        raise ValueError("broken")
    assert (occupancy.images, occupancy.bytes) == (0, 0)


def test_images_beyond_the_limit_are_refused_with_the_time_to_drain():
    occupancy = an_occupancy()
    with occupancy.visit() as first, occupancy.visit() as second:
        first.take_images(8)
        with pytest.raises(RequestError) as refusal:
            second.take_images(3)
        assert refusal.value.status == 429
        assert refusal.value.headers["Retry-After"] == "4"
        second.take_images(2)
    assert occupancy.images == 0


def test_bytes_beyond_the_limit_are_refused():
    occupancy = an_occupancy()
    with occupancy.visit() as first, occupancy.visit() as second:
        first.take_bytes(60)
        with pytest.raises(RequestError) as refusal:
            second.take_bytes(41)
        assert refusal.value.code == "overloaded"
        second.take_bytes(40)
