"""The limiter keeps below its rate and never makes a thread wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from kmsjwks.backends.awskms.limiter import Limiter
from kmsjwks.domain.errors import BackendThrottled


class Time:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def admitted(limiter: Limiter) -> bool:
    try:
        limiter.acquire()
    except BackendThrottled:
        return False
    return True


def test_no_second_of_a_minute_holds_more_than_the_quota() -> None:
    time, admissions = Time(), []
    limiter = Limiter(900, monotonic=time)
    for step in range(60 * 500):  # 2,500 attempts a second, unevenly
        time.seconds = 1000 + step / 500
        admissions += [time.seconds for _ in range(1 + 8 * (step % 2)) if admitted(limiter)]
    assert 60 * 900 - 90 <= len(admissions) <= 60 * 900 + 90
    assert max(_in_the_second_before(admissions)) < 1000


def _in_the_second_before(moments: list[float]) -> list[int]:
    counts, start = [], 0
    for end, moment in enumerate(moments):
        while moments[start] <= moment - 1:
            start += 1
        counts.append(end - start + 1)
    return counts


def test_it_says_when_to_come_back_and_keeps_its_word() -> None:
    time = Time()
    limiter = Limiter(2, burst=1, monotonic=time)
    limiter.acquire()
    with pytest.raises(BackendThrottled, match="requests_per_second") as refused:
        limiter.acquire()
    assert refused.value.retry_after == pytest.approx(0.5)
    time.seconds += refused.value.retry_after
    limiter.acquire()


def test_idle_time_is_not_saved_up() -> None:
    time = Time()
    limiter = Limiter(100, monotonic=time)
    time.seconds += 3600
    assert sum(admitted(limiter) for _ in range(50)) == 10


def test_a_clock_that_stands_still_admits_the_burst_once_to_all_threads() -> None:
    limiter = Limiter(500, monotonic=Time())
    with ThreadPoolExecutor(8) as pool:
        admissions = list(pool.map(lambda _: admitted(limiter), range(400)))
    assert sum(admissions) == 50
