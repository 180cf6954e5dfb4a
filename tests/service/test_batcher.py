"""Batches grow with the load, a lone item never waits, and no item harms its neighbours."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Answer, Batcher
from service.errors import RequestError

pytestmark = pytest.mark.filterwarnings("error")


class Machine:
    """Doubles numbers; fails on 'poison'; can be held up. Remembers its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[tuple[object, list]] = []
        self.entered = 0
        self.open = threading.Event()
        self.open.set()

    def run(self, key, items):
        self.entered += 1
        assert self.open.wait(20)
        self.batches.append((key, list(items)))
        time.sleep(self.seconds)
        if "poison" in items:
            raise ValueError("poison")
        return [2 * item for item in items]


def run(machine, story, *, batch_images=8, queue_images=100, **told):
    """Play `story(batcher)` on a started batcher, and stop it in the end."""

    async def play():
        batcher = Batcher(machine.run, batch_images=batch_images, queue_images=queue_images, **told)
        batcher.start()
        try:
            return await story(batcher)
        finally:
            machine.open.set()
            await batcher.stop()

    return asyncio.run(play())


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def submit(batcher, items, *, key="model", seconds=20.0):
    return asyncio.ensure_future(batcher.submit(key, items, deadline=in_seconds(seconds)))


def results(answers):
    return [answer.result if isinstance(answer, Answer) else answer for answer in answers]


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about in time")


async def held_up(batcher, machine, first=0):
    """Keep the machine busy with one item, so that everything after it queues."""
    machine.open.clear()
    task = submit(batcher, [first])
    await until(lambda: machine.entered)
    return task


def test_a_request_gets_its_results_in_order():
    machine = Machine()
    answers = run(machine, lambda batcher: submit(batcher, [3, 1, 2]))
    assert results(answers) == [6, 2, 4]
    assert machine.batches == [("model", [3, 1, 2])]


def test_a_lone_item_is_computed_at_once():
    machine = Machine(seconds=0.05)

    async def story(batcher):
        waits = []
        for item in range(5):
            (answer,) = await submit(batcher, [item])
            waits.append(answer)
        return waits

    answers = run(machine, story)
    assert min(answer.queue_seconds for answer in answers) < 0.02
    assert all(answer.compute_seconds >= 0.05 for answer in answers)
    assert [items for _, items in machine.batches] == [[0], [1], [2], [3], [4]]


def test_what_arrives_during_a_batch_makes_the_next_one():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        others = [submit(batcher, [item]) for item in range(1, 12)]
        await until(lambda: batcher.waiting == 11)
        machine.open.set()
        return await asyncio.gather(first, *others)

    answers = run(machine, story)
    assert [results(answer) for answer in answers] == [[2 * item] for item in range(12)]
    assert [len(items) for _, items in machine.batches] == [1, 8, 3]


def test_one_batch_is_in_flight_at_a_time():
    running, most = [], []

    class Counting(Machine):
        def run(self, key, items):
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()
            return items

    run(Counting(), lambda b: asyncio.gather(*(submit(b, [n]) for n in range(20))), batch_images=2)
    assert max(most) == 1


def test_the_event_loop_stays_free_while_a_batch_computes():
    machine = Machine(seconds=0.3)

    async def story(batcher):
        task = submit(batcher, [1])
        beats = 0
        while not task.done():
            await asyncio.sleep(0.005)
            beats += 1
        return beats

    assert run(machine, story) > 10


@pytest.mark.parametrize("place", range(4))
def test_a_poisoned_item_fails_alone_and_its_neighbours_get_their_results(place):
    items = [1, 2, 3, 4]
    items[place] = "poison"
    answers = results(run(Machine(), lambda batcher: submit(batcher, items)))
    assert str(answers.pop(place)) == "poison"
    items.pop(place)
    assert answers == [2 * item for item in items]


def test_a_poisoned_request_does_not_harm_the_requests_in_its_batch():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        tasks = [submit(batcher, [item]) for item in (1, "poison", 3)]
        await until(lambda: batcher.waiting == 3)
        machine.open.set()
        await first
        return [results(await task)[0] for task in tasks]

    before, poison, after = run(machine, story)
    assert (before, after) == (2, 6)
    assert isinstance(poison, ValueError)


