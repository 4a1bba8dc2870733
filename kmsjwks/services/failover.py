"""Moves a keyset's signing to the other of its backends and back, by itself or on command."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.effects import effect_of_early_takeover
from kmsjwks.domain.errors import Conflict, InvalidRequest, KmsJwksError, TransitionRefused
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.failover import CallOff, FailBack, FailOver, Health, Stuck, decide, is_ready
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.ports import Change, Clock, KeyBackend, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import Actor, Proposal, find_keyset
from kmsjwks.services.backendwatch import BackendWatch
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.planning import ACTOR
from kmsjwks.services.snapshot import SnapshotKeeper

_log = logging.getLogger(__name__)
_INTERVAL = 1.0  # seconds between two looks at the health of backends
_LOCK_PATIENCE = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class FailoverOptions:
    """``gated``: spares must have been seen through the public URL before they take over."""

    timing: InstallationTiming
    gated: bool
    faults: FaultPoints


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

    def fail_over(
        self, name: str, actor: Actor, *, to: str | None = None, early: bool = False
    ) -> Proposal:
        """The published spare in the backend ``to`` signs at once; by default that in the other
        backend of the keyset. ``early``: even though verifiers may not know it yet.

        Raises:
            KeysetNotFound
            InvalidRequest: the keyset has no other backend.
            TransitionRefused: no spare there may take over, or a hold is in the way.
            Conflict: that backend is not configured here.
            BackendError: it does not answer, so nothing is changed.
        """
        proposal = self._propose(name, actor, to, early=early)
        self._check_where_it_goes(proposal)  # before the lock: a device may take its time
        if actor.dry_run:
            return proposal
        with _turn_or_not(self._store):
            proposal = self._propose(name, actor, to, early=early)
            self._write(proposal.changes, proposal.event)
        return proposal

    def _check_where_it_goes(self, proposal: Proposal) -> None:
        (key,) = [one.after for one in proposal.changes if one.after.state is KeyState.ACTIVE]
        backend = self._backends.get(key.backend)
        if backend is None:
            raise Conflict(f"The backend {key.backend} is not configured here.")
        backend.check()

    def look_after(self, name: str, health: Mapping[str, Health]) -> str | None:
        """Do what is due for a keyset; returns it in words.

        Raises:
            KeysetNotFound, StoreUnavailable, Conflict, TransitionRefused.
        """
        with _turn_or_not(self._store):
            keyset, keys = find_keyset(self._store, name), list(self._store.keys(name))
            now = int(self._clock.now())
            decision = decide(keyset, keys, health, self.timing, now, gated=self.gated)
            if decision is None or isinstance(decision, Stuck):
                return None
            key = next(one for one in keys if one.kid == decision.kid)
            pairs, what = self._changes(keyset, keys, key, decision)
            event = LifecycleEvent(now, ACTOR, name, key.kid, what, decision.why)
            self._write([Change(before, after) for before, after in pairs], event)
        return f"{name}: {what}, key {key.kid} in {key.backend}: {decision.why}"

    def _changes(
        self, keyset: Keyset, keys: Sequence[Key], key: Key, decision: FailOver | FailBack | CallOff
    ) -> tuple[list[tuple[Key, Key]], str]:
        now = int(self._clock.now())
        match decision:
            case FailOver():
                return interventions.taken_over(keyset, keys, key, self.timing, now), "failed-over"
            case FailBack():
                pairs = interventions.brought_forward(keyset, keys, key, self.timing, now)
                return pairs, "failback-scheduled"
            case CallOff():
                after = interventions.unscheduled(keyset, key, self.timing, now)
                return [(key, after)], "unscheduled"

    def _propose(self, name: str, actor: Actor, to: str | None, *, early: bool) -> Proposal:
        keyset, keys = find_keyset(self._store, name), list(self._store.keys(name))
        now = int(self._clock.now())
        active = rotation.active_key(keys)
        if active is None:
            raise TransitionRefused(f"The keyset {name} has no active key; the next one is made.")
        if active.hold:
            raise TransitionRefused(f"The active key {active.kid} is on hold; release it first.")
        spare = self._spare(keyset, keys, _other(keyset, active, to))
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

    def _spare(self, keyset: Keyset, keys: Sequence[Key], backend: str) -> Key:
        spare = next((key for key in rotation.spares(keys) if key.backend == backend), None)
        if spare is None:
            raise TransitionRefused(
                f"The keyset {keyset.name} has no spare in {backend} yet; one is made as soon as "
                "that backend answers."
            )
        return spare

    def _write(self, changes: Sequence[Change], event: LifecycleEvent) -> None:
        self._faults.reach(f"{event.event}.before")
        self._store.apply(changes, event)
        self._faults.reach(f"{event.event}.recorded")


@contextmanager
def _turn_or_not(store: KeyStore) -> Iterator[None]:
    """Wait a moment for the planner's lock, then go on without it: whoever has it may hang in the
    very device that is down. What is written is checked against what was read all the same."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        with store.planner_lock() as ours:
            if ours or time.monotonic() >= deadline:
                yield
                return
        time.sleep(0.05)


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


class FailoverKeeper:
    """Looks at the health of backends from time to time, in a thread of a serving process."""

    def __init__(
        self,
        service: FailoverService,
        watch: BackendWatch,
        snapshots: SnapshotKeeper,
        clock: Clock,
    ) -> None:
        self._service, self._watch, self._snapshots = service, watch, snapshots
        self._clock = clock
        self._stuck: dict[str, str] = {}
        self._closing = threading.Event()

    def start(self) -> None:
        self._watch.start()
        threading.Thread(target=self._run, name="kmsjwks-failover", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._watch.close()

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL):
            try:
                self.look()
            except Exception:  # the thread must survive a bug, or nothing fails over any more
                _log.exception("The failover of keysets could not be looked after.")

    def look(self) -> None:
        """Once, by what this process knows; the store is asked only where something is due."""
        health, snapshot = self._watch.health(), self._snapshots.known()
        if snapshot is None:
            return
        down = any(not one.available for one in health.values())
        looked_at = {
            name: ready
            for name, ready in snapshot.keysets.items()
            if down or ready.keyset.standby is not None
        }
        now = int(self._clock.now())
        for name, ready in looked_at.items():
            decision = decide(
                ready.keyset,
                ready.keys,
                health,
                self._service.timing,
                now,
                gated=self._service.gated,
            )
            if isinstance(decision, Stuck):
                self._complain(name, decision.why)
            elif decision is not None:
                self._do(name, health)
            else:
                self._stuck.pop(name, None)

    def _do(self, name: str, health: Mapping[str, Health]) -> None:
        try:
            done = self._service.look_after(name, health)
        except KmsJwksError as error:
            self._complain(name, str(error))
            return
        self._stuck.pop(name, None)
        if done is not None:
            _log.warning("%s", done)
            self._snapshots.refresh()

    def _complain(self, name: str, why: str) -> None:
        """Once for each reason: it is looked at every second."""
        if self._stuck.get(name) != why:
            _log.error("Keyset %s cannot fail over: %s", name, why)
            self._stuck[name] = why
