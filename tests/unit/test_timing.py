"""The inequalities, and the arithmetic with which a schedule is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.timing import (
    DAY,
    MAX_DELAY,
    MAX_OVERLAPPING_KEYS,
    InstallationTiming,
    RotationSchedule,
    Term,
    arithmetic,
    check_schedule,
    span,
    total,
    verifier_terms,
    withdrawal_terms,
)

TIMING = InstallationTiming()
UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY}
SPAN = re.compile(r"(-?\d+) ([smhd])\b")


def _read(text: str) -> int:
    """Add up every span in a sentence."""
    return sum(int(count) * UNITS[unit] for count, unit in SPAN.findall(text))


@given(st.integers(0, 10**9))
def test_a_span_says_exactly_how_long(seconds: int) -> None:
    assert _read(span(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59, "59 s"), (60, "1 m"), (90, "90 s"), (3600, "1 h"), (5400, "90 m")),
        *((DAY, "1 d"), (30 * DAY, "30 d"), (DAY + 3600, "25 h")),
    ],
)
def test_spans(seconds: int, text: str) -> None:
    assert span(seconds) == text


@given(st.lists(st.builds(Term, st.integers(0, 10**6), st.sampled_from(["skew", "leeway"]))))
def test_the_arithmetic_adds_up(terms: list[Term]) -> None:
    assert _read(arithmetic(terms)) == total(terms)


def test_the_floor_counts_caches_cut_off_replicas_and_clocks() -> None:
    timing = InstallationTiming(max_age=100, refresh_interval=3, grace=20, skew=7)
    assert timing.propagation_floor == 100 + 60 + 20 + 2 * 3 + 7
    assert timing.notice == 2 * 3 + 7


def test_withdrawal_counts_the_last_token_of_a_cut_off_replica() -> None:
    schedule = RotationSchedule(leeway=300)
    assert total(withdrawal_terms(schedule, TIMING, 3600)) == 900 + 3600 + 300 + 4 + 300
    assert total(verifier_terms(schedule, TIMING)) == 300 + 4 + 300


def _refused(schedule: RotationSchedule, timing: InstallationTiming, lifetime: int = 3600) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_schedule(schedule, timing, lifetime)
    return str(caught.value)


def _sum_holds(message: str) -> None:
    """``X: a + b + c.``, or ``X (a + b + c)``: the sum is what it says."""
    found = re.search(r"(\d+ [smhd])(?:: | \()([^.()]*\+[^.()]*)[.)]", message)
    assert found is not None, message
    assert _read(found[1]) == _read(found[2])


def test_propagation_below_the_floor_is_refused_with_the_sum() -> None:
    floor = TIMING.propagation_floor
    at_floor = RotationSchedule(propagation=floor)
    assert check_schedule(at_floor, TIMING, 3600) is at_floor
    message = _refused(replace(at_floor, propagation=floor - 1), TIMING)
    assert span(floor - 1) in message
    _sum_holds(message)


def test_a_period_that_leaves_no_time_for_a_spare_is_refused_with_the_sum() -> None:
    needed = DAY + TIMING.notice
    check_schedule(RotationSchedule(period=needed), TIMING, 3600)
    message = _refused(RotationSchedule(period=needed - 1), TIMING)
    assert span(needed - 1) in message
    _sum_holds(message)


def test_lifetimes_that_pile_up_keys_are_refused_with_the_sum() -> None:
    schedule = RotationSchedule(period=2 * DAY)
    room = MAX_OVERLAPPING_KEYS * 2 * DAY - total(withdrawal_terms(schedule, TIMING, 0))
    check_schedule(schedule, TIMING, room)
    _sum_holds(_refused(schedule, TIMING, room + 1))


def test_a_leeway_below_five_minutes_is_refused() -> None:
    check_schedule(RotationSchedule(leeway=300), TIMING, 3600)
    assert "5 m" in _refused(RotationSchedule(leeway=299), TIMING)


@pytest.mark.parametrize("development", [False, True])
@pytest.mark.parametrize("value", [-1, MAX_DELAY + 1])
@pytest.mark.parametrize(
    "name", ["period", "propagation", "leeway", "destroy_after", "destroy_window"]
)
def test_delays_out_of_range_are_refused_even_in_development(
    name: str, value: int, development: bool
) -> None:
    timing = replace(TIMING, development=development)
    schedule = replace(RotationSchedule(), **{name: value})
    assert "must be between 0 s and 3650 d" in _refused(schedule, timing)


def test_development_lowers_the_floors_but_not_the_need_for_a_spare() -> None:
    timing = replace(TIMING, development=True, refresh_interval=1, skew=0)
    fast = RotationSchedule(period=42, propagation=40, leeway=0, destroy_window=0)
    check_schedule(fast, replace(timing, grace=0), 60)
    _sum_holds(_refused(replace(fast, period=41), timing, 60))
