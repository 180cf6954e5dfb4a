"""While a client waits its work goes on; when it hangs up the work ends."""

from __future__ import annotations

import asyncio

import pytest

from service.attention import Attention
from service.errors import ClientGoneError


class Client:
    """The `receive` of a request whose body was read."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.asked = 0

    async def receive(self) -> dict:
        self.asked += 1
        if self.asked == 1:  # more of a body that nobody asked for
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}


def play(story):
    async def run():
        return await asyncio.wait_for(story(Client()), 20)

    return asyncio.run(run())


def test_work_for_a_client_that_waits_is_finished():
    async def story(client):
        async with Attention(client.receive):
            await asyncio.sleep(0.01)
            return "done"

    assert play(story) == "done"


def test_work_for_a_client_that_hangs_up_is_cancelled_and_told():
    async def story(client):
        asyncio.get_running_loop().call_later(0.01, client.gone.set)
        try:
            async with Attention(client.receive):
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.append(True)
        except ClientGoneError:
            return asyncio.current_task().cancelling()

    ended: list[bool] = []
    assert play(story) == 0, "the task goes on as if never cancelled"
    assert ended == [True]


def test_a_cancellation_from_elsewhere_stays_one():
    async def story(client):
        async def work():
            async with Attention(client.receive):
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(story)


def test_a_deadline_inside_keeps_its_meaning():
    async def story(client):
        async with Attention(client.receive):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        play(story)


def test_an_error_of_the_work_is_its_own_and_nothing_goes_on_listening():
    async def story(client):
        with pytest.raises(ValueError, match="odd"):
            async with Attention(client.receive):
                await asyncio.sleep(0.01)
                raise ValueError("odd")
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert play(story) == 1 + 1  # this one and what waits for it
