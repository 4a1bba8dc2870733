"""Moves keysets from one backend to another by pre-publication and ordinary rotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.errors import (
    BackendUnavailable,
    InvalidRequest,
    TransitionRefused,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.keys import Key, Keyset, Standby
from kmsjwks.domain.migration import Progress, moved, progress, stood_by, stopped
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import InstallationTiming, span
from kmsjwks.services.acting import Actor, Proposal, find_keyset, planner_turn
from kmsjwks.services.faultpoints import FaultPoints


@dataclass(frozen=True, slots=True)
class _Move:
    before: Keyset
    after: Keyset
    changes: tuple[Change, ...]
    event: LifecycleEvent


_Mover = Callable[[Keyset, Sequence[Key]], tuple[_Move, list[str]]]


class MigrationService:
    """Thread-safe; writes under the planner's lock. What follows is done by ticks."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        clock: Clock,
        timing: InstallationTiming,
        faults: FaultPoints,
    ) -> None:
        self._store, self._backends = store, backends
        self._clock, self.timing, self._faults = clock, timing, faults

    def migrate(self, name: str, to: str, actor: Actor) -> Proposal:
        """The keyset belongs to the backend ``to`` from now on: its next key is made and published
        there, and takes over as soon as every verifier may be taken to know it. Turned round by
        asking for the way back.

        Raises:
            KeysetNotFound
            InvalidRequest: there is no such backend, or the keyset is on its way or there already.
            UnsupportedAlgorithm: that backend does not offer the keyset's algorithm.
            BackendError: that backend does not answer.
        """

        def move(found: Keyset, keys: Sequence[Key]) -> tuple[_Move, list[str]]:
            if found.backend == to:
                raise InvalidRequest(_where(found, keys))
            check_backend(self._backends, to, found)
            after = moved(found, to, int(self._clock.now()))
            says = [*self._way(after, keys), *_without_standby(found, after)]
            event = self._event(actor, name, "migration-begun", f"{found.backend} to {to}")
            return self._move(found, after, keys, event), says

        return self._carry_out(name, actor, move)

    def stop(self, name: str, actor: Actor) -> Proposal:
        """Stay where the active key is.

        Raises:
            KeysetNotFound
            InvalidRequest: no migration is under way.
        """

        def move(found: Keyset, keys: Sequence[Key]) -> tuple[_Move, list[str]]:
            active = rotation.active_key(keys)
            if active is None or not rotation.is_migrating(found, keys):
                raise InvalidRequest(f"No migration is under way. {_where(found, keys)}")
            after = stopped(found, active.backend)
            event = self._event(
                actor, name, "migration-stopped", f"{found.backend} to {active.backend}"
            )
            says = [
                f"The keyset stays in {active.backend}; its spare elsewhere is retired.",
                *_without_standby(found, after),
            ]
            return self._move(found, after, keys, event), says

        return self._carry_out(name, actor, move)

    def stand_by(self, name: str, standby: Standby | None, actor: Actor) -> Proposal:
        """Give the keyset a standby backend, another one, or none.

        Raises:
            KeysetNotFound
            InvalidRequest: it is no backend here, or the primary.
            TransitionRefused: the keyset signs in the standby that it would lose.
            UnsupportedAlgorithm, BackendError: as in ``migrate``.
        """

        def move(found: Keyset, keys: Sequence[Key]) -> tuple[_Move, list[str]]:
            check_standby(self._backends, standby, found)
            kept = standby is not None and found.standby is not None
            same = kept and found.standby.backend == standby.backend  # type: ignore[union-attr]
            if rotation.is_failed_over(found, keys) and not same:
                raise TransitionRefused(
                    f"The keyset {name} signs in its standby now. Let it come back first with "
                    "'keysets failover', or stay there with 'keysets migrate'."
                )
            after = stood_by(found, keys, standby, int(self._clock.now()))
            said = "none" if standby is None else standby.backend
            event = self._event(actor, name, "standby-changed", f"to {said}")
            says = [f"The standby of {name}: {said}."]
            return self._move(found, after, keys, event), says

        return self._carry_out(name, actor, move)

    def progress(self, name: str) -> Progress:
        """
        Raises:
            KeysetNotFound
        """
        keyset = find_keyset(self._store, name)
        return progress(keyset, list(self._store.keys(name)), int(self._clock.now()))

    def _carry_out(self, name: str, actor: Actor, move: _Mover) -> Proposal:
        with nullcontext() if actor.dry_run else planner_turn(self._store):
            found, keys = find_keyset(self._store, name), list(self._store.keys(name))
            made, says = move(found, keys)
            if not actor.dry_run and made.before != made.after:
                self._faults.reach(f"{made.event.event}.before")
                self._store.update_keyset(made.before, made.after, made.changes, made.event)
                self._faults.reach(f"{made.event.event}.recorded")
        return Proposal(tuple(says), made.changes, made.event)

    def _move(
        self, found: Keyset, after: Keyset, keys: Sequence[Key], event: LifecycleEvent
    ) -> _Move:
        """A spare that was to take over where the keyset does not go any more does not."""
        now, goes_to = int(self._clock.now()), rotation.next_backend(after, keys)
        changes = [
            Change(key, changed)
            for key in rotation.spares(keys)
            if key.backend != goes_to
            and (changed := interventions.unscheduled(found, key, self.timing, now)) != key
        ]
        return _Move(found, after, tuple(changes), event)

    def _way(self, after: Keyset, keys: Sequence[Key]) -> list[str]:
        now, active = int(self._clock.now()), rotation.active_key(keys)
        if active is not None and active.backend == after.backend:
            return [f"The keyset signs in {after.backend} already, and stays there."]
        spare = rotation.next_spare(after, keys)
        if spare is None:
            at = now + after.schedule.propagation + self.timing.notice
            says = [
                f"A key is made in {after.backend} and published now; after "
                f"{span(after.schedule.propagation)} of propagation it takes over, at {moment(at)} "
                "at the earliest."
            ]
        else:
            at = interventions.rotation_date(after, spare, self.timing, now)
            says = [f"Key {spare.kid} in {after.backend} takes over at {moment(at)}."]
        if active is not None:
            end = rotation.withdrawal(after, active, self.timing, at)
            says.append(
                f"Key {active.kid} in {active.backend} stays published until {moment(end)} at the "
                "latest, and is destroyed by the usual rules."
            )
        return says

    def _event(self, actor: Actor, name: str, what: str, detail: str) -> LifecycleEvent:
        now = int(self._clock.now())
        return LifecycleEvent(
            now, actor.name, name, None, what, detail, request_id=actor.request_id
        )