def test_the_batcher_goes_on_after_a_failure():
    async def story(batcher):
        await submit(batcher, ["poison"])
        return await submit(batcher, [5])

    assert results(run(Machine(), story)) == [10]


def test_a_machine_that_gives_too_few_results_fails_its_items_and_not_the_batcher():
    class Forgetful(Machine):
        def run(self, key, items):
            return [] if "lost" in items else super().run(key, items)

    async def story(batcher):
        return results(await submit(batcher, ["lost", 1])), results(await submit(batcher, [2]))

    (lost, kept), after = run(Forgetful(), story)
    assert isinstance(lost, RuntimeError)
    assert kept == 2
    assert after == [4]


# The bound


def test_a_full_queue_refuses_with_a_time_to_come_back():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        waiting = submit(batcher, [1, 2, 3])
        await until(lambda: batcher.waiting == 3)
        with pytest.raises(RequestError) as refusal:
            await submit(batcher, [4])
        machine.open.set()
        await asyncio.gather(first, waiting)
        return refusal.value, results(await submit(batcher, [5]))

    refusal, after = run(machine, story, queue_images=3)
    assert (refusal.code, refusal.status) == ("overloaded", 429)
    assert int(refusal.headers["Retry-After"]) >= 1
    assert after == [10]


def test_a_request_counts_its_images_and_is_never_taken_in_part():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        small = submit(batcher, [1, 2])
        await until(lambda: batcher.waiting == 2)
        with pytest.raises(RequestError, match="2 images are waiting and at most 4 may"):
            await submit(batcher, [7, 8, 9])
        assert batcher.waiting == 2
        fits = submit(batcher, [3, 4])
        await until(lambda: batcher.waiting == 4)
        machine.open.set()
        await asyncio.gather(first, small, fits)

    run(machine, story, queue_images=4)
    assert sorted(item for _, items in machine.batches for item in items) == [0, 1, 2, 3, 4]


def test_the_time_to_come_back_grows_with_the_queue_and_shrinks_with_speed():
    machine = Machine(seconds=0.2)

    async def story(batcher):
        assert batcher.retry_after_seconds() == 1  # nothing is measured yet
        await submit(batcher, [1])
        machine.entered = 0
        first = await held_up(batcher, machine)
        waiting = submit(batcher, list(range(95)))
        await until(lambda: batcher.waiting == 95)
        long = batcher.retry_after_seconds()  # of 5 images a second
        machine.seconds = 0.0
        machine.open.set()
        await asyncio.gather(first, waiting)
        return long, batcher.retry_after_seconds()

    long, short = run(machine, story)
    assert long >= 19
    assert short == 1


# Deadlines


def test_an_item_past_its_deadline_is_answered_so_and_never_computed():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        late, patient = submit(batcher, [1], seconds=0.05), submit(batcher, [2])
        with pytest.raises(RequestError) as refusal:
            await late
        machine.open.set()
        await asyncio.gather(first, patient)
        return refusal.value

    refusal = run(machine, story)
    assert (refusal.code, refusal.status) == ("deadline_exceeded", 504)
    assert [items for _, items in machine.batches] == [[0], [2]]


def test_an_item_whose_turn_comes_at_its_deadline_is_not_computed():
    """Also in the turn of the event loop in which its request is only about to be told."""
    machine, dropped = Machine(), []

    async def story(batcher):
        task = submit(batcher, [1], seconds=-1)
        with pytest.raises(RequestError, match="deadline"):
            await task
        return results(await submit(batcher, [2]))

    told = {"on_drop": lambda reason, count: dropped.append((reason, count))}
    assert run(machine, story, **told) == [4]
    assert [items for _, items in machine.batches] == [[2]]
    assert dropped == [("deadline", 1)]


def test_what_is_dropped_is_told_with_its_reason():
    machine, dropped = Machine(), []

    async def story(batcher):
        first = await held_up(batcher, machine)
        late, gone = submit(batcher, [1, 2], seconds=0.05), submit(batcher, [3])
        patient = submit(batcher, [4])
        await until(lambda: batcher.waiting == 4)
        gone.cancel()
        await asyncio.wait([late, gone])
        machine.open.set()
        await asyncio.gather(first, patient)
        assert isinstance(late.exception(), RequestError)

    run(machine, story, on_drop=lambda reason, count: dropped.append((reason, count)))
    assert [items for _, items in machine.batches] == [[0], [4]]
    assert dropped == [("client_gone", 1), ("deadline", 2)]


