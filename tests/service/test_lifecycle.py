"""A worker says that it leaves, works on, refuses, finishes, and ends within its limit."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.lifecycle import Lifecycle


async def work(lifecycle, done: asyncio.Event) -> str:
    task = lifecycle.enter()
    try:
        await done.wait()
        return "finished"
    except asyncio.CancelledError:
        assert lifecycle.is_over
        return "given up"
    finally:
        lifecycle.leave(task)


async def step_until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def test_an_idle_worker_ends_at_once():
    async def story():
        lifecycle = Lifecycle()
        await lifecycle.end(grace_seconds=0, limit_seconds=60)
        return lifecycle

    started = time.monotonic()
    lifecycle = asyncio.run(story())
    assert time.monotonic() - started < 10
    assert (lifecycle.is_leaving, lifecycle.is_refusing, lifecycle.is_over) == (True, True, False)


def test_it_leaves_at_once_refuses_after_the_grace_and_ends_with_the_last_request():
    async def story():
        lifecycle, done = Lifecycle(), [asyncio.Event(), asyncio.Event()]
        first, second = (asyncio.create_task(work(lifecycle, its)) for its in done)
        await asyncio.sleep(0)
        ending = asyncio.create_task(lifecycle.end(grace_seconds=0.2, limit_seconds=60))
        await asyncio.sleep(0)
        assert (lifecycle.is_leaving, lifecycle.is_refusing) == (True, False)
        done[0].set()
        await first
        await step_until(lambda: lifecycle.is_refusing)
        assert not ending.done()
        late = asyncio.create_task(work(lifecycle, done[0]))  # a probe, or one that is refused
        assert await late == "finished"
        await asyncio.sleep(0)
        assert not ending.done(), "another one is inside"
        done[1].set()
        await ending
        return await second, lifecycle.is_over

    assert asyncio.run(story()) == ("finished", False)


@pytest.mark.parametrize("requests", [1, 5])
def test_what_is_not_done_within_the_limit_is_given_up(requests):
    async def story():
        lifecycle = Lifecycle()
        tasks = [asyncio.create_task(work(lifecycle, asyncio.Event())) for _ in range(requests)]
        await asyncio.sleep(0)
        await lifecycle.end(grace_seconds=0, limit_seconds=0.05)
        return await asyncio.gather(*tasks)

    assert asyncio.run(asyncio.wait_for(story(), 20)) == ["given up"] * requests


def test_work_that_cannot_be_given_up_does_not_hold_up_the_end():
    async def deaf(lifecycle):
        task = lifecycle.enter()
        while not task.cancelling() > 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def story():
        lifecycle = Lifecycle()
        task = asyncio.create_task(deaf(lifecycle))
        await asyncio.sleep(0)
        await lifecycle.end(grace_seconds=0, limit_seconds=0.01)
        task.cancel()
        await task

    asyncio.run(asyncio.wait_for(story(), 20))