def check_backend(backends: Mapping[str, KeyBackend], name: str, keyset: Keyset) -> None:
    """Whether the keyset's keys can be in this backend.

    Raises:
        InvalidRequest: it is not configured.
        UnsupportedAlgorithm: it does not offer the keyset's algorithm.
        BackendError: it does not say.
    """
    backend = backends.get(name)
    if backend is None:
        raise InvalidRequest(
            f"There is no backend {name!r}. Configured: {', '.join(sorted(backends))}."
        )
    if keyset.algorithm not in backend.algorithms:
        raise UnsupportedAlgorithm(
            f"The backend {name} does not offer {keyset.algorithm.id}, which the keyset "
            f"{keyset.name} signs with."
        )


def check_standby(
    backends: Mapping[str, KeyBackend], standby: Standby | None, keyset: Keyset
) -> None:
    """As ``check_backend``; a standby that is down just now is accepted.

    Raises:
        InvalidRequest, UnsupportedAlgorithm.
    """
    if standby is None:
        return
    if standby.backend == keyset.backend:
        raise InvalidRequest(f"{standby.backend} is the primary; name another backend as standby.")
    for name, after in (("failover", standby.failover_after), ("failback", standby.failback_after)):
        if after is not None and after < 1:
            raise InvalidRequest(f"The {name} delay must be at least 1 s.")
    try:
        check_backend(backends, standby.backend, keyset)
    except BackendUnavailable:
        return


def _where(keyset: Keyset, keys: Sequence[Key]) -> str:
    active = rotation.active_key(keys)
    if active is not None and rotation.is_migrating(keyset, keys):
        return f"The keyset {keyset.name} is on its way from {active.backend} to {keyset.backend}."
    if active is not None and rotation.is_failed_over(keyset, keys):
        return (
            f"The keyset {keyset.name} belongs to {keyset.backend} and signs in its standby "
            f"{active.backend}; it comes back with 'keysets failover'."
        )
    return f"The keyset {keyset.name} is in {keyset.backend}."


def _without_standby(before: Keyset, after: Keyset) -> list[str]:
    if before.standby is None or after.standby is not None:
        return []
    return [
        f"{before.standby.backend} was the standby; the keyset has none from now on. "
        "Name another with 'keysets standby'."
    ]
