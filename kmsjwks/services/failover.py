"""Moves a keyset's signing to the other of its backends and back, by itself or on command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kmsjwks.domain import handover, interventions, rotation
from kmsjwks.domain.access import SCHEDULER
from kmsjwks.domain.effects import effect_of_early_takeover
from kmsjwks.domain.errors import (
    BackendError,
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    KmsJwksError,
    TransitionRefused,
)
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.failover import (
    CallOff,
    Decision,
    FailBack,
    FailOver,
    Health,
    Sight,
    Stuck,
    decide,
    is_ready,
)
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import Actor, Proposal, find_keyset, turn_or_not
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keytrouble import KeyTroubles
from kmsjwks.services.sparechecks import SpareChecks


@dataclass(frozen=True, slots=True)
class FailoverOptions:
    """``gated``: spares must have been seen through the public URL before they take over.
    ``troubles``: those that this process met; None: it meets none but by asking."""

    timing: InstallationTiming
    gated: bool
    faults: FaultPoints
    troubles: KeyTroubles | None = None


@dataclass(frozen=True, slots=True)
class LookedAfter:
    """``done`` in words; ``refused``: keyset -> why nothing could be done."""

    done: tuple[str, ...]
    refused: Mapping[str, str]


class FailoverService:
    """Thread-safe; waits for the planner's lock, but not for long."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        clock: Clock,
        options: FailoverOptions,
    ) -> None:
        self._store, self._backends, self._clock = store, backends, clock
        self.timing, self.gated, self._faults = options.timing, options.gated, options.faults
        self.troubles = options.troubles or KeyTroubles(clock)
        self.checks = SpareChecks(backends, self.troubles)

    def fail_over(
        self, name: str, actor: Actor, *, to: str | None = None, early: bool = False
    ) -> Proposal:
        """The published spare in the backend ``to`` signs at once; by default that in the other
        backend of the keyset. ``early``: even though verifiers may not know it yet.

        Raises:
            KeysetNotFound
            InvalidRequest: the keyset has no other backend.
            TransitionRefused: no spare there may or can take over, or a hold is in the way.
            Conflict: that backend is not configured here, or the keys changed meanwhile.
            BackendError: it does not answer, so nothing is changed.
        """
        wanted, refused = self._proposed(name, actor, to, early=early)
        if actor.dry_run:
            return wanted
        with turn_or_not(self._store):
            self._catch_up(*self._read(name))
            proposal = self._propose(name, actor, to, refused, early=early)
            if _goes_to(proposal).kid != _goes_to(wanted).kid:
                raise Conflict(f"The keys of {name} were changed meanwhile. Look at them again.")
            self._write(proposal.changes, proposal.event)
        return proposal

    def look_after(self, names: Sequence[str], sight: Sight) -> LookedAfter:
        """Do what is due for keysets, by what the caller sees. Backends are asked before the lock,
        which is waited for once."""
        refused: dict[str, str] = {}
        chosen: dict[str, str] = {}
        for name in names:
            try:
                kid = self._choose(name, sight)
            except KmsJwksError as error:
                refused[name] = str(error)
            else:
                chosen |= {} if kid is None else {name: kid}
        if not chosen:
            return LookedAfter((), refused)
        done = []
        with turn_or_not(self._store):
            for name, kid in chosen.items():
                try:
                    done += self._carry_out(name, sight, kid)
                except KmsJwksError as error:
                    refused[name] = str(error)
        return LookedAfter(tuple(done), refused)

    def _choose(self, name: str, sight: Sight) -> str | None:
        """The kid that something is to be done with, if any: that of a spare which its backend
        holds, where it is to take over.

        Raises:
            KeysetNotFound, StoreUnavailable
            TransitionRefused: what signs cannot, and nothing can take over.
        """
        keyset, keys = self._read(name)
        while True:
            decision = self._decide(keyset, keys, sight)
            if isinstance(decision, Stuck):
                raise TransitionRefused(decision.why)
            if decision is None:
                return None
            if isinstance(decision, CallOff):
                return decision.kid
            key = _one(keys, decision.kid)
            try:
                self.checks.check(key)
            except BackendUnavailable as error:
                down = Health(False, self._clock.now(), str(error))
                sight = replace(sight, backends={**sight.backends, key.backend: down})
            except BackendError:
                continue  # it is noted, so another is chosen, or none
            else:
                return key.kid

    def _carry_out(self, name: str, sight: Sight, kid: str) -> list[str]:
        """What is still due, and still about the key that was asked for."""
        keyset, keys = self._read(name)
        decision = self._decide(keyset, keys, sight)
        if decision is None or isinstance(decision, Stuck) or decision.kid != kid:
            return []
        keys, now = self._catch_up(keyset, keys), self._now()
        key = _one(keys, kid)
        pairs, what = self._changes(keyset, keys, key, decision)
        event = LifecycleEvent(now, SCHEDULER, name, kid, what, decision.why)
        self._write([Change(before, after) for before, after in pairs], event)
        return [f"{name}: {what}, key {kid} in {key.backend}: {decision.why}"]

    def _decide(self, keyset: Keyset, keys: Sequence[Key], sight: Sight) -> Decision | None:
        seen = replace(sight, keys={**sight.keys, **self.troubles.all()})
        return decide(keyset, keys, seen, self.timing, self._now(), gated=self.gated)

    def _catch_up(self, keyset: Keyset, keys: Sequence[Key]) -> list[Key]:
        """Record the hand-overs that are due, as a tick would; the keys as they are then."""
        found, now = list(keys), self._now()
        while pairs := handover.handed_over(keyset, found, self.timing, now):
            new = pairs[0][1]
            detail = f"since {new.times.activate_at}, recorded at {now}: before a failover"
            event = LifecycleEvent(now, SCHEDULER, keyset.name, new.kid, "activated", detail)
            self._write([Change(before, after) for before, after in pairs], event)
            found = list(self._store.keys(keyset.name))
        return found

    def _changes(
        self, keyset: Keyset, keys: Sequence[Key], key: Key, decision: FailOver | FailBack | CallOff
    ) -> tuple[list[tuple[Key, Key]], str]:
        now = self._now()
        match decision:
            case FailOver():
                return interventions.taken_over(keyset, keys, key, self.timing, now), "failed-over"
            case FailBack():
                pairs = interventions.brought_forward(keyset, keys, key, self.timing, now)
                return pairs, "failback-scheduled"
            case CallOff():
                after = interventions.unscheduled(keyset, key, self.timing, now)
                return [(key, after)], "unscheduled"

    def _proposed(
        self, name: str, actor: Actor, to: str | None, *, early: bool
    ) -> tuple[Proposal, Mapping[str, BackendError]]:
        """Also the spares there, by kid, that their backend does not let serve."""
        refused: dict[str, BackendError] = {}
        while True:
            proposal = self._propose(name, actor, to, refused, early=early)
            key = _goes_to(proposal)
            backend = self._backends.get(key.backend)
            if backend is None:
                raise Conflict(f"The backend {key.backend} is not configured here.")
            backend.check()
            try:
                self.checks.check(key)
            except BackendUnavailable:
                raise
            except BackendError as error:
                refused[key.kid] = error
            else:
                return proposal, refused

    def _propose(
        self,
        name: str,
        actor: Actor,
        to: str | None,
        refused: Mapping[str, BackendError],
        *,
        early: bool,
    ) -> Proposal:
        keyset, stored = self._read(name)
        now = self._now()
        keys = handover.caught_up(keyset, stored, self.timing, now)
        active = rotation.active_key(keys)
        if active is None:
            raise TransitionRefused(f"The keyset {name} has no active key; the next one is made.")
        if active.hold:
            raise TransitionRefused(f"The active key {active.kid} is on hold; release it first.")
        spare = _spare(keyset, keys, _other(keyset, active, to), refused)
        says = [f"Key {spare.kid} in {spare.backend} signs from now on."]
        if not is_ready(keyset, spare, now, gated=self.gated):
            warning = effect_of_early_takeover(keyset, spare, now) or (
                f"Key {spare.kid} has not been seen in the JWKS through the public URL."
            )
            if not early:
                raise TransitionRefused(f"{warning} Say --now to use it all the same.")
            says.append(warning)
        pairs = interventions.taken_over(keyset, keys, spare, self.timing, now)
        end = next(after.times.withdraw_at for before, after in pairs if before is active)
        says.append(f"Key {active.kid} stays published until {moment(end)} at the latest.")
        event = LifecycleEvent(
            now,
            actor.name,
            name,
            spare.kid,
            "failed-over",
            "on command",
            request_id=actor.request_id,
        )
        return Proposal(tuple(says), tuple(Change(*pair) for pair in pairs), event)

    def _read(self, name: str) -> tuple[Keyset, list[Key]]:
        return find_keyset(self._store, name), list(self._store.keys(name))

    def _now(self) -> int:
        return int(self._clock.now())

    def _write(self, changes: Sequence[Change], event: LifecycleEvent) -> None:
        self._faults.reach(f"{event.event}.before")
        self._store.apply(changes, event)
        self._faults.reach(f"{event.event}.recorded")


