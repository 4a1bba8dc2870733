"""When keys are activated, withdrawn and destroyed. Pure: the same input gives the same plan.

The key that signs is a function of time and of facts written beforehand (`signing_key`), so every
replica switches at the same instant without talking to another. `plan` lists what has to be
written down or done because time has passed; running it late changes nothing that a verifier sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.timing import InstallationTiming, total, verifier_terms, withdrawal_terms


@dataclass(frozen=True, slots=True)
class CreateSpare:
    """Generate and publish the next key; when it takes over is scheduled afterwards."""

    why: str = "a keyset always has a published spare"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Write down when the spare takes over (seconds), long before it does."""

    kid: str
    activate_at: int
    why: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Record that the spare is active and the old key deactivated since ``at`` (seconds)."""

    kid: str
    old_kid: str | None
    at: int
    withdraw_at: int
    why: str


@dataclass(frozen=True, slots=True)
class Tighten:
    """Withdraw earlier: the last token that the key really signed is known (seconds)."""

    kid: str
    withdraw_at: int
    why: str


@dataclass(frozen=True, slots=True)
class BeginDestruction:
    """Start the waiting window, which ends at ``destroy_at`` (seconds)."""

    kid: str
    destroy_at: int
    why: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy the private half in the backend; irreversible."""

    kid: str
    why: str


Step = CreateSpare | Schedule | HandOver | Tighten | BeginDestruction | Destroy


def active_key(keys: Sequence[Key]) -> Key | None:
    return next((key for key in keys if key.state is KeyState.ACTIVE), None)


def spares(keys: Sequence[Key]) -> list[Key]:
    """Oldest first: that one takes over next."""
    found = [key for key in keys if key.state is KeyState.PRE_ACTIVATION and not key.hold]
    return sorted(found, key=lambda key: (key.times.created_at, key.kid))


def due_spare(keys: Sequence[Key], now: int) -> Key | None:
    """The spare whose activation time has come, unless a hold stands in the way."""
    active = active_key(keys)
    if active is not None and active.hold:
        return None
    due = [
        key
        for key in spares(keys)
        if key.times.activate_at is not None and key.times.activate_at <= now
    ]
    return due[0] if due else None


def signing_key(keys: Sequence[Key], now: int) -> Key | None:
    """The one key that signs at ``now`` (seconds), whether or not anybody wrote it down yet."""
    return due_spare(keys, now) or active_key(keys)


def earliest_activation(keyset: Keyset, key: Key) -> int:
    """When every verifier may be taken to know the key (seconds)."""
    published = key.times.published_at
    assert published is not None
    return published + keyset.schedule.propagation


def withdrawal(keyset: Keyset, key: Key, timing: InstallationTiming, deactivated_at: int) -> int:
    """When no token that the key may have signed can still be accepted (seconds).

    A replica that lost the database may sign with the old key for its grace; and what was signed
    under longer lifetimes than today's keeps its own end.
    """
    lifetime = keyset.rules.max_lifetime
    by_lifetime = deactivated_at + total(withdrawal_terms(keyset.schedule, timing, lifetime))
    if key.times.exp_bound is None:
        return by_lifetime
    bound = key.times.exp_bound + total(verifier_terms(keyset.schedule, timing))
    return max(by_lifetime, bound)


def tightened_withdrawal(keyset: Keyset, key: Key, timing: InstallationTiming) -> int | None:
    """The same from the last token really signed; None where that is not known (seconds)."""
    max_exp, deactivated_at = key.times.max_exp, key.times.deactivated_at
    if max_exp is None or deactivated_at is None:
        return None
    return max(max_exp, deactivated_at) + total(verifier_terms(keyset.schedule, timing))


def planned_activation(keyset: Keyset, active: Key | None, spare: Key) -> int | None:
    """By the schedule; None where keys rotate on demand only (seconds)."""
    earliest = earliest_activation(keyset, spare)
    if active is None:
        return earliest
    if keyset.schedule.period is None or active.times.activate_at is None:
        return None
    return max(active.times.activate_at + keyset.schedule.period, earliest)


def is_blocked(spare: Key, *, gated: bool) -> bool:
    """Whether the key waits to be seen through the public URL."""
    return gated and spare.times.seen_at is None


def plan(
    keyset: Keyset, keys: Sequence[Key], timing: InstallationTiming, now: int, *, gated: bool
) -> list[Step]:
    """What is due at ``now`` (seconds), in the order in which to do it. ``gated``: no activation
    is scheduled before the key was seen in the JWKS through its public URL."""
    steps: list[Step] = []
    due = due_spare(keys, now)
    if due is not None:
        steps.append(_hand_over(keyset, keys, due, timing))
    waiting = [key for key in spares(keys) if key is not due]
    if not waiting:
        steps.append(CreateSpare())
    elif due is None:
        steps += _schedule(keyset, keys, waiting[0], timing, now, gated)
    for key in keys:
        steps += _retire(keyset, key, timing, now)
    return steps


def _hand_over(
    keyset: Keyset, keys: Sequence[Key], due: Key, timing: InstallationTiming
) -> HandOver:
    at = due.times.activate_at
    assert at is not None
    old = active_key(keys)
    withdraw_at = withdrawal(keyset, old, timing, at) if old else at
    return HandOver(due.kid, old.kid if old else None, at, withdraw_at, "its activation time came")


def _schedule(
    keyset: Keyset,
    keys: Sequence[Key],
    spare: Key,
    timing: InstallationTiming,
    now: int,
    gated: bool,
) -> list[Step]:
    active = active_key(keys)
    if spare.times.activate_at is not None or is_blocked(spare, gated=gated):
        return []
    planned = planned_activation(keyset, active, spare)
    if planned is None or (active is not None and active.hold):
        return []
    # Not before every replica can have read it.
    at = max(planned, now + timing.notice)
    return [Schedule(spare.kid, at, "rotation period" if active else "nothing signs")]


def _retire(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> list[Step]:
    times = key.times
    if key.hold or times.private_destroyed_at is not None:
        return []
    if key.state is KeyState.COMPROMISED:
        return [Destroy(key.kid, "compromised")]
    if times.destroy_at is not None:
        return [Destroy(key.kid, "the waiting window ended")] if times.destroy_at <= now else []
    if key.state is KeyState.DEACTIVATED and times.withdraw_at is not None:
        return _after_deactivation(keyset, key, times.withdraw_at, timing, now)
    return []


def _after_deactivation(
    keyset: Keyset, key: Key, withdraw_at: int, timing: InstallationTiming, now: int
) -> list[Step]:
    tighter = tightened_withdrawal(keyset, key, timing)
    if tighter is not None and now < withdraw_at and tighter < withdraw_at:
        return [Tighten(key.kid, tighter, "the last token it signed is known")]
    after = keyset.schedule.destroy_after
    if after is None or now < withdraw_at:
        return []
    end = max(withdraw_at + after, now) + keyset.schedule.destroy_window
    return [BeginDestruction(key.kid, end, "the keyset's destroy policy")]
