"""What an operator does to keysets and keys. Every act can be tried first: it yields a proposal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    KeyNotKnown,
    KeysetNotFound,
    StoreUnavailable,
    TransitionRefused,
)
from kmsjwks.domain.explanation import (
    effect_of_early_takeover,
    effects_of_compromise,
    moment,
)
from kmsjwks.domain.keys import Key, Keyset, KeyState, check_keyset_name, check_transition
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import InstallationTiming, RotationSchedule, check_schedule
from kmsjwks.domain.tokens import TokenRules, check_rules
from kmsjwks.services.issuers import check_issuer
from kmsjwks.services.keymaking import KeyMaker, MadeKey
from kmsjwks.services.publication import issuer_path

_log = logging.getLogger(__name__)
_LOCK_PATIENCE = 20.0  # seconds to wait for another process's turn


@dataclass(frozen=True, slots=True)
class KeysetSpec:
    """What a keyset is made from."""

    name: str
    algorithm: Algorithm
    backend: str
    rules: TokenRules
    schedule: RotationSchedule


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an act does: for people in ``says``, for the store in the rest."""

    says: tuple[str, ...]
    changes: tuple[Change, ...]
    event: LifecycleEvent


@dataclass(frozen=True, slots=True)
class _Acts:
    """A proposal before it is recorded."""

    says: list[str]
    changes: list[Change]
    event: str
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and whether only to see what would happen."""

    name: str
    dry_run: bool = False


class KeysetService:
    """Creating keysets and changing their rules."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        maker: KeyMaker,
        clock: Clock,
        timing: InstallationTiming,
    ) -> None:
        self._store, self._backends, self._maker = store, backends, maker
        self._clock, self._timing = clock, timing

    def create(self, spec: KeysetSpec, actor: Actor) -> Keyset:
        """A keyset with one active key (no verifier waits for a first key) and a published spare.

        Raises:
            InvalidRequest: the name, the rules, the schedule or the backend's name.
            Conflict: the keyset exists, or its issuer cannot be shared.
            BackendError, StoreUnavailable.
        """
        keyset = self._checked(spec)
        if actor.dry_run:
            return self._unused(keyset)
        with planner_turn(self._store):
            self._unused(keyset)
            first = self._maker.make(keyset)
            spare = self._maker.make(keyset, not_these=frozenset({first.request_id}))
            self._add(keyset, first, spare, actor)
        return keyset

    def ensure(self, spec: KeysetSpec, actor: Actor) -> Keyset:
        """Create it, or bring an existing one's rules and schedule in line.

        Raises:
            Conflict: it exists with another algorithm or backend.
        """
        found = next((one for one in self._store.keysets() if one.name == spec.name), None)
        if found is None:
            return self.create(spec, actor)
        if (found.algorithm, found.backend) != (spec.algorithm, spec.backend):
            raise Conflict(
                f"The keyset {spec.name} exists with {found.algorithm.id} in the backend "
                f"{found.backend}; these cannot be changed."
            )
        return self.update(spec.name, spec.rules, spec.schedule, actor)

    def update(
        self, name: str, rules: TokenRules, schedule: RotationSchedule, actor: Actor
    ) -> Keyset:
        """New rules and schedule, for tokens and rotations from now on; what was issued under the
        old ones keeps its end.

        Raises:
            KeysetNotFound, InvalidRequest, Conflict.
        """
        with planner_turn(self._store):
            found = _keyset(self._store, name)
            wanted = replace(found, rules=rules, schedule=schedule)
            self._check(wanted)
            if issuer_path(wanted.rules.issuer) != issuer_path(found.rules.issuer):
                raise Conflict(
                    f"Tokens of {name} are verified with the JWKS of {found.rules.issuer}; an "
                    "issuer with another path would withdraw it. Make a new keyset for it."
                )
            check_issuer(wanted, [one for one in self._store.keysets() if one.name != name])
            if wanted != found and not actor.dry_run:
                self._update(found, wanted, actor)
        return wanted

    def _update(self, found: Keyset, wanted: Keyset, actor: Actor) -> None:
        now = int(self._clock.now())
        changes = [
            Change(key, after)
            for key in self._store.keys(found.name)
            if (after := interventions.updated(key, found, wanted, self._timing, now)) != key
        ]
        event = LifecycleEvent(now, actor.name, found.name, None, "keyset-updated", "")
        self._store.update_keyset(found, wanted, changes, event)

    def _checked(self, spec: KeysetSpec) -> Keyset:
        check_keyset_name(spec.name)
        if spec.backend not in self._backends:
            raise InvalidRequest(
                f"There is no backend {spec.backend!r}. Configured: "
                f"{', '.join(sorted(self._backends))}."
            )
        now = int(self._clock.now())
        keyset = Keyset(spec.name, spec.algorithm, spec.backend, spec.rules, now, spec.schedule)
        self._check(keyset)
        return keyset

    def _check(self, keyset: Keyset) -> None:
        check_rules(keyset.rules)
        check_schedule(keyset.schedule, self._timing, keyset.rules.max_lifetime)

    def _unused(self, keyset: Keyset) -> Keyset:
        existing = self._store.keysets()
        if any(one.name == keyset.name for one in existing):
            raise Conflict(f"The keyset {keyset.name} exists already.")
        check_issuer(keyset, existing)
        return keyset

    def _add(self, keyset: Keyset, first: MadeKey, spare: MadeKey, actor: Actor) -> None:
        active, now = first.active(), int(self._clock.now())
        event = LifecycleEvent(now, actor.name, keyset.name, active.kid, "keyset-created", "")
        self._maker.faults.reach("keyset-created.before")
        self._store.add_keyset(
            keyset,
            active,
            request_id=first.request_id,
            event=event,
            spare=(spare.key, spare.request_id),
        )
        self._maker.faults.reach("keyset-created.recorded")


