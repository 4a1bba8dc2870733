"""`tick`: plan purely, then do step by step what is due, in one process at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.access import SCHEDULER
from kmsjwks.domain.errors import BackendError, Conflict, TransitionRefused
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.keys import Key, Keyset, KeyState, check_transition
from kmsjwks.domain.ports import (
    Change,
    Clock,
    KeyBackend,
    KeyStore,
    Lease,
    LifecycleEvent,
)
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.keymaking import KeyMaker
from kmsjwks.services.reconciliation import reconcile
from kmsjwks.services.snapshot import Snapshot

_log = logging.getLogger(__name__)
_TROUBLE = (BackendError, Conflict, TransitionRefused)

Visible = Callable[[Keyset, str], bool]
"""``(keyset, kid)``: whether the public JWKS shows the key."""


@dataclass(frozen=True, slots=True)
class TickReport:
    """``done``: what was done, in words. ``failed``: keyset -> why. ``elsewhere``: another process
    was at it, so nothing was tried."""

    done: tuple[str, ...]
    failed: Mapping[str, str]
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """``visible``: the gate through the public URL; None where it is off. ``held``: the snapshot
    of this process, if it has one."""

    timing: InstallationTiming
    visible: Visible | None
    faults: FaultPoints
    held: Callable[[], Snapshot | None] = lambda: None


class Planner:
    """Any replica may tick at any time; what is due is done once."""

    def __init__(
        self,
        store: KeyStore,
        backends: Mapping[str, KeyBackend],
        maker: KeyMaker,
        clock: Clock,
        options: PlannerOptions,
    ) -> None:
        self._store, self._backends, self._maker = store, backends, maker
        self._clock, self._timing = clock, options.timing
        self._visible, self._faults = options.visible, options.faults
        self._held = options.held
        self._said: Mapping[str, str] = {}

    def due(self, keyset: Keyset, keys: Sequence[Key]) -> list[rotation.Step]:
        """What a tick would do now."""
        now = int(self._clock.now())
        return rotation.plan(keyset, keys, self._timing, now, gated=self._visible is not None)

    def tick(self) -> TickReport:
        """
        Raises:
            StoreUnavailable
        """
        done: list[str] = []
        failed: dict[str, list[str]] = {}
        with self._store.planner_lock() as ours:
            if not ours:
                return TickReport((), {}, elsewhere=True)
            for keyset in self._with_work():
                try:
                    self._advance(keyset, done, failed.setdefault(keyset.name, []))
                except _TROUBLE as error:
                    # One keyset's trouble must not stop the others.
                    failed[keyset.name].append(str(error))
            done += reconcile(self._store, self._backends, self._faults)
        said = {keyset: " ".join(dict.fromkeys(whys)) for keyset, whys in failed.items() if whys}
        for name, why in said.items():
            if self._said.get(name) != why:  # not at every tick of a long outage
                _log.error("Keyset %s: %s", name, why)
        self._said = said
        return TickReport(tuple(done), said)

    def _with_work(self) -> list[Keyset]:
        """By one look at all keys: most keysets have nothing due at most ticks."""
        return [keyset for keyset, keys in self._everything() if self._has_work(keyset, keys)]

    def _everything(self) -> Iterable[tuple[Keyset, Sequence[Key]]]:
        held = self._held()
        if held is not None and held.revision == self._store.revision():
            # Nothing has changed since: a thousand keysets need not be read at every tick.
            return [(ready.keyset, ready.keys) for ready in held.keysets.values()]
        keysets = self._store.keysets()
        keys: dict[str, list[Key]] = {keyset.name: [] for keyset in keysets}
        for key in list(self._store.keys()):
            keys.setdefault(key.keyset, []).append(key)
        return [(keyset, keys[keyset.name]) for keyset in keysets]

    def _has_work(self, keyset: Keyset, keys: Sequence[Key]) -> bool:
        return bool(self._unseen(keys) or self._unsettled(keys) or self.due(keyset, keys))

    def _advance(self, keyset: Keyset, done: list[str], failed: list[str]) -> None:
        """A step that fails stands in nobody's way: one backend may be down and another well."""
        self._gate(keyset)
        self._settle(keyset)
        stuck: set[rotation.Step] = set()
        for _ in range(8):  # a step may make another due; the bound is for bugs, not for work
            keys = list(self._store.keys(keyset.name))
            steps = [step for step in self.due(keyset, keys) if step not in stuck]
            if not steps:
                break
            by_kid = {key.kid: key for key in keys}
            for step in steps:
                try:
                    done.append(f"{keyset.name}: {self._do(keyset, by_kid, step)}")
                except _TROUBLE as error:
                    stuck.add(step)
                    failed.append(str(error))

    def _do(self, keyset: Keyset, keys: Mapping[str, Key], step: rotation.Step) -> str:
        match step:
            case rotation.CreateSpare():
                return self._create_spare(keyset, list(keys.values()), step.backend)
            case rotation.HandOver():
                return self._hand_over(keyset, keys, step)
            case rotation.Destroy():
                return self._destroy(keyset, keys[step.kid], step.why)
            case rotation.Schedule():
                return self._schedule(keyset, keys, step)
            case rotation.Tighten() | rotation.BeginDestruction() | rotation.RetireSpare():
                return self._redate(keyset, keys[step.kid], step)

    def _redate(
        self,
        keyset: Keyset,
        key: Key,
        step: rotation.Tighten | rotation.BeginDestruction | rotation.RetireSpare,
    ) -> str:
        match step:
            case rotation.Tighten():
                after = _with_times(key, withdraw_at=step.withdraw_at)
                return self._write(keyset, key, after, "withdrawal-tightened", step.why)
            case rotation.BeginDestruction():
                after = _with_times(key, destroy_at=step.destroy_at)
                return self._write(keyset, key, after, "destruction-begun", step.why)
            case rotation.RetireSpare():
                now = int(self._clock.now())
                after = interventions.destruction_begun(keyset, key, self._timing, now)
                return self._write(keyset, key, after, "destruction-begun", step.why)

    def _schedule(self, keyset: Keyset, keys: Mapping[str, Key], step: rotation.Schedule) -> str:
        """Nobody hands over to another backend that does not answer just now.

        Raises:
            BackendError
        """
        key, active = keys[step.kid], rotation.active_key(list(keys.values()))
        if active is not None and active.backend != key.backend:
            self._backend_of(key).check()
        after = _with_times(key, activate_at=step.activate_at)
        return self._write(keyset, key, after, "scheduled", f"activation: {step.why}")

    def _create_spare(self, keyset: Keyset, keys: Sequence[Key], backend: str) -> str:
        """Where nothing signs, it signs at once: as for a first key, waiting serves nobody."""
        made = self._maker.make(keyset, where=backend)
        signing = rotation.signing_key(keys, int(self._clock.now()))
        key = made.key if signing is not None else made.active()
        what = "spare-published" if signing is not None else "activated"
        event = self._event(keyset, key.kid, what, f"in {backend}")
        self._faults.reach("spare.before")
        self._store.apply([], event, added=[(key, made.request_id)])
        self._faults.reach("spare.recorded")
        return f"{'spare' if signing is not None else 'active key'} {key.kid} published"

    def _hand_over(self, keyset: Keyset, keys: Mapping[str, Key], step: rotation.HandOver) -> str:
        now = int(self._clock.now())
        changes = []
        if step.old_kid is not None:
            old = keys[step.old_kid]
            check_transition(old, KeyState.DEACTIVATED)
            times = replace(old.times, deactivated_at=step.at, withdraw_at=step.withdraw_at)
            changes.append(Change(old, replace(old, state=KeyState.DEACTIVATED, times=times)))
        new = keys[step.kid]
        check_transition(new, KeyState.ACTIVE)
        changes.append(Change(new, replace(new, state=KeyState.ACTIVE)))
        self._faults.reach("handover.before")
        detail = f"since {step.at}, recorded at {now}: {step.why}"
        self._store.apply(changes, self._event(keyset, new.kid, "activated", detail))
        self._faults.reach("handover.recorded")
        return f"{new.kid} active, {step.old_kid} deactivated"

    def _destroy(self, keyset: Keyset, key: Key, why: str) -> str:
        """The backend, then the outcome; repeated where a crash came between. The intent is in the
        trail since the window began, or since the compromise. A backend with a waiting window of
        its own is asked again at its end."""
        if key.state is not KeyState.COMPROMISED:
            check_transition(key, KeyState.DESTROYED)
        backend = self._backend_of(key)
        self._faults.reach("destroy.before")
        final = math.ceil(backend.destroy_key(key.ref).timestamp())
        self._faults.reach("destroy.done")
        now = int(self._clock.now())
        if final > now + 1:
            after = _with_times(key, private_destroyed_at=final)
            detail = f"{why}; irreversible from {moment(final)}"
            return self._write(keyset, key, after, "destruction-scheduled", detail)
        # What a window fixed stays the date, whatever the backend says of a key that is gone.
        final = key.times.private_destroyed_at or min(final, now)
        times = replace(key.times, private_destroyed_at=final, destroyed_at=now)
        after = replace(key, state=KeyState.DESTROYED, times=times)
        return self._write(keyset, key, after, "destroyed", why)

    def _backend_of(self, key: Key) -> KeyBackend:
        backend = self._backends.get(key.backend)
        if backend is None:
            raise Conflict(f"The backend {key.backend} of key {key.kid} is not configured here.")
        return backend

    def _write(self, keyset: Keyset, before: Key, after: Key, event: str, why: str) -> str:
        self._faults.reach(f"{event}.before")
        self._store.apply([Change(before, after)], self._event(keyset, before.kid, event, why))
        self._faults.reach(f"{event}.recorded")
        return f"{before.kid} {event} ({why})"

    def _event(self, keyset: Keyset, kid: str, event: str, detail: str) -> LifecycleEvent:
        return LifecycleEvent(int(self._clock.now()), SCHEDULER, keyset.name, kid, event, detail)

    def _gate(self, keyset: Keyset) -> None:
        """Look through the public URL for spares that were never seen there."""
        visible = self._visible
        if visible is None:
            return
        for key in self._unseen(self._store.keys(keyset.name)):
            if visible(keyset, key.kid):
                after = _with_times(key, seen_at=int(self._clock.now()))
                self._write(keyset, key, after, "seen", "in the JWKS through the public URL")
            else:
                self._block(keyset, key)

    def _unseen(self, keys: Sequence[Key]) -> list[Key]:
        """Spares that wait for the gate."""
        if self._visible is None:
            return []
        return [key for key in rotation.spares(keys) if key.times.seen_at is None]

    def _block(self, keyset: Keyset, key: Key) -> None:
        """Loud, and without a date: one that was set before the gate was switched on is struck
        out, or the key would take over by it."""
        _log.warning(
            "Keyset %s: the key %s is not in the JWKS as the public URL serves it; "
            "its activation is blocked and the old key goes on signing.",
            keyset.name,
            key.kid,
        )
        now = int(self._clock.now())
        after = interventions.unscheduled(keyset, key, self._timing, now)
        if after != key:
            self._write(keyset, key, after, "unscheduled", "not seen through the public URL")

    def _settle(self, keyset: Keyset) -> None:
        """Take over what was really signed, once every process has said so."""
        for key in self._unsettled(self._store.keys(keyset.name)):
            final = final_max_exp(self._store.leases(key.kid))
            after = _with_times(key, max_exp=final)
            self._write(keyset, key, after, "last-token-known", f"its exp is {final}")

    def _unsettled(self, keys: Sequence[Key]) -> list[Key]:
        """Keys of which every process has said by now what it signed, but not the store."""
        now = int(self._clock.now())
        wait = self._timing.grace + self._timing.notice
        return [
            key
            for key in keys
            if key.state is KeyState.DEACTIVATED
            and key.times.max_exp is None
            and key.times.withdraw_at is not None
            and not key.hold
            and now >= (key.times.deactivated_at or now) + wait
        ]


def final_max_exp(leases: Sequence[Lease]) -> int:
    """The highest ``exp`` that was signed. A process that died without a word counts with what it
    had reserved; 0 where nothing was signed."""
    return max((lease.max_exp for lease in leases), default=0)


def _with_times(key: Key, **times: int) -> Key:
    return replace(key, times=replace(key.times, **times))
