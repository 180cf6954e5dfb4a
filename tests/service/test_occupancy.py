"""What is inside the door is counted, bounded, and given back."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RequestError
from service.occupancy import Occupancy
from tests.service.clock import Clock


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
    ("seconds_an_image", "retry_after"), [(0.01, "1"), (0.5, "4"), (0.7, "5"), (100, "15")]
)
def test_images_beyond_the_limit_are_refused_with_the_time_to_drain(seconds_an_image, retry_after):
    clock = Clock()
    occupancy = an_occupancy(clock)
    for _ in range(200):
        with occupancy.visit() as visit:
            visit.take_images(1)
            clock.now += seconds_an_image
    with occupancy.visit("first") as first, occupancy.visit("second") as second:
        first.take_images(7)
        with pytest.raises(RequestError) as refusal:
            second.take_images(4)
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
        first.take_images(7)
        told = [retry_after() for _ in range(100)]
    assert told[0] == told[-1] != "1"


def test_bytes_beyond_the_limit_are_refused():
    occupancy = an_occupancy()
    with occupancy.visit("first") as first, occupancy.visit("second") as second:
        first.take_bytes(60)
        with pytest.raises(RequestError) as refusal:
            second.take_bytes(41)
        assert (refusal.value.code, refusal.value.shed) == ("overloaded", "memory_full")
        second.take_bytes(40)


def test_one_client_cannot_take_all_the_room():
    occupancy = Occupancy(most_images=256, most_bytes=100, longest_seconds=15)
    with ExitStack() as forms, occupancy.visit("shop") as single:
        for _ in range(3):
            forms.enter_context(occupancy.visit("flood")).take_images(64)
        form = forms.enter_context(occupancy.visit("flood"))
        form.take_images(1)
        with pytest.raises(RequestError, match="193 images, at most 256, and 193 images are yours"):
            form.take_images(63)
        single.take_images(63)
        assert occupancy.refusal("another").shed == "queue_full"
    assert (occupancy.images, occupancy._held) == (0, {})


def test_forms_of_a_client_do_not_keep_its_single_images_out():
    occupancy = Occupancy(most_images=256, most_bytes=100, longest_seconds=15)
    with ExitStack() as visits:
        for _ in range(3):
            form = visits.enter_context(occupancy.visit("shop"))
            form.take_images(1)
            form.take_images(63)
        singles = 0
        while occupancy.refusal("shop") is None:
            visits.enter_context(occupancy.visit("shop")).take_images(1)
            singles += 1
        with pytest.raises(RequestError, match="50 requests are yours") as refusal:
            visits.enter_context(occupancy.visit("shop")).take_images(1)
        assert refusal.value.shed == occupancy.refusal("shop").shed == "share_full"
        assert singles == 47
        assert occupancy.refusal("another") is None


def test_a_client_alone_gets_three_quarters_of_the_room():
    occupancy = Occupancy(most_images=100, most_bytes=100, longest_seconds=15)
    with ExitStack() as visits:
        for _ in range(75):
            visit = visits.enter_context(occupancy.visit("alone"))
            visit.take_images(1)
            visit.take_bytes(1)
        for unit, counted in (("images", "requests"), ("bytes", "bytes")):
            another = visits.enter_context(occupancy.visit("alone"))
            with pytest.raises(RequestError, match=f"75 {unit}, at most 100, and 75 {counted}"):
                getattr(another, f"take_{unit}")(1)


def test_a_single_request_may_have_all_the_room_as_it_comes_in():
    occupancy = Occupancy(most_images=64, most_bytes=1_000, longest_seconds=15)
    with occupancy.visit("alone") as visit:
        visit.take_images(1)
        for _ in range(10):
            visit.take_bytes(100)
        visit.take_images(63)
        assert (occupancy.images, occupancy.bytes) == (64, 1_000)


@given(st.lists(st.integers(2, 64), min_size=1, max_size=60))
def test_forms_of_one_client_leave_room_for_a_form_of_another_and_singles_for_a_single(asked):
    occupancy = Occupancy(most_images=256, most_bytes=100, longest_seconds=15)
    with ExitStack() as visits:
        for images in asked:
            with suppress(RequestError):
                visits.enter_context(occupancy.visit("flood")).take_images(images)
        with occupancy.visit("another") as another:
            another.take_images(64)
        for _ in range(300):
            with suppress(RequestError):
                visits.enter_context(occupancy.visit("flood")).take_images(1)
        assert occupancy.images <= 256
        visits.enter_context(occupancy.visit("another")).take_images(1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 64)), max_size=40))
def test_while_it_is_roomy_nobody_is_refused(asked):
    occupancy = Occupancy(most_images=256, most_bytes=100, longest_seconds=15)
    with ExitStack() as visits:
        for client, images in asked:
            if occupancy.is_roomy:
                assert all(occupancy.refusal(its) is None for its in "abc")
            with suppress(RequestError):
                visits.enter_context(occupancy.visit(client)).take_images(images)
