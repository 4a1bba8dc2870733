"""What destroying a key, and taking back that it is compromised, would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kmsjwks.domain import interventions
from kmsjwks.domain.approvals import ProtectedAct
from kmsjwks.domain.errors import TransitionRefused
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.keys import Key, Keyset, KeyState, check_correction, check_transition
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import Acts, acts_on, one_key


def plan_protected(
    act: ProtectedAct,
    keyset: Keyset,
    keys: Sequence[Key],
    kid: str,
    at: tuple[int, InstallationTiming],
) -> Acts:
    """``at``: now (seconds), and the installation's times.

    Raises:
        TransitionRefused
    """
    key = one_key(keys, kid)
    match act:
        case ProtectedAct.DESTROY:
            return _destroy(keyset, key, *at)
        case ProtectedAct.UNDO_COMPROMISE:
            return _undo(keyset, key, *at)


def _destroy(keyset: Keyset, key: Key, now: int, timing: InstallationTiming) -> Acts:
    check_transition(key, KeyState.DESTROYED)
    if key.state is KeyState.COMPROMISED:
        # What keeps it, if anything, is that the declaration can be undone.
        says = f"Key {key.kid} is compromised: it is destroyed as soon as its backend answers."
        after = replace(key, times=replace(key.times, destroy_at=None))
        return acts_on(key, after, "destruction-begun", says)
    withdraw_at = key.times.withdraw_at
    if key.state is KeyState.DEACTIVATED and (withdraw_at is None or now < withdraw_at):
        raise TransitionRefused(
            f"Tokens signed by {key.kid} may live until {moment(withdraw_at)}; destroy it after "
            "that. If it is in wrong hands, use compromise."
        )
    begun = key.times.destroy_at is not None
    after = key if begun else interventions.destruction_begun(keyset, key, timing, now)
    says = (
        f"Key {key.kid} is destroyed at {moment(after.times.destroy_at)}; until then it can be "
        "cancelled."
    )
    return acts_on(key, after, "destruction-begun", says)


def _undo(keyset: Keyset, key: Key, now: int, timing: InstallationTiming) -> Acts:
    check_correction(key)
    after = interventions.compromise_undone(keyset, key, timing, now)
    end = after.times.withdraw_at
    assert end is not None
    if now < end:
        says = (
            f"Key {key.kid} is in the JWKS again until {moment(end)}, for the tokens that it "
            "signed; it never signs again. Verifiers accept them again as they refresh."
        )
    else:
        says = (
            f"Key {key.kid} is deactivated. No token that it signed is alive, so it stays out of "
            "the JWKS."
        )
    return acts_on(key, after, "compromise-undone", says)
