"""When keys are activated, withdrawn and destroyed. Pure: the same input gives the same plan.

The key that signs is a function of time and of facts written beforehand (`signing_key`), so every
replica switches at the same instant without talking to another. `plan` lists what has to be
written down or done because time has passed; running it late changes nothing that a verifier sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kmsjwks.domain.keys import TRANSITIONS, Key, Keyset, KeyState, is_published
from kmsjwks.domain.timing import InstallationTiming, total, verifier_terms, withdrawal_terms


@dataclass(frozen=True, slots=True)
class CreateSpare:
    """Generate and publish the next key in ``backend``; when it takes over is scheduled
    afterwards."""

    backend: str
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


@dataclass(frozen=True, slots=True)
class RetireSpare:
    """Begin the destruction of a spare in a backend that the keyset has left."""

    kid: str
    why: str


Step = CreateSpare | Schedule | HandOver | Tighten | BeginDestruction | Destroy | RetireSpare


def active_key(keys: Sequence[Key]) -> Key | None:
    return next((key for key in keys if key.state is KeyState.ACTIVE), None)


def spares(keys: Sequence[Key]) -> list[Key]:
    """Those that may take over, the oldest first."""
    found = [
        key
        for key in keys
        if key.state is KeyState.PRE_ACTIVATION and not key.hold and key.times.destroy_at is None
    ]
    return sorted(found, key=lambda key: (key.times.created_at, key.kid))


def takeovers(keys: Sequence[Key]) -> list[tuple[int, Key]]:
    """The scheduled spares and when each takes over (seconds), in that order; none while the
    active key is on hold. A date before the active key's own is left over from a hold."""
    active = active_key(keys)
    if active is not None and active.hold:
        return []
    since = 0 if active is None else active.times.activate_at or 0
    scheduled = [(key.times.activate_at, key) for key in spares(keys)]
    found = [(at, key) for at, key in scheduled if at is not None and at >= since]
    return sorted(found, key=lambda pair: pair[0])  # stable: of two at once the older first


def signing_timeline(keys: Sequence[Key]) -> list[tuple[int, Key]]:
    """From when (seconds) which key signs, ascending: `signing_key` for every moment at once.

    What is recorded as active signs, whatever this replica's clock says: a faster clock wrote
    ``activate_at`` when it came, and the key before it may be compromised.
    """
    active = active_key(keys)
    recorded = [] if active is None else [(0, active)]
    return recorded + takeovers(keys)


def signing_key(keys: Sequence[Key], now: int) -> Key | None:
    """The one key that signs at ``now`` (seconds), whether or not anybody wrote it down yet."""
    begun = [key for start, key in signing_timeline(keys) if start <= now]
    return begun[-1] if begun else None


def due_spare(keys: Sequence[Key], now: int) -> Key | None:
    """The next spare whose activation time has come, unless a hold stands in the way."""
    return next((key for start, key in takeovers(keys) if start <= now), None)


def replacement(keys: Sequence[Key], now: int, backend: str) -> Key | None:
    """The spare that takes over at once from a compromised active key in ``backend``: the one that
    signs by the clock already, else one of the same backend, else the one that verifiers know
    longest."""
    found = spares(keys)
    return (
        due_spare(keys, now)
        or next((key for key in found if key.backend == backend), None)
        or next(iter(found), None)
    )


def is_migrating(keyset: Keyset, keys: Sequence[Key]) -> bool:
    """Whether the active key is in a backend that the keyset is to leave: neither primary nor
    standby, or the standby where a migration was commanded that has not come to its end."""
    active, standby = active_key(keys), keyset.standby
    if active is None or active.backend == keyset.backend:
        return False
    if standby is None or active.backend != standby.backend:
        return True
    since = standby.left_since
    return since is not None and not any(
        key.backend == keyset.backend and _began_to_sign(key, since) for key in keys
    )


def _began_to_sign(key: Key, since: int) -> bool:
    """Whether it became active at ``since`` (seconds) or later."""
    at, times = key.times.activate_at, key.times
    if at is None or at < since or key.state is KeyState.PRE_ACTIVATION:
        return False
    # A spare that was compromised or destroyed before its time never signed.
    return all(end is None or at <= end for end in (times.compromised_at, times.destroyed_at))