def _one(keys: Sequence[Key], kid: str) -> Key:
    return next(one for one in keys if one.kid == kid)


def _goes_to(proposal: Proposal) -> Key:
    (key,) = [one.before for one in proposal.changes if one.after.state is KeyState.ACTIVE]
    return key


def _spare(
    keyset: Keyset, keys: Sequence[Key], backend: str, refused: Mapping[str, BackendError]
) -> Key:
    there = [key for key in rotation.spares(keys) if key.backend == backend]
    if not there:
        raise TransitionRefused(
            f"The keyset {keyset.name} has no spare in {backend} yet; one is made as soon as "
            "that backend answers."
        )
    usable = [key for key in there if key.kid not in refused]
    if not usable:
        kid = there[0].kid
        raise TransitionRefused(
            f"The spare {kid} in {backend} cannot take over ({refused[kid].title}). Mend it, or "
            "destroy it with 'keys destroy', and another is made."
        )
    return usable[0]


def _other(keyset: Keyset, active: Key, to: str | None) -> str:
    others = [name for name in keyset.backends if name != active.backend]
    if to is not None and to == active.backend:
        raise InvalidRequest(f"The keyset {keyset.name} signs in {to} already.")
    if to is not None and to not in others:
        raise InvalidRequest(
            f"The keyset {keyset.name} has no keys in {to}; its backends are "
            f"{', '.join(keyset.backends)}. To move it there, use 'keysets migrate'."
        )
    if not others:
        raise InvalidRequest(
            f"The keyset {keyset.name} has no standby. Give it one with 'keysets standby'."
        )
    return to or others[0]
