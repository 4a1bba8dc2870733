"""What happened during the proof. Moments are seconds since the epoch."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum


class Look(Enum):
    """When a token is verified."""

    FIRST = "at once"
    LAST = "before exp"


@dataclass(frozen=True, slots=True)
class Token:
    """``at``: when the caller had it. ``iat`` and ``exp`` are its claims."""

    text: str
    kid: str
    at: float
    iat: int
    exp: int


@dataclass(frozen=True, slots=True)
class Refusal:
    client: str
    look: Look
    at: float
    token: Token
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """``what``: ``replica`` or ``worker``."""

    at: float
    what: str
    replica: str


@dataclass(frozen=True, slots=True)
class Compromise:
    """``began`` and ``ended``: the operator's command."""

    kid: str
    began: float
    ended: float


@dataclass
class Signed:
    """With one key: how many, the first and the last moment, the bounds of the claims."""

    count: int
    first: float
    last: float
    first_iat: int
    last_iat: int
    last_exp: int


@dataclass
class Seen:
    """A kid in the replicas' JWKS: the first and the last moment, in any of them."""

    first: float
    last: float


@dataclass
class Record:
    """Thread-safe through its methods; read it when the threads have ended."""

    began: float
    ended: float = 0.0  # of signing
    closed: float = 0.0  # of everything
    signed: dict[str, Signed] = field(default_factory=dict)
    accepted: Counter[tuple[str, str, Look]] = field(default_factory=Counter)
    excused: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    sign_failures: Counter[str] = field(default_factory=Counter)
    own_ends: list[str] = field(default_factory=list)
    compromise: Compromise | None = None
    longest_pause: float = 0.0
    longest_pause_at: float = 0.0
    _compromised: tuple[str, float] | None = None
    _last_token: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_token(self, token: Token) -> None:
        with self._lock:
            self._note_pause(token.at)
            found = self.signed.get(token.kid)
            if found is None:
                self.signed[token.kid] = Signed(
                    1, token.at, token.at, token.iat, token.iat, token.exp
                )
                return
            found.count += 1
            found.last = token.at
            found.last_iat, found.last_exp = token.iat, max(token.exp, found.last_exp)

    def end_signing(self, at: float) -> None:
        with self._lock:
            self._note_pause(at)
            self.ended = at

    def _note_pause(self, at: float) -> None:
        last = self._last_token if self._last_token is not None else self.began
        if at - last > self.longest_pause:
            self.longest_pause, self.longest_pause_at = at - last, last
        self._last_token = at

    def add_sign_failure(self, what: str) -> None:
        with self._lock:
            self.sign_failures[what] += 1

    def add_kill(self, kill: Kill) -> None:
        with self._lock:
            self.kills.append(kill)

    def add_own_end(self, replica: str, code: int) -> None:
        """A replica ended that nobody had killed."""
        with self._lock:
            self.own_ends.append(f"{replica} ended by itself (exit {code})")

    def begin_compromise(self, kid: str, at: float) -> None:
        """From now on clients may refuse what the key signed."""
        with self._lock:
            self._compromised = (kid, at)

    def end_compromise(self, at: float) -> None:
        with self._lock:
            assert self._compromised is not None
            self.compromise = Compromise(*self._compromised, at)

    def see(self, kids: list[str], at: float) -> None:
        with self._lock:
            for kid in kids:
                self.seen.setdefault(kid, Seen(at, at)).last = at

    def accept(self, client: str, token: Token, look: Look) -> None:
        with self._lock:
            self.accepted[client, token.kid, look] += 1

    def miss(self, client: str) -> None:
        """The check before exp came too late to mean anything."""
        with self._lock:
            self.missed[client] += 1

    def refuse(self, refusal: Refusal) -> None:
        with self._lock:
            kid = refusal.token.kid
            if self._compromised is not None and kid == self._compromised[0]:
                self.excused[refusal.client, kid] += 1
            else:
                self.refusals.append(refusal)
