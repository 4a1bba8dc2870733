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
from kmsjwks.domain.timing import InstallationTiming

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


@dataclass(frozen=True, slots=True)
class _View:
    keyset: Keyset
    keys: Sequence[Key]
    health: Mapping[str, Health]
    timing: InstallationTiming
    now: int
    gated: bool

    def ready(self, key: Key, at: int | None = None) -> bool:
        return is_ready(self.keyset, key, self.now if at is None else at, gated=self.gated)

    def down_for(self, backend: str) -> float | None:
        """Seconds; None where it is up, or not configured here."""
        state = self.health.get(backend)
        return None if state is None or state.available else self.now - state.since


def decide(
    keyset: Keyset,
    keys: Sequence[Key],
    health: Mapping[str, Health],
    timing: InstallationTiming,
    now: int,
    *,
    gated: bool,
) -> Decision | None:
    """What is to be done at ``now`` (seconds), as far as one process sees. ``gated`` as in
    `rotation.plan`; a backend that ``health`` does not name is not configured here."""
    view = _View(keyset, keys, health, timing, now, gated)
    active = active_key(keys)
    if active is None or active.hold or due_spare(keys, now) is not None:
        return None
    after = None if keyset.standby is None else keyset.standby.failover_after
    down_for = view.down_for(active.backend)
    if down_for is not None and after is not None and down_for >= after:
        return _away(view, active)
    return _called_off(view, active) or _back(view, active)


def _away(view: _View, active: Key) -> Decision:
    others = [name for name in view.keyset.backends if name != active.backend]
    waiting = [key for key in spares(view.keys) if key.backend in others]
    down, where = view.health[active.backend], " or ".join(others)
    for key in waiting:
        state = view.health.get(key.backend)
        if state is not None and state.available and view.ready(key):
            seconds = int(view.now - down.since)
            return FailOver(key.kid, f"{active.backend} is down for {seconds} s: {down.reason}")
    if not waiting:
        return Stuck(f"{active.backend} is down, and there is no spare in {where}.")
    if not any(view.ready(key) for key in waiting):
        return Stuck(
            f"{active.backend} is down, and the spare in {where} is not known to every verifier "
            "yet. 'keysets failover --now' uses it all the same."
        )
    return Stuck(f"{active.backend} is down, and so is {where}.")


def _called_off(view: _View, active: Key) -> CallOff | None:
    for _, key in takeovers(view.keys):
        down_for = view.down_for(key.backend)
        if key.backend != active.backend and (down_for or 0) >= CALL_OFF_AFTER:
            return CallOff(key.kid, f"{key.backend} is down")
    return None


def _back(view: _View, active: Key) -> FailBack | None:
    standby, primary = view.keyset.standby, view.health.get(view.keyset.backend)
    if standby is None or standby.failback_after is None or primary is None:
        return None
    if not is_failed_over(view.keyset, view.keys) or not primary.available:
        return None
    stayed = view.now - max(primary.since, active.times.activate_at or 0)
    if stayed < standby.failback_after:
        return None
    # By then: a standby's spare that is to rotate as soon as it is known stays a spare this way.
    then = view.now + view.timing.notice
    ready = {key.backend: key for key in spares(view.keys) if view.ready(key, then)}
    spare = ready.get(view.keyset.backend)
    if spare is None or spare.times.activate_at is not None or standby.backend not in ready:
        return None
    return FailBack(spare.kid, f"{view.keyset.backend} is up again for {int(stayed)} s")