def test_a_deadline_during_the_computation_is_kept_and_the_batcher_goes_on():
    machine = Machine()

    async def story(batcher):
        machine.open.clear()
        with pytest.raises(RequestError) as refusal:
            await submit(batcher, [1], seconds=0.05)
        machine.open.set()
        return refusal.value.code, results(await submit(batcher, [2]))

    assert run(machine, story) == ("deadline_exceeded", [4])


def test_a_client_that_went_away_is_not_computed():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        gone = submit(batcher, [1])
        await until(lambda: batcher.waiting == 1)
        gone.cancel()
        machine.open.set()
        await first
        return await submit(batcher, [2])

    run(machine, story)
    assert [items for _, items in machine.batches] == [[0], [2]]


# Keys


def test_items_of_different_models_never_share_a_batch():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        tasks = []
        for item, key in enumerate("aabbba", start=1):
            tasks.append(submit(batcher, [item], key=key))
            await until(lambda expected=item: batcher.waiting == expected)
        machine.open.set()
        await asyncio.gather(first, *tasks)

    run(machine, story)
    assert machine.batches[1:] == [("a", [1, 2]), ("b", [3, 4, 5]), ("a", [6])]


# Bookkeeping


def test_every_batch_is_reported_with_its_size():
    sizes = []
    run(
        Machine(),
        lambda batcher: submit(batcher, list(range(19))),
        on_batch=lambda size, seconds: sizes.append(size),
    )
    assert sizes == [8, 8, 3]


def test_no_items_are_answered_without_a_batch():
    machine = Machine()
    assert run(machine, lambda batcher: submit(batcher, [])) == []
    assert machine.batches == []


def test_stopping_finishes_the_batch_in_flight_and_cancels_what_waits():
    machine = Machine()

    async def story(batcher):
        in_flight = await held_up(batcher, machine, 1)
        waiting = submit(batcher, [2])
        await until(lambda: batcher.waiting == 1)
        stopping = asyncio.ensure_future(batcher.stop())
        await asyncio.sleep(0)
        machine.open.set()
        await stopping
        return await asyncio.gather(in_flight, waiting, return_exceptions=True)

    first, second = run(machine, story)
    assert results(first) == [2]
    assert isinstance(second, asyncio.CancelledError)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(1, 6),  # images
        st.sampled_from("ab"),  # model
        st.integers(0, 3),  # turns of the event loop before it
        st.booleans(),  # poisoned
    ),
    min_size=1,
    max_size=25,
)


@given(arrivals=ARRIVALS, batch_images=st.integers(1, 9))
@settings(max_examples=60)
def test_every_item_gets_its_own_result_exactly_once(arrivals, batch_images):
    seen = []

    class Labelling(Machine):
        def run(self, key, items):
            assert len(items) <= batch_images
            if any(bad for _, _, bad in items) and len(items) > 1:
                raise ValueError("the batch is poisoned")
            seen.extend(items)
            if items[0][2]:
                raise ValueError(items[0])
            return [(key, request, place) for request, place, _ in items]

    async def story(batcher):
        tasks = []
        for request, (count, key, turns, bad) in enumerate(arrivals):
            for _ in range(turns):
                await asyncio.sleep(0)
            items = [(request, place, bad and place == 0) for place in range(count)]
            tasks.append(submit(batcher, items, key=key))
        return await asyncio.gather(*tasks)

    answers = run(Labelling(), story, batch_images=batch_images, queue_images=1000)
    for request, ((count, key, _, bad), got) in enumerate(zip(arrivals, answers, strict=True)):
        expected = [(key, request, place) for place in range(count)]
        outcomes = results(got)
        if bad:
            assert isinstance(outcomes.pop(0), ValueError)
            expected.pop(0)
        assert outcomes == expected
    assert len(seen) == len(set(seen)) == sum(count for count, *_ in arrivals)
