"""A key store whose every change to keysets and keys is in the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.approvals import Approval
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.ports import Change, KeyStore, Lease, LifecycleEvent
from kmsjwks.services.audited import ActTrail, lifecycle_act


class AuditedKeyStore:
    """A ``KeyStore``. Beside what the store raises, changes raise AuditUnavailable: then nothing
    was changed. Leases and the book of creations are no acts and pass through; what a backend is
    asked for is recorded by ``AuditedBackend``."""

    def __init__(self, store: KeyStore, trail: ActTrail) -> None:
        self._store, self._trail = store, trail

    def add_keyset(
        self,
        keyset: Keyset,
        first_key: Key,
        *,
        request_id: str | None = None,
        spare: tuple[Key, str] | None = None,
        event: LifecycleEvent | None = None,
    ) -> None:
        recorded = event or LifecycleEvent(
            keyset.created_at, "", keyset.name, first_key.kid, "keyset-created"
        )
        made = [f"spare {spare[0].kid}"] if spare else []
        with self._trail.act(lifecycle_act(recorded, made)):
            self._store.add_keyset(
                keyset, first_key, request_id=request_id, spare=spare, event=event
            )

    def apply(
        self,
        changes: Sequence[Change],
        event: LifecycleEvent,
        *,
        added: Sequence[tuple[Key, str]] = (),
    ) -> None:
        with self._trail.act(lifecycle_act(event, [*map(_says, changes)])):
            self._store.apply(changes, event, added=added)

    def update_keyset(
        self, before: Keyset, after: Keyset, changes: Sequence[Change], event: LifecycleEvent
    ) -> None:
        with self._trail.act(lifecycle_act(event, [*map(_says, changes)])):
            self._store.update_keyset(before, after, changes, event)

    def propose(self, approval: Approval, event: LifecycleEvent) -> None:
        with self._trail.act(lifecycle_act(event)):
            self._store.propose(approval, event)

    def approve(
        self, approval: Approval, changes: Sequence[Change], events: Sequence[LifecycleEvent]
    ) -> None:
        """The approval and what it carries out are an act each."""
        with ExitStack() as acts:
            for event in events:
                acts.enter_context(self._trail.act(lifecycle_act(event)))
            self._store.approve(approval, changes, events)

    def withdraw(self, approval: Approval, event: LifecycleEvent) -> None:
        with self._trail.act(lifecycle_act(event)):
            self._store.withdraw(approval, event)

    def approvals(self, keyset: str | None = None) -> Sequence[Approval]:
        return self._store.approvals(keyset)

    def begin_creation(
        self, request_id: str, keyset: str, backend: str, algorithm: Algorithm, created_at: int
    ) -> None:
        self._store.begin_creation(request_id, keyset, backend, algorithm, created_at)

    def abandon_creation(self, request_id: str) -> None:
        self._store.abandon_creation(request_id)

    def open_intents(self) -> Sequence[tuple[str, str, str, Algorithm, int]]:
        return self._store.open_intents()

    def events(self, keyset: str, limit: int = 100) -> Sequence[LifecycleEvent]:
        return self._store.events(keyset, limit)

    def planner_lock(self) -> AbstractContextManager[bool]:
        return self._store.planner_lock()

    def extend_lease(self, kid: str, holder: str, max_exp: int) -> None:
        self._store.extend_lease(kid, holder, max_exp)

    def extend_leases(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        return self._store.extend_leases(leases)

    def finish_lease(self, kid: str, holder: str, max_exp: int) -> None:
        self._store.finish_lease(kid, holder, max_exp)

    def leases(self, kid: str) -> Sequence[Lease]:
        return self._store.leases(kid)

    def keysets(self) -> Sequence[Keyset]:
        return self._store.keysets()

    def keys(self, keyset: str | None = None) -> Sequence[Key]:
        return self._store.keys(keyset)

    def revision(self) -> int:
        return self._store.revision()

    def check(self) -> None:
        self._store.check()


def _says(change: Change) -> str:
    """Only what a reader of the trail cannot tell from the event: other keys that change state."""
    before, after = change.before, change.after
    if before.state is after.state:
        return ""
    return f"{before.kid}: {before.state.value} to {after.state.value}"
