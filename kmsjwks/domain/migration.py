"""How far a keyset has come on its way from one backend to another. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kmsjwks.domain.keys import Key, Keyset, KeyState, Standby, is_published
from kmsjwks.domain.rotation import active_key, is_migrating, next_spare


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A key in a backend that the keyset leaves. ``withdraw_at`` and ``irreversible_at`` (end of
    its private half) in seconds; None where it has not come to that."""

    kid: str
    backend: str
    state: KeyState
    published: bool
    withdraw_at: int | None
    irreversible_at: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """``backend``: where the keyset belongs; ``signs_in``: where its active key is. ``spare`` takes
    over at ``takes_over_at`` (seconds; None: not decided yet). ``left``: keys elsewhere that are
    not destroyed."""

    backend: str
    signs_in: str | None
    moving: bool
    spare: str | None
    takes_over_at: int | None
    left: tuple[LeftBehind, ...]

    @property
    def done(self) -> bool:
        """The keyset has moved wholly: nothing of it is published or alive elsewhere."""
        return not self.moving and not self.left

    @property
    def stage(self) -> str:
        """``no-key-yet``, ``published``, ``scheduled``, ``retiring`` or ``settled``."""
        if self.moving:
            if self.spare is None:
                return "no-key-yet"
            return "published" if self.takes_over_at is None else "scheduled"
        return "retiring" if self.left else "settled"


def moved(keyset: Keyset, to: str, now: int) -> Keyset:
    """The keyset once it belongs to the backend ``to``, commanded at ``now`` (seconds). A standby
    that is ``to`` is none any more."""
    standby = keyset.standby
    if standby is None or standby.backend == to:
        return replace(keyset, backend=to, standby=None)
    return replace(keyset, backend=to, standby=replace(standby, left_since=now))


def stopped(keyset: Keyset, where: str) -> Keyset:
    """The keyset once it stays in the backend ``where``, which its active key is in."""
    standby = keyset.standby
    if standby is None or standby.backend == where:
        return replace(keyset, backend=where, standby=None)
    return replace(keyset, backend=where, standby=replace(standby, left_since=None))


def stood_by(keyset: Keyset, keys: Sequence[Key], standby: Standby | None, now: int) -> Keyset:
    """The keyset with another standby, or none; a migration under way at ``now`` (seconds) goes
    on, wherever the keyset fails over to meanwhile."""
    old = None if keyset.standby is None else keyset.standby.left_since
    since = old if old is not None or not is_migrating(keyset, keys) else now
    after = None if standby is None else replace(standby, left_since=since)
    return replace(keyset, standby=after)


def progress(keyset: Keyset, keys: Sequence[Key], now: int) -> Progress:
    """At ``now`` (seconds)."""
    active, moving = active_key(keys), is_migrating(keyset, keys)
    spare = next_spare(keyset, keys) if moving else None
    return Progress(
        backend=keyset.backend,
        signs_in=active.backend if active else None,
        moving=moving,
        spare=spare.kid if spare else None,
        takes_over_at=spare.times.activate_at if spare else None,
        left=tuple(
            LeftBehind(
                kid=key.kid,
                backend=key.backend,
                state=key.state,
                published=is_published(key, now),
                withdraw_at=key.times.withdraw_at,
                irreversible_at=key.times.private_destroyed_at or key.times.destroy_at,
            )
            for key in keys
            if key.backend not in keyset.backends and key.state is not KeyState.DESTROYED
        ),
    )
