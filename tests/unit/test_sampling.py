"""Which signatures are verified before release: by rule, by chance, never by wish."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.keys import Key, KeyState, KeyTimes
from kmsjwks.domain.sampling import (
    SamplingPlan,
    Surroundings,
    VerifySample,
    verify_all,
    verify_none,
)
from kmsjwks.domain.signatures import Verifier
from tests.support.lifecycle import SetClock

ES256 = find_algorithm("ES256")
KEY = Key("kid-1", "demo", ES256, "softhsm", "ref-1", b"spki", KeyState.ACTIVE, KeyTimes(0))
GOOD, BAD = bytes(64), b"\1" * 64
PLAN = SamplingPlan()
GAP_OF_21 = 0.5
"""A draw: (31/32)^21 is the last power above 0.5."""


@dataclass
class Bench:
    """A sampled verifier of a key whose good signature is ``GOOD``, and what it did."""

    draws: Callable[[], float] = lambda: GAP_OF_21
    clock: SetClock = field(default_factory=lambda: SetClock(0))
    verified: int = 0
    told: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        around = Surroundings(
            self.draws,
            self.clock.now,
            lambda key, released: self.told.append((key.kid, released)),
        )
        self.sampled = VerifySample(PLAN, around)

    def verifier(self, key: Key = KEY) -> Verifier:
        return self.sampled(key, self._verify)

    def _verify(self, message: bytes, signature: bytes) -> bool:
        self.verified += 1
        return signature == GOOD

    def pattern(self, verify: Verifier, signatures: int) -> str:
        """``v`` for each good signature that was verified, ``.`` for each that was not."""
        seen = ""
        for _ in range(signatures):
            before = self.verified
            assert verify(b"m", GOOD)
            seen += "v" if self.verified > before else "."
        return seen


def test_the_first_are_verified_then_one_after_each_gap() -> None:
    bench = Bench()
    seen = bench.pattern(bench.verifier(), 60)
    assert seen == "v" * 16 + "." * 21 + "v" + "." * 21 + "v"


def test_one_in_32_is_verified_and_the_gaps_have_no_memory() -> None:
    bench = Bench(draws=random.Random(6).random)
    seen = bench.pattern(bench.verifier(), 64_016)[16:]
    assert seen.count("v") == pytest.approx(2000, rel=0.05)
    after_one: list[bool] = []
    after_long: list[bool] = []
    for position in range(20, len(seen)):
        recent = seen[position - 20 : position]
        (after_long if "v" not in recent else after_one).append(seen[position] == "v")
    # Whoever saw what was verified, by its time, knows nothing of the next.
    assert sum(after_one) / len(after_one) == pytest.approx(1 / 32, rel=0.1)
    assert sum(after_long) / len(after_long) == pytest.approx(1 / 32, rel=0.1)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_every_draw_gives_a_gap(draw: float) -> None:
    bench = Bench(draws=lambda: draw)
    seen = bench.pattern(bench.verifier(), 2000)
    assert seen.count("v") == (2000 if draw == 0 else 17)


def test_a_key_that_signs_seldom_is_always_verified() -> None:
    bench = Bench()
    verify = bench.verifier()
    bench.pattern(verify, 17)
    for _ in range(5):
        bench.clock.seconds += PLAN.longest
        assert bench.pattern(verify, 2) == "v."
    bench.clock.seconds += PLAN.longest - 1
    assert bench.pattern(verify, 1) == "."


@pytest.mark.parametrize(("before", "passes"), [(0, False), (15, False), (16, True), (37, False)])
def test_a_bad_signature_passes_in_a_gap_alone(before: int, passes: bool) -> None:
    bench = Bench()
    verify = bench.verifier()
    bench.pattern(verify, before)
    assert verify(b"m", BAD) is passes


def test_after_a_failure_all_are_verified_for_a_thousand_signatures() -> None:
    bench = Bench()
    verify = bench.verifier()
    bench.pattern(verify, 16 + 5)
    bench.clock.seconds += PLAN.longest
    assert not verify(b"m", BAD)
    assert bench.told == [("kid-1", 5)]
    bench.clock.seconds += PLAN.suspect_seconds
    assert bench.pattern(verify, 1002) == "v" * 1000 + ".."


def test_after_a_failure_all_are_verified_for_ten_minutes() -> None:
    bench = Bench()
    verify = bench.verifier()
    assert not verify(b"m", BAD)
    assert bench.pattern(verify, 3000) == "v" * 3000
    bench.clock.seconds += PLAN.suspect_seconds - 1
    assert bench.pattern(verify, 3) == "vvv"
    bench.clock.seconds += 1
    assert bench.pattern(verify, 3) == "v.."


def test_each_failure_begins_anew() -> None:
    bench = Bench()
    verify = bench.verifier()
    assert not verify(b"m", BAD)
    bench.clock.seconds += PLAN.suspect_seconds
    bench.pattern(verify, 999)
    assert not verify(b"m", BAD)
    bench.clock.seconds += PLAN.suspect_seconds
    assert bench.pattern(verify, 1001) == "v" * 1000 + "."
    assert bench.told == []  # nothing was released unverified


def test_a_verifier_that_fails_counts_for_nothing() -> None:
    bench = Bench()

    def broken(message: bytes, signature: bytes) -> bool:
        raise MemoryError

    verify = bench.sampled(KEY, broken)
    for _ in range(PLAN.first + 1):
        with pytest.raises(MemoryError):
            verify(b"m", GOOD)


def test_a_new_verifier_of_the_same_key_goes_on_where_the_old_one_is() -> None:
    bench = Bench()
    old = bench.verifier()
    bench.pattern(old, 16 + 20)
    new = bench.verifier(replace(KEY, version=7))
    del old
    assert bench.pattern(new, 3) == ".v."


def test_keys_that_nobody_uses_are_forgotten() -> None:
    bench = Bench()
    held = [bench.verifier(replace(KEY, kid=f"kid-{number}")) for number in range(50)]
    assert len(bench.sampled._samples) == 50
    del held
    assert len(bench.sampled._samples) == 0


@pytest.mark.parametrize("change", [{"kid": "2"}, {"backend": "cloud"}, {"ref": "ref-2"}])
def test_another_key_and_another_device_begin_anew(change: dict[str, str]) -> None:
    bench = Bench()
    first = bench.verifier()
    bench.pattern(first, 16)
    assert bench.pattern(bench.verifier(replace(KEY, **change)), 17) == "v" * 16 + "."  # type: ignore[arg-type]
    assert bench.pattern(first, 1) == "."


@pytest.mark.parametrize("size", [0, 63, 65])
def test_no_signature_of_a_wrong_length_passes(size: int) -> None:
    bench = Bench()
    verify = bench.verifier()
    bench.pattern(verify, 17)
    assert not verify(b"m", bytes(size))
    assert not verify_none(KEY, verify)(b"m", bytes(size))
    assert bench.pattern(verify, 40) == "v" * 40


def test_all_and_none() -> None:
    bench = Bench()
    verify = bench.verifier()
    assert verify_all(KEY, verify) is verify
    assert verify_none(KEY, verify)(b"m", BAD)
    assert bench.verified == 0


def test_threads_share_a_sample() -> None:
    bench = Bench(draws=random.Random(1).random)
    verify = bench.verifier()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: verify(b"m", GOOD), range(16_000)))
    assert all(done)
    # Threads that meet at the end of a gap may all verify.
    assert 400 < bench.verified < 1500
    assert not verify(b"m", b"")
    before = bench.verified
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: verify(b"m", GOOD), range(900)))
    assert bench.verified - before == 900
