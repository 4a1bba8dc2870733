"""What an operator does to keys. Every act can be tried first: it yields a proposal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.effects import effect_of_early_takeover, effects_of_compromise
from kmsjwks.domain.errors import (
    BackendError,
    BackendUnavailable,
    Conflict,
    KeyNotKnown,
    StoreUnavailable,
    TransitionRefused,
)
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.failover import Sight, successor
from kmsjwks.domain.keys import Key, Keyset, KeyState, check_transition
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import (
    Actor,
    Proposal,
    find_keyset,
    planner_turn,
    turn_or_not,
)
from kmsjwks.services.keymaking import KeyMaker

_log = logging.getLogger(__name__)
_TRIES = 3  # of an act that does not wait for its turn


@dataclass(frozen=True, slots=True)
class _Acts:
    """A proposal before it is recorded."""

    says: list[str]
    changes: list[Change]
    event: str
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class KeyServiceOptions:
    """``gated``: spares must have been seen through the public URL before they take over.
    ``sight``: what this process knows of the health of backends."""

    timing: InstallationTiming
    gated: bool
    sight: Callable[[], Sight] = field(default=lambda: Sight({}))


class KeyService:
    """Rotation, compromise, hold, destruction."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        maker: KeyMaker,
        clock: Clock,
        options: KeyServiceOptions,
    ) -> None:
        self._store, self._backends, self._maker = store, backends, maker
        self._clock, self._timing, self._gated = clock, options.timing, options.gated
        self._sight = options.sight

    def rotate(self, keyset: str, actor: Actor) -> Proposal:
        """The spare takes over as soon as every verifier may be taken to know it.

        Raises:
            KeysetNotFound
            TransitionRefused: a hold is in the way.
            BackendError: there is no spare, and none can be made.
        """
        return self._carry_out(keyset, actor, lambda found, keys: self._rotate(found, keys, actor))

    def deactivate(self, kid: str, actor: Actor) -> Proposal:
        """Stop signing with the active key: its spare takes over as in ``rotate``.

        Raises:
            KeyNotKnown
            TransitionRefused: it is not the active key, or a hold is in the way.
            BackendError: there is no spare, and none can be made.
        """

        def propose(keyset: Keyset, keys: list[Key]) -> _Acts:
            check_transition(_one(keys, kid), KeyState.DEACTIVATED)
            return self._rotate(keyset, keys, actor)

        return self._carry_out(self._key(kid).keyset, actor, propose)

    def compromise(self, kid: str, actor: Actor) -> Proposal:
        """The key leaves the JWKS at once; where it signed, the spare takes over at once. A
        backend that is down does not stand in the way, nor does a tick that hangs in one.

        Raises:
            KeyNotKnown, TransitionRefused.
        """
        return self._carry_out_urgently(
            self._key(kid).keyset,
            actor,
            lambda keyset, keys, ours: self._compromise(
                keyset, keys, kid, actor if ours else replace(actor, dry_run=True)
            ),
        )

    def hold(self, kid: str, actor: Actor) -> Proposal:
        """Stop every transition of the key but to compromised. When this returns, none is under
        way: where a tick may be about to destroy the key just now, it is waited for.

        Raises:
            KeyNotKnown
            StoreUnavailable: such a tick does not end.
        """

        def propose(_: Keyset, keys: list[Key], ours: bool) -> _Acts:
            key = _one(keys, kid)
            if not ours and self._is_being_destroyed(key):
                raise StoreUnavailable(
                    f"Key {kid} is due to be destroyed, and another process is changing keys. Try "
                    "again; the hold may come too late.",
                    retry_after=5,
                )
            return _acts(key, replace(key, hold=True), "held", f"Key {kid} is on hold.")

        key = self._key(kid)
        if self._is_being_destroyed(key):
            return self._carry_out(key.keyset, actor, lambda one, keys: propose(one, keys, True))
        return self._carry_out_urgently(key.keyset, actor, propose)

    def _is_being_destroyed(self, key: Key) -> bool:
        """Whether some replica's tick may be at it, by its own clock."""
        if key.state is KeyState.COMPROMISED:
            return True
        due = key.times.destroy_at
        return due is not None and due <= self._clock.now() + self._timing.skew

    def release(self, kid: str, actor: Actor) -> Proposal:
        """End a hold. Dates that passed meanwhile are set anew.

        Raises:
            KeyNotKnown
        """

        def propose(keyset: Keyset, keys: list[Key]) -> _Acts:
            now = int(self._clock.now())
            pairs = interventions.released(keyset, keys, kid, self._timing, now)
            changes = [Change(before, after) for before, after in pairs]
            return _Acts([f"Key {kid} is released."], changes, "released", kid)

        return self._carry_out(self._key(kid).keyset, actor, propose)

    def destroy(self, kid: str, actor: Actor) -> Proposal:
        """Begin the waiting window at whose end the private half is destroyed. Asked again, the
        window stays as it is.

        Raises:
            KeyNotKnown
            TransitionRefused: a token that it signed may live, or its state or a hold forbids it.
        """
        return self._carry_out(
            self._key(kid).keyset, actor, lambda keyset, keys: self._destroy(keyset, keys, kid)
        )

    def cancel_destroy(self, kid: str, actor: Actor) -> Proposal:
        """In our waiting window, or in that of the backend.

        Raises:
            KeyNotKnown
            TransitionRefused: no destruction is pending, or the key is compromised.
            BackendError: the backend waits for its end, and cannot be asked to stop.
        """

        def propose(_: Keyset, keys: list[Key]) -> _Acts:
            key = _one(keys, kid)
            if key.state in (KeyState.COMPROMISED, KeyState.DESTROYED):
                raise TransitionRefused(f"Key {kid} is {key.state.value}; that is not undone.")
            if key.times.destroy_at is None:
                raise TransitionRefused(f"No destruction of {kid} is pending.")
            if key.times.private_destroyed_at is not None and not actor.dry_run:
                self._backend_of(key).cancel_destruction(key.ref)
            times = replace(key.times, destroy_at=None, private_destroyed_at=None)
            after = replace(key, times=times)
            return _acts(key, after, "destruction-cancelled", f"Key {kid} is kept.")

        return self._carry_out(self._key(kid).keyset, actor, propose)

    def _carry_out(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key]], _Acts]
    ) -> Proposal:
        """Under the planner's lock, so that no tick is in the middle of the opposite."""
        with nullcontext() if actor.dry_run else planner_turn(self._store):
            return self._record(name, actor, propose)

    def _carry_out_urgently(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key], bool], _Acts]
    ) -> Proposal:
        """Without the lock after a moment: whoever has it may wait for a device that hangs. The
        store takes no change of what was changed since it was read, so nothing is overwritten; what
        another wrote meanwhile is read, and the act is tried again. ``propose`` is told whether we
        have the lock: no key may be made without."""
        if actor.dry_run:
            return self._record(name, actor, lambda keyset, keys: propose(keyset, keys, True))
        with turn_or_not(self._store) as ours:
            for left in reversed(range(_TRIES)):
                try:
                    return self._record(
                        name, actor, lambda keyset, keys: propose(keyset, keys, ours)
                    )
                except Conflict as error:
                    if ours or not left or isinstance(error, TransitionRefused):
                        raise
        raise AssertionError  # the last try returned or raised

    def _record(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key]], _Acts]
    ) -> Proposal:
        acts = propose(find_keyset(self._store, name), list(self._store.keys(name)))
        event = self._event(actor, name, acts.kid, acts.event)
        if acts.changes and not actor.dry_run:
            self._maker.faults.reach(f"{acts.event}.before")
            self._store.apply(acts.changes, event)
            self._maker.faults.reach(f"{acts.event}.recorded")
        return Proposal(tuple(acts.says), tuple(acts.changes), event)

    def _backend_of(self, key: Key) -> KeyBackend:
        backend = self._backends.get(key.backend)
        if backend is None:
            raise BackendUnavailable(f"The backend {key.backend} is not configured here.")
        return backend

    def _with_spare(self, keyset: Keyset, keys: list[Key], actor: Actor) -> list[Key]:
        """The keys, with the spare that is to take over made where there is none.

        Raises:
            BackendError
        """
        if rotation.next_spare(keyset, keys) is not None or actor.dry_run:
            return keys
        made = self._maker.make(keyset, where=rotation.next_backend(keyset, keys))
        event = self._event(actor, keyset.name, made.key.kid, "spare-published")
        self._maker.faults.reach("spare.before")
        self._store.apply([], event, added=[(made.key, made.request_id)])
        self._maker.faults.reach("spare.recorded")
        return list(self._store.keys(keyset.name))

    def _rotate(self, keyset: Keyset, found: list[Key], actor: Actor) -> _Acts:
        active = rotation.active_key(found)
        if active is not None and active.hold:
            raise TransitionRefused(f"The active key {active.kid} is on hold; release it first.")
        spare = rotation.next_spare(keyset, self._with_spare(keyset, found, actor))
        if spare is None:
            says = "A spare is made first; it takes over when the propagation delay is over."
            return _Acts([says], [], "rotation-requested")
        if rotation.is_blocked(spare, gated=self._gated):
            raise TransitionRefused(
                f"The spare {spare.kid} has not been seen in the JWKS through the public URL; "
                "it cannot take over before."
            )
        at = interventions.rotation_date(keyset, spare, self._timing, int(self._clock.now()))
        says = f"Key {spare.kid} takes over at {moment(at)}."
        if active is not None:
            end = rotation.withdrawal(keyset, active, self._timing, at)
            says += f" Key {active.kid} stays published until {moment(end)} at the latest."
        after = replace(spare, times=replace(spare.times, activate_at=at))
        return _acts(spare, after, "rotation-requested", says)

    def _compromise(self, keyset: Keyset, found: list[Key], kid: str, actor: Actor) -> _Acts:
        key = _one(found, kid)
        check_transition(key, KeyState.COMPROMISED)
        keys = found
        if key.state is KeyState.ACTIVE:
            try:
                keys = found if rotation.spares(found) else self._with_spare(keyset, found, actor)
            except BackendError as error:
                _log.error("Keyset %s has no spare and none can be made: %s", keyset.name, error)
        now = int(self._clock.now())
        says = [*effects_of_compromise(keyset, key, self._timing, now)]
        times = replace(key.times, compromised_at=now)
        gone = replace(key, state=KeyState.COMPROMISED, hold=False, times=times)
        changes = [Change(key, gone)]
        if key.state is KeyState.ACTIVE:
            spare = successor(keyset, keys, key, self._sight(), now, gated=self._gated)
            if spare is None:
                says.append("There is no spare: a new key is made and signs at once.")
            else:
                changes.append(_take_over(spare, now))
                changes += self._left_behind(keyset, keys, spare, key.backend)
                early = effect_of_early_takeover(keyset, spare, now)
                says += [f"Key {spare.kid} signs from now on.", *([early] if early else [])]
        return _Acts(says, changes, "compromised", kid)

    def _left_behind(
        self, keyset: Keyset, keys: Sequence[Key], spare: Key, left: str
    ) -> list[Change]:
        """Where another backend takes over, the other spares lose their dates: they were chosen
        for a key in the backend ``left``."""
        if spare.backend == left:
            return []
        now = int(self._clock.now())
        return [
            Change(one, after)
            for one in rotation.spares(keys)
            if one.kid != spare.kid
            and (after := interventions.unscheduled(keyset, one, self._timing, now)) != one
        ]

    def _destroy(self, keyset: Keyset, keys: list[Key], kid: str) -> _Acts:
        key = _one(keys, kid)
        check_transition(key, KeyState.DESTROYED)
        if key.state is KeyState.COMPROMISED:
            says = f"Key {kid} is compromised: it is destroyed as soon as its backend answers."
            return _Acts([says], [], "destruction-begun", kid)
        now = int(self._clock.now())
        withdraw_at = key.times.withdraw_at
        if key.state is KeyState.DEACTIVATED and (withdraw_at is None or now < withdraw_at):
            raise TransitionRefused(
                f"Tokens signed by {kid} may live until {moment(withdraw_at)}; destroy it after "
                "that. If it is in wrong hands, use compromise."
            )
        begun = key.times.destroy_at is not None
        after = key if begun else interventions.destruction_begun(keyset, key, self._timing, now)
        says = (
            f"Key {kid} is destroyed at {moment(after.times.destroy_at)}; until then it can be "
            "cancelled."
        )
        return _acts(key, after, "destruction-begun", says)

    def _key(self, kid: str) -> Key:
        key = next((one for one in list(self._store.keys()) if one.kid == kid), None)
        if key is None:
            raise KeyNotKnown(f"There is no key {kid}.")
        return key

    def _event(self, actor: Actor, keyset: str, kid: str | None, what: str) -> LifecycleEvent:
        return LifecycleEvent(int(self._clock.now()), actor.name, keyset, kid, what)


def _acts(before: Key, after: Key, event: str, says: str) -> _Acts:
    """One key changes, or none where it is so already."""
    changes = [Change(before, after)] if before != after else []
    return _Acts([says], changes, event, before.kid)


def _one(keys: Sequence[Key], kid: str) -> Key:
    return next(key for key in keys if key.kid == kid)


def _take_over(spare: Key, now: int) -> Change:
    check_transition(spare, KeyState.ACTIVE)
    scheduled = spare.times.activate_at
    times = replace(spare.times, activate_at=now if scheduled is None else min(now, scheduled))
    return Change(spare, replace(spare, state=KeyState.ACTIVE, times=times))