def is_failed_over(keyset: Keyset, keys: Sequence[Key]) -> bool:
    """Whether the standby backend signs in the primary's place, and is not to be left."""
    active, standby = active_key(keys), keyset.standby
    if active is None or standby is None or active.backend != standby.backend:
        return False
    return not is_migrating(keyset, keys)


def next_backend(keyset: Keyset, keys: Sequence[Key]) -> str:
    """Where the key is that takes over by rotation: where the active one is, be it the standby,
    unless the keyset is to leave that."""
    active = active_key(keys)
    if active is None or is_migrating(keyset, keys):
        return keyset.backend
    return active.backend


def next_spare(keyset: Keyset, keys: Sequence[Key]) -> Key | None:
    """The spare that takes over by rotation."""
    backend = next_backend(keyset, keys)
    return next((key for key in spares(keys) if key.backend == backend), None)


def earliest_activation(keyset: Keyset, key: Key) -> int:
    """When every verifier may be taken to know the key (seconds)."""
    published = key.times.published_at
    assert published is not None
    return published + keyset.schedule.propagation


def withdrawal(keyset: Keyset, key: Key, timing: InstallationTiming, deactivated_at: int) -> int:
    """When no token that the key may have signed can still be accepted (seconds).

    A replica that was cut off signs on with the old key until its grace ends. The hand-over was
    written down by one clock at least ``notice = 2 refresh + skew`` ahead, so by that replica's
    clock its last token is of ``deactivated_at + grace - 2 refresh`` at the latest. Whoever
    withdraws and whoever verifies may differ by the skew once more, which is in the terms.
    What was signed under longer lifetimes than today's keeps its own end.
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


def planned_activation(keyset: Keyset, keys: Sequence[Key], spare: Key) -> int | None:
    """By the schedule, or as soon as can be where the keyset migrates; None where keys rotate on
    demand only (seconds)."""
    earliest, active = earliest_activation(keyset, spare), active_key(keys)
    if active is None or is_migrating(keyset, keys):
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
    supplied = {key.backend for key in waiting}
    steps += [CreateSpare(backend) for backend in keyset.backends if backend not in supplied]
    if not takeovers(keys):
        target = next_backend(keyset, keys)
        ready = [
            key for key in waiting if key.backend == target and not is_blocked(key, gated=gated)
        ]
        if ready:
            steps += _schedule(keyset, keys, ready[0], timing, now)
    steps += _strays(keyset, keys, waiting)
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
    keyset: Keyset, keys: Sequence[Key], spare: Key, timing: InstallationTiming, now: int
) -> list[Step]:
    active, planned = active_key(keys), planned_activation(keyset, keys, spare)
    if planned is None or (active is not None and active.hold):
        return []
    # Not before every replica can have read it.
    at = max(planned, now + timing.notice)
    why = "nothing signs"
    if active is not None:
        moves = is_migrating(keyset, keys)
        why = f"migration to {spare.backend}" if moves else "rotation period"
    return [Schedule(spare.kid, at, why)]


def _strays(keyset: Keyset, keys: Sequence[Key], waiting: Sequence[Key]) -> list[Step]:
    """Spares in a backend that the keyset has left. While it migrates they are kept: should the
    active key be compromised meanwhile, verifiers know them longest."""
    if active_key(keys) is None or is_migrating(keyset, keys):
        return []
    why = "the keyset is in this backend no more"
    return [RetireSpare(key.kid, why) for key in waiting if key.backend not in keyset.backends]


def _retire(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> list[Step]:
    times = key.times
    if key.hold or KeyState.DESTROYED not in TRANSITIONS[key.state]:
        return []
    if times.private_destroyed_at is not None:
        # The backend was asked, and waits itself. A key whose compromise was undone meanwhile
        # stays published for its tokens, with or without its private half.
        needed = key.state is KeyState.DEACTIVATED and is_published(key, now)
        over = times.private_destroyed_at <= now and not needed
        return [Destroy(key.kid, "the backend's waiting window ended")] if over else []
    if key.state is KeyState.COMPROMISED:
        kept = times.destroy_at is not None and now < times.destroy_at
        return [] if kept else [Destroy(key.kid, "compromised")]
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
        # Never a date in the past: until now the key was published.
        return [Tighten(key.kid, max(tighter, now), "the last token it signed is known")]
    after = keyset.schedule.destroy_after
    if after is None or now < withdraw_at:
        return []
    end = max(withdraw_at + after, now) + keyset.schedule.destroy_window
    return [BeginDestruction(key.kid, end, "the keyset's destroy policy")]
