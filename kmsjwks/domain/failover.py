"""When a keyset's signing moves to the other of its backends, and when it comes back. Pure.

A failover is at once: the key that takes over has been published for long, so every verifier knows
it. Coming back is an ordinary hand-over with notice, since nothing is broken then. What keeps a
backend that comes and goes from using up keys: it must have been down, or up, without interruption
for the configured time, and nothing returns to the primary before the next failure could be
survived, which takes a spare in the standby that verifiers know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.rotation import (
    active_key,
    due_spare,
    earliest_activation,
    is_blocked,
    is_failed_over,
    spares,
    takeovers,
)

CALL_OFF_AFTER = 10  # seconds that a backend is down before a hand-over to it is called off


@dataclass(frozen=True, slots=True)
class Health:
    """How a backend does, as one process sees it: without interruption since ``since`` (seconds
    since the epoch)."""

    available: bool
    since: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FailOver:
    """The spare signs from now on."""

    kid: str
    why: str


@dataclass(frozen=True, slots=True)
class FailBack:
    """The primary's spare is to take over, with notice."""

    kid: str
    why: str


@dataclass(frozen=True, slots=True)
class CallOff:
    """The date of a spare is struck out: its backend is down."""

    kid: str
    why: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """The backend that signs is down, and nothing can take over. ``why`` is for the operator."""

    why: str


Decision = FailOver | FailBack | CallOff | Stuck


def is_ready(keyset: Keyset, key: Key, now: int, *, gated: bool) -> bool:
    """Whether every verifier may be taken to know the spare at ``now`` (seconds)."""
    return earliest_activation(keyset, key) <= now and not is_blocked(key, gated=gated)


def decide(
    keyset: Keyset, keys: Sequence[Key], health: Mapping[str, Health], now: int, *, gated: bool
) -> Decision | None:
    """What is to be done at ``now`` (seconds), as far as one process sees. ``gated`` as in
    `rotation.plan`; a backend that ``health`` does not name is not configured here."""
    active = active_key(keys)
    if active is None or active.hold or due_spare(keys, now) is not None:
        return None
    here = health.get(active.backend)
    if here is None:
        return None
    standby = keyset.standby
    if not here.available and standby is not None:
        after = standby.failover_after
        if after is not None and now - here.since >= after:
            return _away(keyset, keys, active, health, now, gated=gated)
    return _called_off(keys, active, health, now) or _back(
        keyset, keys, active, health, now, gated=gated
    )


def _away(
    keyset: Keyset,
    keys: Sequence[Key],
    active: Key,
    health: Mapping[str, Health],
    now: int,
    *,
    gated: bool,
) -> Decision:
    others = [name for name in keyset.backends if name != active.backend]
    waiting = [key for key in spares(keys) if key.backend in others]
    for key in waiting:
        state = health.get(key.backend)
        if state is not None and state.available and is_ready(keyset, key, now, gated=gated):
            down = health[active.backend]
            return FailOver(
                key.kid, f"{active.backend} is down for {int(now - down.since)} s: {down.reason}"
            )
    if not waiting:
        return Stuck(f"{active.backend} is down, and there is no spare in {' or '.join(others)}.")
    if all(not is_ready(keyset, key, now, gated=gated) for key in waiting):
        return Stuck(
            f"{active.backend} is down, and the spare in {waiting[0].backend} is not known to "
            "every verifier yet. 'keysets failover --now' uses it all the same."
        )
    return Stuck(f"{active.backend} is down, and so is {' and '.join(others)}.")


def _called_off(
    keys: Sequence[Key], active: Key, health: Mapping[str, Health], now: int
) -> CallOff | None:
    for _, key in takeovers(keys):
        state = health.get(key.backend)
        down = state is not None and not state.available and now - state.since >= CALL_OFF_AFTER
        if down and key.backend != active.backend:
            return CallOff(key.kid, f"{key.backend} is down")
    return None


def _back(
    keyset: Keyset,
    keys: Sequence[Key],
    active: Key,
    health: Mapping[str, Health],
    now: int,
    *,
    gated: bool,
) -> FailBack | None:
    standby, primary = keyset.standby, health.get(keyset.backend)
    if standby is None or standby.failback_after is None or primary is None:
        return None
    if not is_failed_over(keyset, keys) or not primary.available:
        return None
    stayed = now - max(primary.since, active.times.activate_at or 0)
    if stayed < standby.failback_after:
        return None
    ready = {key.backend: key for key in spares(keys) if is_ready(keyset, key, now, gated=gated)}
    spare = ready.get(keyset.backend)
    if spare is None or spare.times.activate_at is not None or standby.backend not in ready:
        return None
    return FailBack(spare.kid, f"{keyset.backend} is up again for {int(stayed)} s")
