"""The promise is told in days of today's traffic, never too many of them."""

from __future__ import annotations

import json

import pytest

from monitoring.pace import Pace, in_days, promised_days

HOUR = 3600.0


def pace_of(*times: float) -> Pace:
    pace = Pace()
    for time in times:
        pace.add(time)
    return pace


def test_there_is_no_pace_before_the_first_image():
    assert (Pace().a_day, promised_days(1e5, None), in_days(1e5, None)) == (None, None, "")


@pytest.mark.parametrize("a_minute", [1, 3])
def test_a_steady_stream_is_counted_by_the_day(a_minute):
    times = [60.0 / a_minute * number for number in range(50 * 60 * a_minute)]
    assert pace_of(*times).a_day == pytest.approx(1440 * a_minute, rel=0.05)


def test_what_has_run_for_less_than_a_day_is_taken_to_go_on():
    assert pace_of(*(10.0 * number for number in range(1_080))).a_day == pytest.approx(8640, 0.01)
    # Never slower than it was: the promise would be told for too many days.
    assert pace_of(*(0.1 * number for number in range(1_200))).a_day == pytest.approx(864_000, 0.01)


def test_less_than_a_minute_says_nothing_of_a_day():
    assert pace_of(*(0.1 * number for number in range(600))).a_day is None


def test_the_day_before_yesterday_is_forgotten():
    busy = [float(number) for number in range(5_000)]
    quiet = [30 * HOUR + 60 * number for number in range(60 * 30)]
    assert pace_of(*busy, *quiet).a_day == pytest.approx(1440, rel=0.05)


def test_a_clock_that_is_wrong_for_one_image_does_not_stay():
    pace = pace_of(*(60.0 * number for number in range(3_000)), 500 * HOUR)
    pace.add(60.0 * 3_000)
    assert pace.a_day == pytest.approx(1440, rel=0.05)


def test_memory_stays_as_it_is_and_a_restart_changes_nothing():
    pace = pace_of(*(HOUR * number for number in range(1_000)))
    state = json.dumps(pace.to_state())
    assert len(state) < 2_000
    again = Pace()
    again.restore(json.loads(state))
    assert (again.a_day, again.to_state()) == (pace.a_day, pace.to_state())


def test_the_promise_is_that_of_so_many_images():
    # 5 % of c images, in days.
    assert promised_days(100_000, 2_500) == 2
    assert in_days(100_000, 2_500) == (
        "At the pace of the last day (2,500 sampled images a day) the chance of a false alarm"
        " within 2 days is at most 5%."
    )
    assert "within 1.2 hours" in in_days(1_000, 1_000)
