"""Who acts, what an act comes to, and whose turn it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from kmsjwks.domain.approvals import Approval, ApprovalState
from kmsjwks.domain.errors import (
    Conflict,
    KeyNotKnown,
    KeysetNotFound,
    StoreUnavailable,
    TransitionRefused,
)
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.ports import Change, Clock, KeyStore, LifecycleEvent
from kmsjwks.services.faultpoints import FaultPoints

_LOCK_PATIENCE = 20.0  # seconds to wait for another process's turn
_SHORT_PATIENCE = 1.0  # seconds, where waiting does harm
_TRIES = 3  # of an act that does not wait for its turn


@dataclass(frozen=True, slots=True)
class Acts:
    """What an act does, before anybody is named."""

    says: list[str]
    changes: list[Change]
    event: str
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an act does: for people in ``says``, for the store in the rest. ``approval``: that of a
    second person, which is waited for, was given or was withdrawn; None where none is needed."""

    says: tuple[str, ...]
    changes: tuple[Change, ...]
    event: LifecycleEvent
    approval: Approval | None = None

    @property
    def waits(self) -> bool:
        """Whether nothing is done before somebody else approves it."""
        return self.approval is not None and self.approval.state is ApprovalState.PROPOSED


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, whether only to see what would happen, and in which request, if any."""

    name: str
    dry_run: bool = False
    request_id: str = ""


def find_keyset(store: KeyStore, name: str) -> Keyset:
    found = next((one for one in store.keysets() if one.name == name), None)
    if found is None:
        raise KeysetNotFound(f"There is no keyset {name}.")
    return found


def one_key(keys: Sequence[Key], kid: str) -> Key:
    """Of keys among which it is."""
    return next(key for key in keys if key.kid == kid)


def acts_on(before: Key, after: Key, event: str, says: str) -> Acts:
    """One key changes, or none where it is so already."""
    changes = [Change(before, after)] if before != after else []
    return Acts([says], changes, event, before.kid)


class Carrier:
    """Carries out acts on the keys of a keyset."""

    def __init__(self, store: KeyStore, clock: Clock, faults: FaultPoints) -> None:
        self.store, self.faults = store, faults
        self._clock = clock

    def now(self) -> int:
        """In whole seconds."""
        return int(self._clock.now())

    def turn(self, actor: Actor) -> AbstractContextManager[None]:
        """The planner's lock, so that no tick is in the middle of the opposite."""
        return nullcontext() if actor.dry_run else planner_turn(self.store)

    def carry_out(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key]], Acts]
    ) -> Proposal:
        """
        Raises:
            KeysetNotFound, or what ``propose`` raises.
        """
        with self.turn(actor):
            return self._record(name, actor, propose)

    def carry_out_urgently(
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key], bool], Acts]
    ) -> Proposal:
        """Without the lock after a moment: whoever has it may wait for a device that hangs. The
        store takes no change of what was changed since it was read, so nothing is overwritten; what
        another wrote meanwhile is read, and the act is tried again. ``propose`` is told whether we
        have the lock: no key may be made without.

        Raises:
            KeysetNotFound, or what ``propose`` raises.
        """
        if actor.dry_run:
            return self._record(name, actor, lambda keyset, keys: propose(keyset, keys, True))
        with turn_or_not(self.store) as ours:
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
        self, name: str, actor: Actor, propose: Callable[[Keyset, list[Key]], Acts]
    ) -> Proposal:
        acts = propose(find_keyset(self.store, name), list(self.store.keys(name)))
        event = self.event(actor, name, acts.kid, acts.event)
        if acts.changes and not actor.dry_run:
            self.faults.reach(f"{acts.event}.before")
            self.store.apply(acts.changes, event)
            self.faults.reach(f"{acts.event}.recorded")
        return Proposal(tuple(acts.says), tuple(acts.changes), event)

    def key(self, kid: str) -> Key:
        """
        Raises:
            KeyNotKnown
        """
        key = next((one for one in list(self.store.keys()) if one.kid == kid), None)
        if key is None:
            raise KeyNotKnown(f"There is no key {kid}.")
        return key

    def event(self, actor: Actor, keyset: str, kid: str | None, what: str) -> LifecycleEvent:
        return LifecycleEvent(
            self.now(), actor.name, keyset, kid, what, request_id=actor.request_id
        )


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


@contextmanager
def turn_or_not(store: KeyStore) -> Iterator[bool]:
    """Wait a moment for the planner's lock, then go on without it: whoever has it may hang in the
    very device that is down. What is written is checked against what was read all the same. Yields
    whether we have the lock; who has not must not ask a backend for anything that lasts."""
    deadline = time.monotonic() + _SHORT_PATIENCE
    while True:
        with store.planner_lock() as ours:
            if ours or time.monotonic() >= deadline:
                yield ours
                return
        time.sleep(0.05)
