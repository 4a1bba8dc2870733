"""What an act does to verifiers and to living tokens: the words that an operator is warned with."""

from __future__ import annotations

from kmsjwks.domain.explanation import moment
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.rotation import earliest_activation
from kmsjwks.domain.timing import InstallationTiming, Term, arithmetic, span, total


def effects_of_compromise(
    keyset: Keyset, key: Key, timing: InstallationTiming, now: int, *, kept_until: int | None = None
) -> tuple[str, ...]:
    """What declaring ``key`` compromised at ``now`` (seconds) does, told before it is done.
    ``kept_until`` (seconds): when its private half is destroyed, None for as soon as can be."""
    says = [
        f"Key {key.kid} leaves the JWKS at once. Caches may serve it for up to "
        f"{span(total(_forgetting(timing)))} more ({arithmetic(_forgetting(timing))}), and "
        "clients that never refresh accept it until they are restarted."
    ]
    alive = _alive(keyset, key, timing, now)
    if alive is None:
        says.append("It has signed no token.")
    elif alive <= 0:
        says.append("No token that it signed is alive any more.")
    else:
        says.append(
            f"Tokens that it signed may be alive for up to {alive} s, until {moment(now + alive)}; "
            "verifiers that fetch the JWKS anew refuse them all from now on."
        )
    if kept_until is None:
        says.append(
            "Its private half is destroyed as soon as the backend can; this cannot be undone."
        )
    else:
        says.append(
            f"Its private half is destroyed at {moment(kept_until)}, or once that is asked for "
            "with 'keys destroy'; until then 'keys undo-compromise' takes the declaration back."
        )
    return tuple(says)


def effect_of_early_takeover(keyset: Keyset, spare: Key, now: int) -> str | None:
    """A warning where a spare that signs from ``now`` (seconds) on may be unknown to verifiers."""
    earliest = earliest_activation(keyset, spare)
    if earliest <= now:
        return None
    return (
        f"Key {spare.kid} was published only at {moment(spare.times.published_at)}: verifiers that "
        f"do not fetch the JWKS on an unknown kid may refuse its tokens until {moment(earliest)}."
    )


def _forgetting(timing: InstallationTiming) -> tuple[Term, ...]:
    return timing.propagation_terms()[:2]


def _alive(keyset: Keyset, key: Key, timing: InstallationTiming, now: int) -> int | None:
    """Seconds until the last token of the key has expired, at most; None: it signed none."""
    times = key.times
    scheduled = times.activate_at is not None and times.activate_at <= now + timing.skew
    if key.state is KeyState.PRE_ACTIVATION and not scheduled:
        return None if times.exp_bound is None else times.exp_bound - now
    if key.state is KeyState.DEACTIVATED and times.deactivated_at is not None:
        last = times.max_exp
        if last is None:
            last = times.deactivated_at + timing.grace + keyset.rules.max_lifetime
            last = max(last, times.exp_bound or 0)
        return last + keyset.schedule.leeway - now
    # A replica that is cut off does not hear of it and signs on for its grace.
    last = now + timing.grace + keyset.rules.max_lifetime
    return max(last, times.exp_bound or 0) + keyset.schedule.leeway - now
