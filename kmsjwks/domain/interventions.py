"""What an operator's act does to the dates of keys, so that no replica is taken by surprise.

A replica may be cut off from the database at any moment and acts on what it knows for its grace:
it takes over to a spare whose date was struck out since, or signs under rules that hold no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.rotation import earliest_activation, withdrawal
from kmsjwks.domain.timing import InstallationTiming, total, verifier_terms


def latest_exp(timing: InstallationTiming, max_lifetime: int, now: int) -> int:
    """No token of a replica that never hears of a change made at ``now`` expires later (seconds).
    The skew: that replica dates its tokens by its own clock."""
    return now + timing.grace + timing.skew + max_lifetime


def rotation_date(keyset: Keyset, spare: Key, timing: InstallationTiming, now: int) -> int:
    """When a spare takes over that is to do so as soon as possible (seconds); never later than
    it was scheduled for."""
    at = max(now + timing.notice, earliest_activation(keyset, spare))
    scheduled = spare.times.activate_at
    return at if scheduled is None else min(at, scheduled)


def unscheduled(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> Key:
    """Strike out when a spare takes over. A replica that does not hear of it in time still signs
    with it, so what that may sign is remembered."""
    times = key.times
    if times.activate_at is None:
        return key
    bound = times.exp_bound
    if times.activate_at <= now + timing.grace + timing.skew:
        bound = max(bound or 0, latest_exp(timing, keyset.rules.max_lifetime, now))
    return replace(key, times=replace(times, activate_at=None, exp_bound=bound))


def taken_over(
    keyset: Keyset, keys: Sequence[Key], spare: Key, timing: InstallationTiming, now: int
) -> list[tuple[Key, Key]]:
    """Before and after, for each key that changes when ``spare`` takes over at once.

    Nobody was told beforehand, so the active key's last token may be later by the notice. Other
    spares lose their dates: they were chosen for another active key.
    """
    changed = []
    for key in keys:
        after = key
        if key.kid == spare.kid:
            times = replace(key.times, activate_at=now)
            after = replace(key, state=KeyState.ACTIVE, times=times)
        elif key.state is KeyState.ACTIVE:
            end = withdrawal(keyset, key, timing, now + timing.notice)
            times = replace(key.times, deactivated_at=now, withdraw_at=end)
            after = replace(key, state=KeyState.DEACTIVATED, times=times)
        elif _waits(key) and not key.hold:
            after = unscheduled(keyset, key, timing, now)
        if after != key:
            changed.append((key, after))
    return changed


def brought_forward(
    keyset: Keyset, keys: Sequence[Key], spare: Key, timing: InstallationTiming, now: int
) -> list[tuple[Key, Key]]:
    """Before and after, for each key that changes when ``spare`` is to take over as soon as
    possible and no other is."""
    at = rotation_date(keyset, spare, timing, now)
    changed = [(spare, replace(spare, times=replace(spare.times, activate_at=at)))]
    changed += [
        (key, unscheduled(keyset, key, timing, now))
        for key in keys
        if _waits(key) and key.kid != spare.kid and not key.hold
    ]
    return [(before, after) for before, after in changed if before != after]


def updated(key: Key, old: Keyset, new: Keyset, timing: InstallationTiming, now: int) -> Key:
    """The key after its keyset changed: tokens under longer lifetimes keep their end, and what
    the schedule decides is decided again where replicas can still be told in time."""
    if key.state not in (KeyState.ACTIVE, KeyState.PRE_ACTIVATION):
        return key
    times = key.times
    if new.rules.max_lifetime < old.rules.max_lifetime:
        # Spares too: one takes over at once if the active key is compromised in the next moment.
        bound = latest_exp(timing, old.rules.max_lifetime, now)
        times = replace(times, exp_bound=max(times.exp_bound or 0, bound))
    result = replace(key, times=times)
    moved = (new.schedule.period, new.schedule.propagation) != (
        old.schedule.period,
        old.schedule.propagation,
    )
    far = times.activate_at is not None and times.activate_at > now + timing.notice
    if key.state is KeyState.PRE_ACTIVATION and moved and far and not key.hold:
        return unscheduled(old, result, timing, now)
    return result


def released(
    keyset: Keyset, keys: Sequence[Key], kid: str, timing: InstallationTiming, now: int
) -> list[tuple[Key, Key]]:
    """Before and after, for each key that changes when ``kid`` is released.

    A date that the hold kept from coming true must not come true afterwards: the old key signed
    on beyond it. The planner writes a new one.
    """
    changed: list[tuple[Key, Key]] = []
    holder = next(key for key in keys if key.kid == kid)
    for key in keys:
        after = replace(key, hold=False) if key is holder else key
        stopped = key is holder or holder.state is KeyState.ACTIVE
        scheduled = key.times.activate_at
        passing = scheduled is not None and scheduled < now + timing.notice
        if stopped and passing and key.state is KeyState.PRE_ACTIVATION and not after.hold:
            after = unscheduled(keyset, after, timing, now)
        if after != key:
            changed.append((key, after))
    return changed


def destruction_begun(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> Key:
    """The key with the end of its waiting window: after every token that it may have signed. A
    spare takes over no more. Whether its state allows it, the caller has checked."""
    stopped = unscheduled(keyset, key, timing, now) if _waits(key) else key
    end = now + keyset.schedule.destroy_window
    bound = stopped.times.exp_bound
    if _waits(key) and bound is not None:
        end = max(end, bound + total(verifier_terms(keyset.schedule, timing)))
    return replace(stopped, times=replace(stopped.times, destroy_at=end))


def compromised(keyset: Keyset, key: Key, timing: InstallationTiming, wait: int, now: int) -> Key:
    """The key out of the JWKS from ``now`` on, its private half kept for ``wait`` (seconds; 0: not
    at all), but no longer than was decided before. What it may have signed is remembered, should
    the declaration be undone."""
    bound = max(key.times.exp_bound or 0, latest_exp(timing, keyset.rules.max_lifetime, now))
    kept_until = min(now + wait, key.times.destroy_at or now + wait) if wait else None
    times = replace(key.times, compromised_at=now, destroy_at=kept_until)
    if key.state is not KeyState.DEACTIVATED:
        times = replace(times, exp_bound=bound)
    return replace(key, state=KeyState.COMPROMISED, hold=False, times=times)


def compromise_undone(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> Key:
    """The key deactivated since it was declared compromised, and published for the tokens that it
    may have signed; it never signs again. The dates of a key that was deactivated before stay.

    Nobody was told beforehand, so its last token may be later by the notice, as in ``taken_over``.
    """
    times = key.times
    ended = times.deactivated_at
    if ended is None:
        ended = now if times.compromised_at is None else times.compromised_at
    end = times.withdraw_at
    if end is None:
        end = withdrawal(keyset, key, timing, ended + timing.notice)
    signed = times.activate_at is not None and times.activate_at <= ended
    corrected = replace(
        times,
        activate_at=times.activate_at if signed else None,
        deactivated_at=ended,
        withdraw_at=end,
        compromised_at=None,
        destroy_at=None,
    )
    return replace(key, state=KeyState.DEACTIVATED, times=corrected)


def _waits(key: Key) -> bool:
    return key.state is KeyState.PRE_ACTIVATION
