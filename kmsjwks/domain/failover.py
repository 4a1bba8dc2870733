"""When a keyset's signing moves to the other of its backends, and when it comes back. Pure.

A failover is at once: the key that takes over has been published for long, so every verifier knows
it. Coming back is an ordinary hand-over with notice, since nothing is broken then. What keeps a
backend that comes and goes from using up keys: it must have been down, or up, without interruption
for the configured time, and nothing returns to the primary before the next failure could be
survived, which takes a spare in the standby that verifiers know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from kmsjwks.domain.handover import caught_up
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.rotation import (
    active_key,
    earliest_activation,
    is_blocked,
    is_failed_over,
    replacement,
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
class Trouble:
    """What one process met with a key whose backend is well: refused at ``since``, at ``last``
    again, and never served between (seconds since the epoch). ``reason`` is for the operator."""

    since: float
    last: float
    reason: str


@dataclass(frozen=True, slots=True)
class Sight:
    """What one process sees: of backends by name, and by kid of the keys that cannot serve. A
    backend that is not named is not configured here."""

    backends: Mapping[str, Health]
    keys: Mapping[str, Trouble] = field(default_factory=lambda: MappingProxyType({}))

    def serves(self, key: Key) -> bool:
        """As far as is known here."""
        health = self.backends.get(key.backend)
        return key.kid not in self.keys and (health is None or health.available)


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
    """What signs cannot, and nothing can take over. ``why`` is for the operator."""

    why: str


Decision = FailOver | FailBack | CallOff | Stuck


def is_ready(keyset: Keyset, key: Key, now: int, *, gated: bool) -> bool:
    """Whether every verifier may be taken to know the spare at ``now`` (seconds)."""
    return earliest_activation(keyset, key) <= now and not is_blocked(key, gated=gated)


@dataclass(frozen=True, slots=True)
class _View:
    keyset: Keyset
    keys: Sequence[Key]
    sight: Sight
    timing: InstallationTiming
    now: int
    gated: bool

    def ready(self, key: Key, at: int | None = None) -> bool:
        return is_ready(self.keyset, key, self.now if at is None else at, gated=self.gated)

    def down_for(self, backend: str) -> float | None:
        """Seconds; None where it is up, or not configured here."""
        state = self.sight.backends.get(backend)
        return None if state is None or state.available else self.now - state.since

    def is_up(self, backend: str) -> bool:
        state = self.sight.backends.get(backend)
        return state is not None and state.available


@dataclass(frozen=True, slots=True)
class _Outage:
    """``what`` cannot sign for ``seconds``."""

    what: str
    seconds: float
    reason: str


def decide(
    keyset: Keyset,
    keys: Sequence[Key],
    sight: Sight,
    timing: InstallationTiming,
    now: int,
    *,
    gated: bool,
) -> Decision | None:
    """What is to be done at ``now`` (seconds), as far as one process sees. ``gated`` as in
    `rotation.plan`. It is about the key that signs by the clock: a hand-over that is due and that
    nobody has recorded yet is to be recorded first (`handover.handed_over`)."""
    view = _View(keyset, caught_up(keyset, keys, timing, now), sight, timing, now, gated)
    active = active_key(view.keys)
    if active is None or active.hold:
        return None
    after = None if keyset.standby is None else keyset.standby.failover_after
    outage = _outage(view, active)
    if outage is not None and after is not None and outage.seconds >= after:
        return _away(view, active, outage)
    return _called_off(view, active) or _back(view, active)


def successor(
    keyset: Keyset, keys: Sequence[Key], key: Key, sight: Sight, now: int, *, gated: bool
) -> Key | None:
    """The spare that takes over at once from the active ``key``, which is compromised: as
    `rotation.replacement`, but one that verifiers know and that can sign where that one cannot."""
    found = [one for one in keys if one.kid != key.kid]
    first = replacement(found, now, key.backend)
    if first is None or sight.serves(first):
        return first
    known = [one for one in spares(found) if is_ready(keyset, one, now, gated=gated)]
    return next((one for one in known if sight.serves(one)), first)


def _outage(view: _View, active: Key) -> _Outage | None:
    """Of a key, what counts is how long it has been refused again and again: nothing is known of
    the time in which nobody asked for it."""
    down_for, trouble = view.down_for(active.backend), view.sight.keys.get(active.kid)
    if down_for is not None:
        reason = view.sight.backends[active.backend].reason
        return _Outage(f"{active.backend} is down", down_for, reason)
    health = view.sight.backends.get(active.backend)
    if trouble is None or health is None:
        return None
    what = f"{active.backend} refuses the key {active.kid}"
    return _Outage(what, trouble.last - max(trouble.since, health.since), trouble.reason)


def _away(view: _View, active: Key, outage: _Outage) -> Decision:
    others = [name for name in view.keyset.backends if name != active.backend]
    waiting = [key for key in spares(view.keys) if key.backend in others]
    where, refused = " or ".join(others), view.sight.keys
    known = [key for key in waiting if view.ready(key)]
    up = [key for key in known if view.is_up(key.backend)]
    usable = [key for key in up if key.kid not in refused]
    if usable:
        why = f"{outage.what} for {int(outage.seconds)} s: {outage.reason}"
        return FailOver(usable[0].kid, why)
    if up:
        return Stuck(
            f"{outage.what}, and the spare {up[0].kid} in {up[0].backend} cannot be used: "
            f"{refused[up[0].kid].reason}"
        )
    if not waiting:
        return Stuck(f"{outage.what}, and there is no spare in {where}.")
    if not known:
        return Stuck(
            f"{outage.what}, and the spare in {where} is not known to every verifier "
            "yet. 'keysets failover --now' uses it all the same."
        )
    return Stuck(f"{outage.what}, and {where} is down too.")


def _called_off(view: _View, active: Key) -> CallOff | None:
    for _, key in takeovers(view.keys):
        down_for = view.down_for(key.backend)
        if key.backend != active.backend and (down_for or 0) >= CALL_OFF_AFTER:
            return CallOff(key.kid, f"{key.backend} is down")
    return None


def _back(view: _View, active: Key) -> FailBack | None:
    standby, primary = view.keyset.standby, view.sight.backends.get(view.keyset.backend)
    if standby is None or standby.failback_after is None or primary is None:
        return None
    if not is_failed_over(view.keyset, view.keys) or not primary.available:
        return None
    stayed = view.now - max(primary.since, active.times.activate_at or 0)
    if stayed < standby.failback_after or _refuses_keys(view, view.keyset.backend, primary.since):
        return None
    # By then: a standby's spare that is to rotate as soon as it is known stays a spare this way.
    then = view.now + view.timing.notice
    ready = {key.backend: key for key in spares(view.keys) if view.ready(key, then)}
    spare = ready.get(view.keyset.backend)
    if spare is None or spare.times.activate_at is not None or standby.backend not in ready:
        return None
    if spare.kid in view.sight.keys or ready[standby.backend].kid in view.sight.keys:
        return None
    return FailBack(spare.kid, f"{view.keyset.backend} is up again for {int(stayed)} s")


def _refuses_keys(view: _View, backend: str, since: float) -> bool:
    """Whether it did after ``since`` (seconds), when it was up. Then it is a person who goes back
    there: the next key may meet the same."""
    met = [
        view.sight.keys[key.kid]
        for key in view.keys
        if key.backend == backend
        and key.kid in view.sight.keys
        and key.state is not KeyState.DESTROYED
    ]
    return any(trouble.last >= since for trouble in met)
