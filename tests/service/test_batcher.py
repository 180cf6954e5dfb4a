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
from tests.service.virtual_time import VirtualExecutor, play

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


def run(machine, story, *, batch_images=8, **told):
    """Play `story(batcher)` on a started batcher, and stop it in the end."""

    async def play():
        batcher = Batcher(machine.run, batch_images=lambda key: batch_images, **told)
        batcher.start()
        try:
            return await story(batcher)
        finally:
            machine.open.set()
            await batcher.stop()

    return asyncio.run(play())


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def submit(batcher, items, *, key="model", seconds=20.0, client=None):
    deadline = in_seconds(seconds)
    return asyncio.ensure_future(batcher.submit(key, items, deadline=deadline, client=client))


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
    assert machine.batches[1:] == [("a", [1, 2, 6]), ("b", [3, 4, 5])]


def test_each_model_has_a_largest_batch_of_its_own():
    machine = Machine()
    most = {"small": 2, "large": 5}

    async def play():
        batcher = Batcher(machine.run, batch_images=most.get)
        batcher.start()
        await asyncio.gather(
            *(submit(batcher, list(range(10)), key=key) for key in ("small", "large"))
        )
        await batcher.stop()

    asyncio.run(play())
    sizes = {(key, len(items)) for key, items in machine.batches}
    assert sizes == {("small", 2), ("large", 5)}


# Fairness


def test_a_single_image_does_not_wait_for_the_forms_of_64_that_came_before_it():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        forms = [submit(batcher, list(range(start, start + 64))) for start in (100, 200, 300)]
        await until(lambda: batcher.waiting == 192)
        single = submit(batcher, [1])
        await until(lambda: batcher.waiting == 193)
        machine.open.set()
        await asyncio.gather(first, single, *forms)

    run(machine, story)
    assert 1 in machine.batches[1][1]


def test_a_client_with_a_hundred_connections_gets_no_more_than_one_with_one():
    machine = Machine()

    async def story(batcher):
        first = await held_up(batcher, machine)
        flood = [submit(batcher, [item], client="flood") for item in range(100, 200)]
        await until(lambda: batcher.waiting == 100)
        form = submit(batcher, list(range(1, 13)), client="shop")
        await until(lambda: batcher.waiting == 112)
        machine.open.set()
        await asyncio.gather(first, form, *flood)

    run(machine, story)
    of_the_shop = [sum(0 < item < 13 for item in items) for _, items in machine.batches[1:]]
    assert of_the_shop[:4] == [4, 4, 4, 0]


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

    answers = run(Labelling(), story, batch_images=batch_images)
    for request, ((count, key, _, bad), got) in enumerate(zip(arrivals, answers, strict=True)):
        expected = [(key, request, place) for place in range(count)]
        outcomes = results(got)
        if bad:
            assert isinstance(outcomes.pop(0), ValueError)
            expected.pop(0)
        assert outcomes == expected
    assert len(seen) == len(set(seen)) == sum(count for count, *_ in arrivals)


# A simulated clock: minutes of traffic, played in no time

REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 0.3),  # seconds after the one before it
        st.sampled_from([1, 1, 1, 2, 8, 64]),  # images
        st.sampled_from("abc"),  # client
        st.sampled_from(["champion", "candidate"]),
        st.floats(0.01, 3),  # seconds until its deadline
        st.booleans(),  # whether its client hangs up half way to that
    ),
    min_size=1,
    max_size=30,
)


class Traffic:
    """Requests against a machine of 50 ms a batch and 10 ms an image, and all that came of it."""

    def __init__(self, batch_images: int) -> None:
        self.batch_images = batch_images
        self.batches: list[tuple[float, float, str, list]] = []  # began, ended, key, items
        self.ends: dict[int, tuple[float, object]] = {}
        self.dropped = 0

    @staticmethod
    def seconds(key, items) -> float:
        return 0.05 + 0.01 * len(items)

    def run(self, key, items):
        now = asyncio.get_running_loop().time()
        self.batches.append((now, now + self.seconds(key, items), key, list(items)))
        return list(items)

    def on_drop(self, reason, count):
        self.dropped += count

    async def ask(self, batcher, number, images, client, key, deadline):
        loop = asyncio.get_running_loop()
        items = [(number, place, client, key, loop.time(), deadline) for place in range(images)]
        try:
            answers = await batcher.submit(key, items, deadline=deadline, client=client)
            assert [answer.result for answer in answers] == items
            outcome = answers
        except (RequestError, asyncio.CancelledError) as error:
            outcome = error
        self.ends[number] = loop.time(), outcome

    async def play(self, requests):
        loop = asyncio.get_running_loop()
        batcher = Batcher(
            self.run,
            batch_images=lambda key: self.batch_images,
            on_drop=self.on_drop,
            executor=VirtualExecutor(lambda key, items: self.seconds(key, items)),
        )
        batcher.start()
        tasks = []
        for number, (pause, images, client, key, patience, hangs_up) in enumerate(requests):
            await asyncio.sleep(pause)
            deadline = loop.time() + patience
            task = loop.create_task(self.ask(batcher, number, images, client, key, deadline))
            if hangs_up:
                loop.call_later(patience / 2, task.cancel)
            tasks.append((task, deadline))
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert batcher.waiting == 0
        await batcher.stop()
        return [deadline for _, deadline in tasks]


@given(REQUESTS, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_in_any_traffic_nothing_waits_needlessly_is_late_or_is_lost(requests, batch_images):
    traffic = Traffic(batch_images)
    deadlines = play(traffic.play(requests))
    ended = 0.0
    for began, until_then, key, items in traffic.batches:
        assert began >= ended - 1e-9  # one batch in flight at a time
        assert len(items) <= batch_images
        assert {item[3] for item in items} == {key}
        assert all(began < item[5] + 1e-9 for item in items)  # none past its deadline
        # Begun when it came, or when the batch before it ended: never a wait while idle.
        arrived = max(item[4] for item in items)
        assert began <= max(arrived, ended) + 1e-9
        ended = until_then
    for number, (ended_at, outcome) in traffic.ends.items():
        assert ended_at <= deadlines[number] + 1e-9
        if isinstance(outcome, RequestError):
            assert outcome.code == "deadline_exceeded"
            assert ended_at >= deadlines[number] - 1e-9
    computed = [item[:2] for _, _, _, items in traffic.batches for item in items]
    assert len(set(computed)) == len(computed)
    assert len(computed) + traffic.dropped == sum(request[1] for request in requests)


@given(
    st.lists(st.floats(0.3, 0.8), min_size=5, max_size=20),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_single_images_are_answered_soon_whatever_forms_of_64_others_send(pauses, floods, as_one):
    """After the batch in flight, in the next one: in which others have room beside them."""
    requests = [
        (0.0, 64, "single" if as_one else f"flood {n}", "champion", 60, False)
        for n in range(floods)
    ] * 3
    singles = [(pause, 1, "single", "champion", 60, False) for pause in pauses]
    traffic = Traffic(batch_images=8)
    play(traffic.play([*requests, *singles]))
    longest = 2 * Traffic.seconds("champion", range(8))
    for number in range(len(requests), len(requests) + len(singles)):
        _, outcome = traffic.ends[number]
        assert isinstance(outcome, list)
        assert outcome[0].queue_seconds + outcome[0].compute_seconds <= longest + 1e-9
