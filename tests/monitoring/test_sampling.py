"""What repeats is no evidence, no client crowds out others, and dependence is noticed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from monitoring.sampling import (
    AT_ONCE_OF_A_NEW_CLIENT,
    Arrival,
    ClientShares,
    Dependence,
    Repeats,
    Sampler,
    block_correlation,
    far_correlation,
)


def sampler(**changes) -> Sampler:
    options = {"window_images": 50, "near_bits": 2, "client_images": 10, "client_seconds": 60.0}
    return Sampler(**(options | changes))


def arrivals(count: int, seed: int = 0, client: str = "anna", seconds: float = 0.0):
    rng = np.random.default_rng(seed)
    return [
        Arrival(seconds, rng.bytes(32).hex(), int.from_bytes(rng.bytes(8)), client)
        for _ in range(count)
    ]


def test_an_image_sent_three_times_counts_once():
    images = arrivals(200)
    tripled = [image for image in images for _ in range(3)]
    its = sampler()
    assert sum(map(its.takes, tripled)) == 200
    assert its.repeated_share == pytest.approx(2 / 3, abs=0.02)


def test_near_is_what_differs_in_few_bits():
    image = arrivals(1)[0]
    near, far = (
        Arrival(0.0, f"{bits}", image.perceptual_hash ^ bits, "anna") for bits in (0b11, 0b111)
    )
    assert list(map(sampler().takes, [image, near])) == [True, False]
    assert list(map(sampler().takes, [image, far])) == [True, True]


def test_with_minus_one_only_equal_bytes_repeat():
    image = arrivals(1)[0]
    alike = Arrival(0.0, "other bytes", image.perceptual_hash, "anna")
    assert list(map(sampler(near_bits=-1).takes, [image, alike, image])) == [True, True, False]


def test_what_lies_further_back_than_the_window_is_forgotten():
    images = arrivals(51)
    its = sampler(window_images=50)
    assert all(map(its.takes, images))
    assert its.takes(images[0])
    assert not its.takes(images[-1])


def test_a_client_has_its_share_where_there_are_several():
    its = sampler(client_images=10)
    mixed = [
        image
        for pair in zip(arrivals(60, 1, "loud"), arrivals(60, 2, "quiet"), strict=True)
        for image in pair
    ]
    taken = [image.client for image in mixed if its.takes(image)]
    assert {name: taken.count(name) for name in ("loud", "quiet")} == {"loud": 10, "quiet": 10}


def test_a_lone_client_is_not_held_back():
    assert sum(map(sampler(client_images=10).takes, arrivals(60))) == 60


def test_the_share_is_one_of_an_interval():
    its = sampler(client_images=5, client_seconds=60.0)
    for start in (0.0, 60.0, 120.0):
        two = [arrivals(1, int(start) + 1, "b", start), arrivals(20, int(start), "a", start)]
        taken = sum(map(its.takes, [image for group in two for image in group]))
        assert taken == 6


def test_the_share_of_a_busy_client_is_spread_over_its_stream():
    """What it sends in runs of ten would otherwise count run by run, at the start of a minute."""
    its = sampler(client_images=10, client_seconds=60.0)
    spread = []
    for start in (0.0, 60.0, 120.0):
        its.takes(arrivals(1, 7 + int(start), "quiet", start)[0])
        loud = [
            replace(image, seconds=start + place / 2)
            for place, image in enumerate(arrivals(100, int(start), "loud"))
        ]
        spread.append([place for place, image in enumerate(loud) if its.takes(image)])
    assert spread[1] == spread[2] == list(range(0, 100, 10))


def test_a_client_that_nobody_knew_gets_its_share_by_time():
    its = sampler(client_images=60, client_seconds=60.0)
    its.takes(arrivals(1, 1, "quiet", 0.0)[0])
    at_once = arrivals(40, 2, "new", 10.0)
    assert sum(map(its.takes, at_once)) == AT_ONCE_OF_A_NEW_CLIENT
    assert sum(map(its.takes, arrivals(40, 3, "new", 20.0))) == 10  # seconds later
    # Now it is known, and has sent what its share allows.
    its.takes(arrivals(1, 4, "quiet", 60.0)[0])
    assert sum(map(its.takes, arrivals(60, 5, "new", 61.0))) == 60 * 60 // 80


def test_shares_go_on_from_their_state():
    one, other = (ClientShares(images=5, seconds=60.0, spread=True) for _ in range(2))
    images = [
        image
        for start in range(0, 240, 60)
        for number, name in enumerate(("a", "b"))
        for image in arrivals(20 - 16 * number, start + number, name, float(start))
    ]
    for image in images[:60]:
        one.admit(image)
    other.restore(json.loads(json.dumps(one.to_state())))
    assert list(map(one.admit, images[60:])) == list(map(other.admit, images[60:]))


def test_records_out_of_order_get_no_second_share():
    """Files of two workers meet at the boundary of a minute."""
    its = sampler(client_images=10, client_seconds=60.0)
    taken = 0
    for turn in range(10):
        for seconds in (61.0, 59.0):
            seed = 2 * turn + int(seconds)
            its.takes(arrivals(1, 1_000 + seed, "quiet", seconds)[0])
            taken += sum(map(its.takes, arrivals(30, seed, "loud", seconds)))
    assert taken == 20


def test_one_time_far_ahead_takes_no_share_from_those_after_it():
    its = sampler(client_images=5, client_seconds=60.0)
    its.takes(arrivals(1, 1, "fast clock", 80_000.0)[0])
    for start in (0.0, 60.0, 120.0):
        two = [arrivals(1, int(start) + 2, "b", start), arrivals(20, int(start) + 3, "a", start)]
        assert sum(map(its.takes, [image for group in two for image in group])) == 6


def test_a_sampler_goes_on_from_its_state():
    images = [image for image in arrivals(90) for _ in range(2)]
    one, other = sampler(), sampler()
    for image in images[:100]:
        one.takes(image)
    other.restore(json.loads(json.dumps(one.to_state())))
    assert list(map(one.takes, images[100:])) == list(map(other.takes, images[100:]))
    assert one.repeated_share == other.repeated_share


@pytest.mark.parametrize("near_bits", [-1, 2, 64])
@pytest.mark.parametrize("window", [1, 5, 50, 100])
def test_it_makes_no_difference_how_many_arrivals_are_asked_for_at_once(window, near_bits):
    rng = np.random.default_rng(window)
    images = arrivals(150)
    flips = (0, 1, 7)  # the same hash, a near one, and one that is not
    mixed = [
        replace(
            images[int(rng.integers(0, 150))],
            perceptual_hash=images[number // 2].perceptual_hash ^ flips[number % 3],
            client=str(rng.integers(0, 3)),
        )
        for number in range(300)
    ]
    one, many = (sampler(window_images=window, near_bits=near_bits) for _ in range(2))
    taken = []
    for some in np.array_split(np.arange(300), [3, 3, 90, 91, 200]):
        taken += many.takes_which([mixed[number] for number in some])
    assert taken == list(map(one.takes, mixed))
    assert many.to_state() == one.to_state()
    assert True in taken or near_bits == 64
    assert False in taken


def test_a_state_of_another_window_is_refused():
    with pytest.raises(ValueError, match="window was 50 images and is set to 20"):
        sampler(window_images=20).restore(sampler().to_state())


def test_runs_of_like_images_are_dependence_and_a_change_is_not():
    rng = np.random.default_rng(0)
    independent = rng.random((400, 7))
    assert block_correlation(independent) < 0.2
    assert block_correlation(np.repeat(independent[:134], 3, axis=0)[:400]) > 0.5
    turns = np.concatenate([np.tile(rng.random((5, 7)), (4, 1)) for _ in range(20)])
    assert block_correlation(turns) > 0.5  # five cameras, four times each
    changed = independent.copy()
    changed[207:] *= 0.01  # every p-value small from here on
    assert block_correlation(changed) < 0.25


@pytest.mark.parametrize("group", [10, 40, 150])
def test_groups_of_images_that_come_again_a_little_changed_are_dependence(group):
    rng = np.random.default_rng(0)
    groups = [np.tile(rng.random((group, 7)), (3, 1)) for _ in range(400 // group)]
    values = np.concatenate(groups)[:400]
    its = Dependence(400)
    for row in values + rng.normal(0, 0.05, values.shape):
        its.add(row.tolist())
    assert its.far_correlation > 0.3


def test_no_independent_images_are_called_dependent_and_no_change_is():
    for seed in range(20):
        values = np.random.default_rng(seed).random((400, 7))
        assert far_correlation(values) < 0.05
        values[20 * seed + 7 :] *= 0.01  # every p-value small from here on
        assert far_correlation(values) < 0.1


def test_repeats_go_on_from_their_state():
    one, other = (Repeats(back=5, window_images=10) for _ in range(2))
    for answer in "abcabc":
        one.add(answer)
    other.restore(json.loads(json.dumps(one.to_state())))
    for answer in "abcdefghij":
        one.add(answer)
        other.add(answer)
    assert (one.share, one.images) == (other.share, other.images) == (0.3, 10)


def test_dependence_forgets_what_is_old():
    its = Dependence(100)
    assert its.correlation is None
    rng = np.random.default_rng(0)
    for value in np.repeat(rng.random(40), 3):
        its.add([float(value)])
    assert its.correlation > 0.5
    for value in rng.random(100):
        its.add([float(value)])
    assert its.correlation < 0.5
    assert its.images == 100
