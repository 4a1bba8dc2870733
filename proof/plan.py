"""How long the proof runs, how fast its keys rotate, what it must not exceed. In seconds."""

from __future__ import annotations

from dataclasses import dataclass

KEYSET = "proof"
CLIENT = "caller"
AUDIENCE = "billing"
REPLICAS = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Times:
    """Scaled down, but not below the 30 s within which PyJWT and jose refuse to fetch again.

    ``propagation`` is what the keyset gets; ``published_before_signing`` is what must come of it.
    """

    propagation: int = 42
    published_before_signing: int = 40
    period: int = 55
    lifetime: int = 20
    leeway: int = 2
    grace: int = 5
    skew: int = 1
    refresh: float = 1.0
    tick: float = 1.0
    max_age: int = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """``seconds`` of signing. ``compromise_after``: this long after the activation of the key
    number ``compromised_key``, when its spare has been published for long enough."""

    seconds: float = 295.0
    tokens_per_second: float = 12.0
    compromised_key: int = 3
    compromise_after: float = 46.0
    kill_gap: tuple[float, float] = (6.0, 15.0)
    restart_after: tuple[float, float] = (0.5, 3.0)
    rotations: int = 4
    kills: int = 8
    longest_pause: float = 2.0
    compromise_reach: float = 3.0  # from the act's end until no replica signs or publishes
    missed_share: float = 0.01  # of the checks before exp that may have come too late


SIGN_TIMEOUT = 1.0  # of one replica, before the caller asks the next
LAST_LOOK = 1.5  # before its exp a token is verified again
