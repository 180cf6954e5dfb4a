"""Images are decoded in a fair order, within the budget, and each request is told of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from model.images import InputSpec
from model.limits import ImageLimits
from service import decoding
from service.decoding import Admitted, ByteBudget, Decoder

SPEC = InputSpec(size=28, mean=(0, 0, 0), std=(1, 1, 1))


def play(story, *, threads=1, budget_bytes=10**9):
    """Run `story(decoder)` with its threads."""

    async def run():
        decoder = Decoder(ImageLimits(), threads=threads, budget_bytes=budget_bytes)
        try:
            return await asyncio.wait_for(story(decoder), 20)
        finally:
            decoder.close()

    return asyncio.run(run())


@pytest.fixture
def red(encoded):
    return lambda value: encoded(Image.new("RGB", (40, 40), (value, 0, 0)), "PNG")


class Watched:
    """Stands before the decoder: remembers the order of images by their red, and holds up."""

    def __init__(self, decode) -> None:
        self._decode = decode
        self.order: list[int] = []
        self.open = threading.Event()

    def __call__(self, *arguments):
        pixels = self._decode(*arguments)
        self.order.append(int(pixels[0, 0, 0]))
        assert self.open.wait(20)
        return pixels


@pytest.fixture
def watched(monkeypatch):
    watched = Watched(decoding.prepare_checked)
    monkeypatch.setattr(decoding, "prepare_checked", watched)
    return watched


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_images_of_many_requests_come_back_to_their_own_in_order(red):
    async def story(decoder):
        return await asyncio.gather(
            *(decoder.decode([red(10 * n + k) for k in range(n)], SPEC) for n in range(1, 9))
        )

    for number, found in enumerate(play(story, threads=3), start=1):
        values = [int(image.pixels[0, 0, 0]) for image in found]
        assert values == [10 * number + place for place in range(number)]


def test_no_images_are_answered_at_once():
    assert play(lambda decoder: decoder.decode([], SPEC)) == []


def test_a_single_image_does_not_wait_for_a_form_of_64(watched, red):
    async def story(decoder):
        form = asyncio.ensure_future(decoder.decode([red(100)] * 64, SPEC, client="bulk"))
        await until(lambda: watched.order)
        single = asyncio.ensure_future(decoder.decode([red(1)], SPEC, client="shop"))
        await asyncio.sleep(0.05)
        watched.open.set()
        await asyncio.gather(form, single)

    play(story)
    assert watched.order.index(1) <= 2
    assert len(watched.order) == 65


def test_a_request_that_is_given_up_is_decoded_no_further(watched, red):
    async def story(decoder):
        form = asyncio.ensure_future(decoder.decode([red(100)] * 64, SPEC))
        await until(lambda: watched.order)
        form.cancel()
        await asyncio.wait([form])
        watched.open.set()
        return await decoder.decode([red(1)], SPEC)

    (image,) = play(story)
    assert isinstance(image, Admitted)
    assert watched.order == [100, 1]


def test_an_unforeseen_error_is_raised_where_the_request_waits_and_the_thread_lives(
    monkeypatch, red
):
    whole = decoding.prepare_checked

    def fails_on_black(data, header, spec):
        pixels = whole(data, header, spec)
        if not pixels.any():
            raise MemoryError("no room")
        return pixels

    monkeypatch.setattr(decoding, "prepare_checked", fails_on_black)

    async def story(decoder):
        with pytest.raises(MemoryError, match="no room"):
            await decoder.decode([red(1), red(0)], SPEC)
        return await decoder.decode([red(1)], SPEC)

    assert isinstance(play(story)[0], Admitted)


def test_closing_stops_the_threads():
    before = threading.active_count()

    async def nothing(decoder):
        assert threading.active_count() == before + 3

    play(nothing, threads=3)
    assert threading.active_count() == before


# The budget


def test_the_budget_is_never_exceeded_and_everyone_gets_a_turn():
    amounts = [30, 80, 10, 100, 55, 250, 5, 90] * 3
    budget, lock = ByteBudget(100), threading.Lock()
    used = most = 0

    def use(amount: int) -> int:
        nonlocal used, most
        with budget.holding(amount) as taken:
            with lock:
                used += taken
                most = max(most, used)
            time.sleep(0.001)
            with lock:
                used -= taken
        return taken

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(use, amounts))
    assert taken == [min(amount, 100) for amount in amounts]
    assert most <= 100


def test_small_amounts_do_not_keep_a_large_one_waiting_for_ever():
    budget, stop, done = ByteBudget(100), threading.Event(), threading.Event()

    def small() -> None:
        while not stop.is_set():
            with budget.holding(30):
                time.sleep(0.0005)

    def large() -> None:
        with budget.holding(100):
            done.set()

    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            threads.submit(small)
        time.sleep(0.02)
        threads.submit(large)
        came = done.wait(5)
        stop.set()
    assert came
