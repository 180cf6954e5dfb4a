"""Waiting images come in a fair order, each once, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.fair_queue import FairQueue


def taken(queue: FairQueue, group: object = "model") -> list:
    return [queue.pop(group) for _ in range(len(queue))]


def test_an_empty_queue_has_nothing_and_no_group():
    queue: FairQueue[int] = FairQueue()
    assert (len(queue), queue.group(), queue.pop("model")) == (0, None, None)
    queue.put("model", "shop", [])
    assert (len(queue), queue.group()) == (0, None)


def test_forms_of_one_size_of_one_client_come_one_after_the_other():
    queue: FairQueue[str] = FairQueue()
    for form in "abc":
        queue.put("model", "shop", [form] * 3)
    assert "".join(taken(queue)) == "aaabbbccc"


def test_a_small_request_overtakes_a_large_one_of_the_same_client():
    queue: FairQueue[str] = FairQueue()
    queue.put("model", "shop", ["large"] * 64)
    assert queue.pop("model") == "large"
    queue.put("model", "shop", ["small"])
    assert "small" in [queue.pop("model"), queue.pop("model")]


def test_a_large_request_is_not_overtaken_for_ever():
    """Beside a stream of singles that never ends it gets half of the turns."""
    queue: FairQueue[str] = FairQueue()
    queue.put("model", "shop", ["large"] * 64)
    turns = []
    for _ in range(128):
        queue.put("model", "shop", ["single"])
        turns.append(queue.pop("model"))
    assert turns.count("large") == 64


def test_clients_take_turns_however_much_each_asks_for():
    queue: FairQueue[str] = FairQueue()
    for _ in range(50):
        queue.put("model", "flood", ["f"])
    queue.put("model", "bulk", ["b"] * 64)
    queue.put("model", "shop", ["s"] * 3)
    assert Counter(queue.pop("model") for _ in range(9)) == {"f": 3, "b": 3, "s": 3}


def test_the_group_that_waits_longest_comes_first_and_groups_never_mix():
    queue: FairQueue[str] = FairQueue()
    queue.put("old", "shop", ["o"] * 2)
    queue.put("new", "shop", ["n"])
    queue.put("old", "shop", ["p"] * 2)
    order = []
    while (group := queue.group()) is not None:
        order.append((group, queue.pop(group)))
    assert order == [("old", "o"), ("old", "o"), ("new", "n"), ("old", "p"), ("old", "p")]


def test_what_is_dropped_is_gone_and_its_neighbours_stay():
    queue: FairQueue[str] = FairQueue()
    queue.put("model", "shop", ["a"] * 2)
    dropped = queue.put("model", "shop", ["b"] * 3)
    queue.put("model", "other", ["c"])
    assert queue.pop("model") == "a"
    assert (queue.drop(dropped), queue.drop(dropped), len(queue)) == (3, 0, 2)
    assert sorted(taken(queue)) == ["a", "c"]
    assert queue.group() is None


REQUESTS = st.lists(
    st.tuples(st.sampled_from("xy"), st.sampled_from("abc"), st.integers(0, 9), st.booleans()),
    max_size=40,
)


@given(REQUESTS, st.integers(0, 3))
def test_every_entry_is_taken_or_dropped_exactly_once_and_in_the_order_of_its_request(
    requests, between
):
    queue: FairQueue[tuple[int, int]] = FairQueue()
    seen: list[tuple[int, int]] = []
    dropped = 0
    for number, (group, client, size, to_drop) in enumerate(requests):
        handle = queue.put(group, client, [(number, place) for place in range(size)])
        for _ in range(between):
            if (oldest := queue.group()) is not None:
                entry = queue.pop(oldest)
                assert requests[entry[0]][0] == oldest
                seen.append(entry)
        if to_drop:
            dropped += queue.drop(handle)
    while (oldest := queue.group()) is not None:
        seen.append(queue.pop(oldest))
    assert len(queue) == 0
    assert len(seen) + dropped == sum(size for _, _, size, _ in requests)
    assert len(set(seen)) == len(seen)
    for number in range(len(requests)):
        places = [place for request, place in seen if request == number]
        assert places == list(range(len(places)))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=30), st.integers(1, 8))
def test_a_single_image_waits_for_one_image_of_each_other_client_at_most(sizes, clients):
    queue: FairQueue[str] = FairQueue()
    for number, size in enumerate(sizes):
        queue.put("model", number % clients, ["other"] * size)
    queue.put("model", "shop", ["single"])
    assert taken(queue).index("single") <= min(clients, len(sizes))
