"""When things happen to a key, and why then: the words of `kmsjwks keysets show`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kmsjwks.domain.keys import Key, Keyset, KeyState, is_published
from kmsjwks.domain.rotation import (
    active_key,
    earliest_activation,
    is_blocked,
    is_failed_over,
    next_backend,
    planned_activation,
    spares,
    takeovers,
    withdrawal,
)
from kmsjwks.domain.timing import (
    InstallationTiming,
    Term,
    span,
    total,
    verifier_terms,
    withdrawal_terms,
)


@dataclass(frozen=True, slots=True)
class Date:
    """``what`` happens at ``at`` (seconds; None: not yet decided), and ``why`` then.

    Where the date was computed it is ``since`` (seconds) plus ``terms``, which ``why`` spells out.
    """

    what: str
    at: int | None
    why: str
    since: int | None = None
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyDates:
    kid: str
    state: KeyState
    dates: tuple[Date, ...]


@dataclass(frozen=True, slots=True)
class _Context:
    keyset: Keyset
    keys: tuple[Key, ...]
    timing: InstallationTiming
    now: int
    gated: bool


def explain(
    keyset: Keyset, keys: Sequence[Key], timing: InstallationTiming, now: int, *, gated: bool
) -> list[KeyDates]:
    """For every key, oldest first, what happened and what is to happen. ``now`` in seconds;
    ``gated`` as in `rotation.plan`."""
    context = _Context(keyset, tuple(keys), timing, now, gated)
    ordered = sorted(keys, key=lambda key: (key.times.created_at, key.kid))
    return [KeyDates(key.kid, key.state, tuple(_dates(context, key))) for key in ordered]


def moment(seconds: int | None) -> str:
    """RFC 3339, UTC; ``seconds`` since the epoch."""
    if seconds is None:
        return "an unknown time"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _dates(context: _Context, key: Key) -> list[Date]:
    return [*_publication(key), *_activation(context, key), *_end(context, key)]


def _computed(what: str, label: str, since: int, terms: tuple[Term, ...]) -> Date:
    why = f"{label} {moment(since)}"
    spelled = [f"{span(term.seconds)} {term.reason}" for term in terms if term.seconds]
    return Date(what, since + total(terms), " + ".join([why, *spelled]), since, terms)


def _publication(key: Key) -> list[Date]:
    if key.times.published_at is None:
        return []
    return [Date("published", key.times.published_at, "in the JWKS since its creation")]


def _activation(context: _Context, key: Key) -> list[Date]:
    at = key.times.activate_at
    if key.state is KeyState.PRE_ACTIVATION:
        return _future_activation(context, key)
    # A spare that was compromised or destroyed before its time never signed.
    ended = [key.times.compromised_at, key.times.destroyed_at]
    if at is None or any(end is not None and end < at for end in ended):
        return []
    return [Date("activated", at, "signs from then on, on every replica")]


def _future_activation(context: _Context, key: Key) -> list[Date]:
    if key.times.destroy_at is not None:
        return []
    obstacle = _obstacle(context, key)
    if obstacle is not None:
        return [Date("will be activated", None, obstacle)]
    at = key.times.activate_at
    taking = [(start, spare.kid) for start, spare in takeovers(context.keys)]
    if at is not None and (at, key.kid) in taking:
        what = "activated" if at <= context.now else "will be activated"
        return [_activation_at(context, key, at, what)]
    if key.backend != next_backend(context.keyset, context.keys):
        return [_standing_by(context, key)]
    if taking or _is_behind(context, key):
        return [Date("will be activated", None, "another spare takes over first")]
    return [_planned_activation(context, key)]


def _planned_activation(context: _Context, key: Key) -> Date:
    planned = planned_activation(context.keyset, context.keys, key)
    if planned is None:
        why = (
            f"rotates on demand only; ready from {moment(earliest_activation(context.keyset, key))}"
        )
        return Date("will be activated", None, why)
    at = max(planned, context.now + context.timing.notice)
    return _activation_at(context, key, at, "will be activated")


def _is_behind(context: _Context, key: Key) -> bool:
    ready = [
        one
        for one in spares(context.keys)
        if one.backend == key.backend and not is_blocked(one, gated=context.gated)
    ]
    return bool(ready) and ready[0].kid != key.kid


def _standing_by(context: _Context, key: Key) -> Date:
    """A spare that does not take over by rotation."""
    keyset, standby = context.keyset, context.keyset.standby
    if key.backend not in keyset.backends or standby is None:
        why = f"in {key.backend}, which the keyset leaves; retired once {keyset.backend} signs"
        return Date("stands by", None, why)
    known = f"known to every verifier from {moment(earliest_activation(keyset, key))}"
    active = active_key(context.keys)
    signs_in = keyset.backend if active is None else active.backend
    if key.backend == signs_in:
        why = f"in {signs_in}, which signs until {keyset.backend} does; {known}"
        return Date("stands by", None, why)
    if is_failed_over(keyset, context.keys):
        after, when = standby.failback_after, f"{key.backend} has been up again"
    else:
        after, when = standby.failover_after, f"{signs_in} fails and has been down"
    says = "on command only" if after is None else f"when {when} for {span(after)}"
    return Date("stands by", None, f"in {key.backend}: takes over {says}; {known}")


def _obstacle(context: _Context, key: Key) -> str | None:
    active = active_key(context.keys)
    if key.hold:
        return "on hold; release it first"
    if active is not None and active.hold:
        return f"the active key {active.kid} is on hold; release it first"
    if key.times.activate_at is None and is_blocked(key, gated=context.gated):
        return (
            "blocked: waits to be seen in the JWKS through the public URL; "
            "the active key goes on signing"
        )
    return None


def _activation_at(context: _Context, key: Key, at: int, what: str) -> Date:
    """Find the rule that gives this date; what no rule gives was asked for by an operator."""
    schedule, active = context.keyset.schedule, active_key(context.keys)
    delay = (Term(schedule.propagation, "propagation delay"),)
    if at == earliest_activation(context.keyset, key):
        return _computed(what, "published", at - total(delay), delay)
    since = None if active is None else active.times.activate_at
    if since is not None and schedule.period is not None and at == since + schedule.period:
        period = (Term(schedule.period, "rotation period"),)
        return _computed(what, "last activation", since, period)
    notice = (
        Term(2 * context.timing.refresh_interval, "refresh of the replicas"),
        Term(context.timing.skew, "clock skew"),
    )
    return _computed(what, "decided", at - total(notice), notice)


def _end(context: _Context, key: Key) -> list[Date]:
    times = key.times
    dates: list[Date] = []
    if key.state is KeyState.ACTIVE:
        dates += _future_end(context, key)
    if times.deactivated_at is not None:
        dates.append(Date("deactivated", times.deactivated_at, "the next key took over"))
    if times.withdraw_at is not None and times.compromised_at is None:
        dates.append(_withdrawal(context, key, times.withdraw_at))
    if times.compromised_at is not None:
        dates.append(
            Date("withdrawn", times.compromised_at, "compromised: out of the JWKS at once")
        )
    return dates + _destruction(context, key)


def _future_end(context: _Context, key: Key) -> list[Date]:
    if key.hold:
        return [Date("will be deactivated", None, "on hold; release it first")]
    successors = takeovers(context.keys)
    if not successors:
        return [Date("will be deactivated", None, "no spare is scheduled to take over yet")]
    at, spare = successors[0]
    what = "deactivated" if at <= context.now else "will be deactivated"
    end = withdrawal(context.keyset, key, context.timing, at)
    return [
        Date(what, at, f"key {spare.kid} takes over"),
        _withdrawal_for(context, key, at, end),
    ]


def _withdrawal(context: _Context, key: Key, at: int) -> Date:
    deactivated_at = key.times.deactivated_at
    if deactivated_at is None:
        what = "withdrawn" if at <= context.now else "will be withdrawn"
        return Date(what, at, "recorded on the key")
    return _withdrawal_for(context, key, deactivated_at, at)


def _withdrawal_for(context: _Context, key: Key, deactivated_at: int, at: int) -> Date:
    """Find the rule that gives this date; rules may have changed since it was written."""
    schedule, timing, times = context.keyset.schedule, context.timing, key.times
    what = "withdrawn" if at <= context.now else "will be withdrawn"
    if key.state is KeyState.DEACTIVATED and key.hold and is_published(key, max(at, context.now)):
        return Date("will be withdrawn", None, "on hold: stays published until it is released")
    overlap = withdrawal_terms(schedule, timing, context.keyset.rules.max_lifetime)
    verifiers = verifier_terms(schedule, timing)
    candidates = [("deactivated", deactivated_at, overlap)]
    if times.max_exp is not None:
        last = max(times.max_exp, deactivated_at)
        label = "tokens until" if last == times.max_exp else "no token after"
        candidates.insert(0, (label, last, verifiers))
    if times.exp_bound is not None:
        candidates.append(("tokens under earlier rules until", times.exp_bound, verifiers))
    for label, since, terms in candidates:
        if since + total(terms) == at:
            return _computed(what, label, since, terms)
    then = (Term(at - deactivated_at, "overlap under the rules when it was written"),)
    return _computed(what, "deactivated", deactivated_at, then)


def _destruction(context: _Context, key: Key) -> list[Date]:
    times = key.times
    done: list[Date] = []
    if times.private_destroyed_at is not None and _is_waited_for(context, key):
        return [_waiting_backend(key, times.private_destroyed_at)]
    if times.private_destroyed_at is not None:
        why = "by the backend, irreversibly"
        done.append(Date("private half destroyed", times.private_destroyed_at, why))
    if times.destroyed_at is not None:
        done.append(Date("destroyed", times.destroyed_at, "the row stays as a tombstone"))
    if done or key.state is KeyState.DESTROYED:
        return done
    if key.state is KeyState.COMPROMISED:
        return [_destruction_of_compromised(context, key)]
    if times.destroy_at is not None:
        return [_pending_destruction(key, times.destroy_at)]
    if key.state is KeyState.DEACTIVATED and times.withdraw_at is not None:
        return _policy(context, key, times.withdraw_at)
    return []


def _is_waited_for(context: _Context, key: Key) -> bool:
    at = key.times.private_destroyed_at
    return key.state is not KeyState.DESTROYED and at is not None and at > context.now


def _waiting_backend(key: Key, at: int) -> Date:
    """The backend was asked to destroy it, and has a waiting window of its own."""
    why = f"{key.backend} waits that long; the private half serves nothing meanwhile"
    if key.state is not KeyState.COMPROMISED:
        why = f"{why}; can be cancelled until {moment(at)}"
    return Date("irreversible from", at, why)


def _destruction_of_compromised(context: _Context, key: Key) -> Date:
    kept_until = key.times.destroy_at
    if key.hold:
        return Date("will be destroyed", None, "on hold; release it first")
    if kept_until is None or kept_until <= context.now:
        return Date("will be destroyed", None, "compromised: as soon as the backend can")
    why = f"compromised; the declaration can be undone until {moment(kept_until)}"
    return Date("will be destroyed", kept_until, why)


def _pending_destruction(key: Key, at: int) -> Date:
    if key.hold:
        return Date("will be destroyed", None, "on hold; release it first")
    return Date(
        "will be destroyed", at, f"destruction pending; can be cancelled until {moment(at)}"
    )


def _policy(context: _Context, key: Key, withdraw_at: int) -> list[Date]:
    schedule = context.keyset.schedule
    if schedule.destroy_after is None:
        return [Date("will be destroyed", None, "on demand only")]
    if key.hold:
        return [Date("will be destroyed", None, "on hold; release it first")]
    wait = (Term(schedule.destroy_after, "delay before destruction"),)
    window = (Term(schedule.destroy_window, "destruction window"),)
    begins = _computed("destruction begins", "withdrawn", withdraw_at, wait)
    if begins.at is not None and begins.at < context.now:
        # The window is waited for in full, however late it starts.
        begins = Date("destruction begins", context.now, "due, and waits for the next tick")
    start = begins.at
    assert start is not None
    return [begins, _computed("will be destroyed", "destruction begins", start, window)]
