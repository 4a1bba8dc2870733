"""Keysets, keys, and the NIST SP 800-57 states that a key passes through."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import InvalidRequest, TransitionRefused
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules

KEYSET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class KeyState(Enum):
    """NIST SP 800-57 Part 1 section 7."""

    PRE_ACTIVATION = "pre-activation"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


TRANSITIONS: dict[KeyState, frozenset[KeyState]] = {
    KeyState.PRE_ACTIVATION: frozenset({KeyState.ACTIVE, KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.ACTIVE: frozenset({KeyState.DEACTIVATED, KeyState.COMPROMISED}),
    KeyState.DEACTIVATED: frozenset({KeyState.COMPROMISED, KeyState.DESTROYED}),
    KeyState.COMPROMISED: frozenset({KeyState.DESTROYED}),
    KeyState.DESTROYED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """Facts about a key, in seconds since the epoch; None where it has not come to that.

    ``activate_at`` is written long before it comes. ``seen_at``: when the key was seen in the JWKS
    through the public URL. ``exp_bound``: no token signed under rules that hold no more expires
    later. ``max_exp``: the highest ``exp`` really signed, once that is final. ``destroy_at``: end
    of the waiting window of a destruction that can still be cancelled; of a compromised key, until
    when its private half is kept so that the declaration can be undone.
    """

    created_at: int
    published_at: int | None = None
    activate_at: int | None = None
    deactivated_at: int | None = None
    withdraw_at: int | None = None
    private_destroyed_at: int | None = None
    destroyed_at: int | None = None
    max_exp: int | None = None
    compromised_at: int | None = None
    seen_at: int | None = None
    exp_bound: int | None = None
    destroy_at: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One generation in a keyset. ``spki`` is DER SubjectPublicKeyInfo.

    ``hold`` stops every transition but ``compromised``. ``version`` counts changes, so that two
    writers cannot overwrite each other.
    """

    kid: str
    keyset: str
    algorithm: Algorithm
    backend: str
    ref: str
    spki: bytes
    state: KeyState
    times: KeyTimes
    hold: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True)
class Standby:
    """Where a keyset's keys take over when its primary backend fails, and when they do.

    In seconds: ``failover_after``, how long the backend that signs must have been unavailable;
    ``failback_after``, how long the primary must have been available again. None: on command only.
    ``left_since``: the keyset was commanded then (seconds since the epoch) to move to its primary,
    wherever it signs: what keeps a migration apart from a failover.
    """

    backend: str
    failover_after: int | None = 60
    failback_after: int | None = 3600
    left_since: int | None = None


@dataclass(frozen=True, slots=True)
class Keyset:
    """A named series of keys with one algorithm, issuer and set of token rules.

    ``backend`` is the primary: where its keys are made, and where it moves to when the active key
    is elsewhere for another reason than a failover.
    """

    name: str
    algorithm: Algorithm
    backend: str
    rules: TokenRules
    created_at: int
    schedule: RotationSchedule = field(default_factory=RotationSchedule)
    standby: Standby | None = None

    @property
    def backends(self) -> tuple[str, ...]:
        """Where it keeps a published spare, the primary first."""
        return (self.backend,) if self.standby is None else (self.backend, self.standby.backend)


def check_transition(key: Key, to: KeyState) -> None:
    """
    Raises:
        TransitionRefused: ``key.state -> to`` is not in ``TRANSITIONS``, or the key is on hold.
    """
    if key.hold and to is not KeyState.COMPROMISED:
        raise TransitionRefused(f"Key {key.kid} is on hold; release it first.")
    if to not in TRANSITIONS[key.state]:
        raise TransitionRefused(f"Key {key.kid} is {key.state.value}; it cannot become {to.value}.")


def check_correction(key: Key) -> None:
    """Whether a declaration of compromise may be taken back: the key becomes ``deactivated``.

    NIST SP 800-57 has no such transition, so it is none of ``TRANSITIONS``: this corrects a record
    that was wrong, see docs/decisions/0007.

    Raises:
        TransitionRefused: it is not compromised, destroyed already, or on hold.
    """
    if key.state is KeyState.DESTROYED:
        raise TransitionRefused(
            f"Key {key.kid} is destroyed; a compromise can be undone only before that."
        )
    if key.state is not KeyState.COMPROMISED:
        raise TransitionRefused(f"Key {key.kid} is {key.state.value}, not compromised.")
    if key.hold:
        raise TransitionRefused(f"Key {key.kid} is on hold; release it first.")


def is_published(key: Key, now: int) -> bool:
    """Whether the key belongs in the JWKS at ``now`` (seconds).

    A ``published_at`` in the future is another replica's faster clock, not a plan.
    """
    if key.times.published_at is None:
        return False
    if key.state in (KeyState.PRE_ACTIVATION, KeyState.ACTIVE):
        return True
    if key.state is KeyState.DEACTIVATED:
        # A hold stops the withdrawal too (Azure AD, March 2021).
        return key.hold or key.times.withdraw_at is None or now < key.times.withdraw_at
    return False


def check_keyset_name(name: str) -> str:
    """
    Raises:
        InvalidRequest: not a lower-case DNS-like name of at most 63 characters.
    """
    if not KEYSET_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} is not a keyset name: use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "starting with a letter or digit."
        )
    return name
