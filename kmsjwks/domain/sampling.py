"""Which signatures are verified before release: all, some that nobody can foretell, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from weakref import WeakValueDictionary

from kmsjwks.domain.keys import Key
from kmsjwks.domain.signatures import Verifier

ReleaseCheck = Callable[[Key, Verifier], Verifier]
"""From a verifier of a key to the one that its new signatures must pass."""


def verify_all(_: Key, verify: Verifier) -> Verifier:
    return verify


def verify_none(key: Key, _: Verifier) -> Verifier:
    """The length is looked at all the same."""
    size = key.algorithm.signature_bytes
    return lambda _, signature: len(signature) == size


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Of a key in a process, the ``first`` signatures are verified, then each with probability
    1 / ``one_in``, and whenever the last verification is ``longest`` seconds old.

    After one that does not verify, all are for at least ``suspect_signatures`` signatures and
    ``suspect_seconds`` seconds.
    """

    first: int = 16
    one_in: int = 32
    longest: float = 60.0
    suspect_signatures: int = 1000
    suspect_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``draw``: a number in [0, 1) that nobody can foretell. ``now``: monotonic seconds.
    ``on_released`` is told of a key whose signature did not verify after others were released
    unverified, and of how many since the last that did verify."""

    draw: Callable[[], float]
    now: Callable[[], float]
    on_released: Callable[[Key, int], None]


class VerifySample:
    """A ``ReleaseCheck``. Remembers where a key's sample stands for as long as a verifier that it
    made for that key is in use: over new snapshots, and not for keys long gone."""

    def __init__(self, plan: SamplingPlan, around: Surroundings) -> None:
        self._plan, self._around = plan, around
        self._samples: WeakValueDictionary[tuple[str, str, str], _Sample] = WeakValueDictionary()

    def __call__(self, key: Key, verify: Verifier) -> Verifier:
        sample = self._sample(key)
        size = key.algorithm.signature_bytes

        def verify_some(message: bytes, signature: bytes) -> bool:
            if len(signature) == size and sample.passes_over():
                return True
            valid = verify(message, signature)
            released = sample.take(valid)
            if released and not valid:
                self._around.on_released(key, released)
            return valid

        return verify_some

    def _sample(self, key: Key) -> _Sample:
        # The same key in another device begins anew.
        name = (key.kid, key.backend, key.ref)
        sample = self._samples.get(name)
        if sample is None:
            sample = self._samples[name] = _Sample(self._plan, self._around)
        return sample


class _Sample:
    """Where one key stands. Thread-safe."""

    def __init__(self, plan: SamplingPlan, around: Surroundings) -> None:
        self._plan, self._around = plan, around
        self._lock = Lock()
        self._owed = plan.first  # signatures that must verify before one is passed over
        self._suspect_until = -math.inf
        self._gap = self._left = 0  # signatures passed over until the next is verified
        self._due = -math.inf

    def passes_over(self) -> bool:
        """Whether the signature at hand need not be verified."""
        with self._lock:
            if self._left == 0 or self._around.now() >= self._due:
                return False
            self._left -= 1
            return True

    def take(self, valid: bool) -> int:
        """The outcome of a verification. How many were passed over before it."""
        with self._lock:
            now = self._around.now()
            released = self._gap - self._left
            self._gap = self._left = 0
            if not valid:
                self._owed = self._plan.suspect_signatures
                self._suspect_until = now + self._plan.suspect_seconds
                return released
            self._owed = max(self._owed - 1, 0)
            if self._owed == 0 and now >= self._suspect_until:
                self._gap = self._left = self._draw_gap()
                self._due = now + self._plan.longest
            return released

    def _draw_gap(self) -> int:
        """Geometric: the only gap after which each signature is as likely as any other to be the
        next that is verified, whatever was seen of those before. One draw serves many."""
        return int(math.log(1 - self._around.draw()) / math.log(1 - 1 / self._plan.one_in))
