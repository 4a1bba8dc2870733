"""The breaker stops asking a Region that fails, and lets one call find out when it is back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kmsjwks.backends.awskms.breaker import Breaker
from kmsjwks.domain.errors import BackendUnavailable


class Time:
    def __init__(self) -> None:
        self.seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


def make(time: Time) -> Breaker:
    return Breaker(
        "eu-central-1",
        failure_threshold=3,
        open_seconds=5,
        monotonic=time,
        now=lambda: time.seconds + 1_700_000_000,
    )


def open_up(breaker: Breaker) -> None:
    for _ in range(3):
        breaker.failed(breaker.admit(), "It timed out.")


def refusal(breaker: Breaker) -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as refused:
        breaker.admit()
    return refused.value


def test_consecutive_failures_open_it() -> None:
    breaker = make(Time())
    opened = [breaker.failed(breaker.admit(), "It timed out.") for _ in range(3)]
    assert opened == [False, False, True]
    assert breaker.is_open
    assert (breaker.since, breaker.reason) == (1_700_000_050, "It timed out.")
    error = refusal(breaker)
    assert "eu-central-1" in str(error)
    assert "It timed out." in str(error)
    assert error.retry_after == 5


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = make(Time())
    for _ in range(5):
        breaker.failed(breaker.admit(), "")
        breaker.failed(breaker.admit(), "")
        breaker.admit()
        assert not breaker.succeeded()
    assert not breaker.is_open


def test_a_probe_that_succeeds_closes_it() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    time.seconds += 5
    assert breaker.admit() > 0
    assert refusal(breaker).retry_after == 1
    assert breaker.is_open
    assert breaker.succeeded()
    assert not breaker.is_open
    assert breaker.since is None
    assert breaker.admit() == 0
    breaker.failed(0, "once")
    assert breaker.admit() == 0  # the count starts anew as well


def test_probes_that_fail_come_ever_rarer_but_every_minute() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    time.seconds += 5
    pauses = []
    for _ in range(6):
        breaker.failed(breaker.admit(), "Still down.")
        pauses.append(refusal(breaker).retry_after)
        time.seconds += pauses[-1]
    assert pauses == [10, 20, 40, 60, 60, 60]
    assert (breaker.since, breaker.reason) == (1_700_000_050, "Still down.")


def test_a_success_brings_the_first_pause_back() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    time.seconds += 5
    breaker.failed(breaker.admit(), "")
    time.seconds += 10
    breaker.admit()
    breaker.succeeded()
    open_up(breaker)
    assert refusal(breaker).retry_after == 5


def test_a_probe_that_was_broken_off_leaves_room_for_another() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    time.seconds += 5
    first = breaker.admit()
    breaker.abandoned(first)
    second = breaker.admit()
    assert second not in (0, first)
    breaker.abandoned(first)  # says nothing about the second
    refusal(breaker)


def test_late_failures_of_calls_from_before_change_nothing() -> None:
    time = Time()
    breaker = make(time)
    late = breaker.admit()
    open_up(breaker)
    breaker.failed(late, "")
    assert refusal(breaker).retry_after == 5
    time.seconds += 5
    assert breaker.admit() > 0
    breaker.failed(late, "")
    assert refusal(breaker).retry_after == 1  # the probe is still on its way


def test_of_eight_threads_exactly_one_probes() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    start = threading.Barrier(8)

    def attempt(_: int) -> int:
        start.wait(5)
        try:
            return breaker.admit()
        except BackendUnavailable:
            return 0

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            time.seconds += 60
            permits = [permit for permit in pool.map(attempt, range(8)) if permit]
            assert len(permits) == 1
            breaker.failed(permits[0], "Still down.")


def probation(breaker: Breaker, *, region_is_back: bool = False) -> bool:
    return breaker.elsewhere_answered(region_is_back=region_is_back)


def test_what_answers_elsewhere_neither_clears_failures_nor_closes_it() -> None:
    time = Time()
    breaker = make(time)
    for _ in range(3):
        assert not probation(breaker)
        breaker.failed(breaker.admit(), "It timed out.")
        time.seconds += 600
    assert breaker.is_open
    breaker.failed(breaker.admit(), "It timed out.")
    assert not probation(breaker)


def test_it_stays_open_while_somebody_asks() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    for _ in range(200):
        time.seconds += 3
        assert not probation(breaker)
        try:
            breaker.failed(breaker.admit(), "Still down.")
        except BackendUnavailable:
            continue
    assert breaker.since == 1_700_000_050


def test_seldom_callers_keep_it_open_as_well() -> None:
    """Each of them fails; a failover takes a minute of being down without a break."""
    time = Time()
    breaker = make(time)
    down_for = longest = 0
    for second in range(1200):
        time.seconds += 1
        if second % 5 == 0:  # the watch
            probation(breaker)
        if second % 45 == 0:
            with suppress(BackendUnavailable):
                breaker.failed(breaker.admit(), "Still down.")
        down_for = down_for + 1 if breaker.since is not None else 0
        longest = max(longest, down_for)
    assert longest > 600


def test_when_nobody_asks_any_more_it_is_on_probation() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    time.seconds += 9
    assert not probation(breaker)
    time.seconds += 1
    assert probation(breaker)
    assert breaker.since is None
    assert breaker.admit() == breaker.admit() == 0
    assert breaker.failed(0, "Still down.")  # one is enough
    assert refusal(breaker).retry_after == 10


def test_a_success_on_probation_ends_it() -> None:
    time = Time()
    breaker = make(time)
    open_up(breaker)
    assert probation(breaker, region_is_back=True)
    breaker.admit()
    breaker.succeeded()
    assert not breaker.failed(breaker.admit(), "once")
    assert not breaker.is_open


def test_one_failure_that_something_else_confirms_opens_it() -> None:
    breaker = make(Time())
    assert breaker.failed(breaker.admit(), "It timed out.", certain=True)
    assert refusal(breaker).retry_after == 5
