"""What the failover proof remembers beside the tokens' verdicts. Moments are seconds since the
epoch."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proof.record import Token


class Unmet(Exception):
    """Something that the scenario waits for did not come; the sentence says what."""


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Released:
    """A token that a caller got."""

    at: float
    keyset: str
    kid: str
    jti: str


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker of ``replica`` said of its backends at ``path``: the ones that are down, and
    the keysets that cannot sign for that, where they are named."""

    at: float
    replica: str
    path: str
    down: frozenset[str]
    cannot_sign: frozenset[str]


@dataclass(frozen=True, slots=True)
class Bad:
    """An answer other than 200, or none in time, of a replica that is up."""

    at: float
    replica: str
    path: str
    what: str


@dataclass
class Story:
    """Thread-safe through its methods; read it when the threads have ended."""

    phases: list[Phase] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    answered_at: dict[str, list[float]] = field(default_factory=dict)
    jwks_seconds: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _phase: tuple[str, float] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            with self._lock:
                self.phases.append(Phase(name, began, time.time()))

    def release(self, keyset: str, token: Token) -> None:
        payload = token.text.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        with self._lock:
            self.released.append(Released(token.at, keyset, token.kid, claims["jti"]))

    def answer(self, path: str, at: float) -> None:
        with self._lock:
            self.answered_at.setdefault(path, []).append(at)

    def add_bad(self, bad: Bad) -> None:
        with self._lock:
            self.bad.append(bad)

    def report(self, report: Report) -> None:
        with self._lock:
            self.reports.append(report)

    def last_kid(self, keyset: str) -> str | None:
        """Of the newest token."""
        with self._lock:
            return next((one.kid for one in reversed(self.released) if one.keyset == keyset), None)

    def count(self) -> int:
        with self._lock:
            return len(self.released)


def longest_gap(moments: list[float], phase: Phase) -> float:
    """Between two of ``moments`` (ascending), as far as the gap lies in the phase; a phase's begin
    and end are no moments."""
    longest, last = 0.0, None
    for at in [*moments, phase.ended]:
        if last is not None:
            longest = max(longest, min(at, phase.ended) - max(last, phase.began))
        last = at
    return longest