class KeyService:
    """Rotation, compromise, hold, destruction."""

    def __init__(
        self,
        store: KeyStore,
        maker: KeyMaker,
        clock: Clock,
        timing: InstallationTiming,
        *,
        gated: bool,
    ) -> None:
        """``gated``: spares must have been seen through the public URL before they take over."""
        self._store, self._maker = store, maker
        self._clock, self._timing, self._gated = clock, timing, gated

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
        backend that is down does not stand in the way.

        Raises:
            KeyNotKnown, TransitionRefused.
        """
        return self._carry_out(
            self._key(kid).keyset,
            actor,
            lambda keyset, keys: self._compromise(keyset, keys, kid, actor),
        )

    def hold(self, kid: str, actor: Actor) -> Proposal:
        """Stop every transition of the key but to compromised. When this returns, none is under
        way.

        Raises:
            KeyNotKnown
        """

        def propose(_: Keyset, keys: list[Key]) -> _Acts:
            key = _one(keys, kid)
            return _acts(key, replace(key, hold=True), "held", f"Key {kid} is on hold.")

        return self._carry_out(self._key(kid).keyset, actor, propose)

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
        """
        Raises:
            KeyNotKnown
            TransitionRefused: no destruction is pending.
        """

        def propose(_: Keyset, keys: list[Key]) -> _Acts:
            key = _one(keys, kid)
            if key.times.destroy_at is None or key.times.private_destroyed_at is not None:
                raise TransitionRefused(f"No destruction of {kid} is pending.")
            after = replace(key, times=replace(key.times, destroy_at=None))
            return _acts(key, after, "destruction-cancelled", f"Key {kid} is kept.")

        return self._carry_out(self._key(kid).keyset, actor, propose)

    def _carry_out(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key]], _Acts]
    ) -> Proposal:
        """Under the planner's lock, so that no tick is in the middle of the opposite."""
        with nullcontext() if actor.dry_run else planner_turn(self._store):
            acts = propose(_keyset(self._store, name), list(self._store.keys(name)))
            event = self._event(actor, name, acts.kid, acts.event)
            if acts.changes and not actor.dry_run:
                self._maker.faults.reach(f"{acts.event}.before")
                self._store.apply(acts.changes, event)
                self._maker.faults.reach(f"{acts.event}.recorded")
        return Proposal(tuple(acts.says), tuple(acts.changes), event)

    def _with_spare(self, keyset: Keyset, keys: list[Key], actor: Actor) -> list[Key]:
        """The keys, with a spare made where there is none.

        Raises:
            BackendError
        """
        if rotation.spares(keys) or actor.dry_run:
            return keys
        made = self._maker.make(keyset)
        event = self._event(actor, keyset.name, made.key.kid, "spare-published")
        self._maker.faults.reach("spare.before")
        self._store.apply([], event, added=[(made.key, made.request_id)])
        self._maker.faults.reach("spare.recorded")
        return list(self._store.keys(keyset.name))

    def _rotate(self, keyset: Keyset, found: list[Key], actor: Actor) -> _Acts:
        active = rotation.active_key(found)
        if active is not None and active.hold:
            raise TransitionRefused(f"The active key {active.kid} is on hold; release it first.")
        spare = next(iter(rotation.spares(self._with_spare(keyset, found, actor))), None)
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
                keys = self._with_spare(keyset, found, actor)
            except BackendError as error:
                _log.error("Keyset %s has no spare and none can be made: %s", keyset.name, error)
        now = int(self._clock.now())
        says = [*effects_of_compromise(keyset, key, self._timing, now)]
        times = replace(key.times, compromised_at=now)
        gone = replace(key, state=KeyState.COMPROMISED, hold=False, times=times)
        changes = [Change(key, gone)]
        if key.state is KeyState.ACTIVE:
            spare = rotation.replacement([one for one in keys if one.kid != kid], now)
            if spare is None:
                says.append("There is no spare: a new key is made and signs at once.")
            else:
                changes.append(_take_over(spare, now))
                early = effect_of_early_takeover(keyset, spare, now)
                says += [f"Key {spare.kid} signs from now on.", *([early] if early else [])]
        return _Acts(says, changes, "compromised", kid)

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


def _keyset(store: KeyStore, name: str) -> Keyset:
    found = next((one for one in store.keysets() if one.name == name), None)
    if found is None:
        raise KeysetNotFound(f"There is no keyset {name}.")
    return found


@contextmanager
def planner_turn(store: KeyStore) -> Iterator[None]:
    """Wait for the planner's lock.

    Raises:
        StoreUnavailable: another process has had it for too long.
    """
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        with store.planner_lock() as ours:
            if ours:
                yield
                return
        if time.monotonic() >= deadline:
            raise StoreUnavailable("Another process is changing keys; try again.", retry_after=5)
        time.sleep(0.05)
