"""Acts that may take a second person: carried out at once, or proposed and carried out later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from kmsjwks.domain.approvals import ProtectedAct
from kmsjwks.domain.errors import BackendError, BackendUnavailable, TransitionRefused
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.ports import Change, KeyBackend
from kmsjwks.domain.timing import InstallationTiming
from kmsjwks.services.acting import Actor, Acts, Carrier, Proposal, acts_on, find_keyset, one_key
from kmsjwks.services.approving import ApprovalDesk
from kmsjwks.services.endings import plan_protected

_log = logging.getLogger(__name__)


class ProtectedActs:
    """``KeyService`` documents what its methods raise."""

    def __init__(
        self,
        carrier: Carrier,
        desk: ApprovalDesk,
        backends: Mapping[str, KeyBackend],
        timing: InstallationTiming,
    ) -> None:
        self._carrier, self._desk, self._backends, self._timing = carrier, desk, backends, timing

    def do(self, act: ProtectedAct, kid: str, actor: Actor) -> Proposal:
        """Carried out, or proposed where it takes a second person."""
        name = self._carrier.key(kid).keyset

        def propose(keyset: Keyset, keys: list[Key]) -> Acts:
            return self._retrieved(self._planned(act, keyset, keys, kid), actor)

        if not self._desk.policy.requires(act):
            return self._carrier.carry_out(name, actor, propose)
        with self._carrier.turn(actor):
            store = self._carrier.store
            keyset, keys = find_keyset(store, name), list(store.keys(name))
            acts = self._planned(act, keyset, keys, kid)
            if acts.changes:
                return self._desk.propose(act, one_key(keys, kid), acts, actor)
        event = self._carrier.event(actor, name, kid, acts.event)
        return Proposal(tuple(acts.says), (), event)

    def approve(self, approval_id: str, actor: Actor) -> Proposal:
        with self._carrier.turn(actor):
            approval, store = self._desk.find(approval_id), self._carrier.store
            keyset = find_keyset(store, approval.keyset)
            keys = list(store.keys(keyset.name))
            self._desk.check(approval, one_key(keys, approval.kid), actor)
            acts = self._planned(approval.act, keyset, keys, approval.kid)
            return self._desk.approve(approval, self._retrieved(acts, actor), actor)

    def cancel_destroy(self, kid: str, actor: Actor) -> Proposal:
        key = self._carrier.key(kid)
        with self._carrier.turn(actor):
            proposed = self._desk.waiting(key, ProtectedAct.DESTROY)
            if proposed is not None:
                return self._desk.withdraw(proposed, actor)

        def propose(_: Keyset, keys: list[Key]) -> Acts:
            return self._cancelled(one_key(keys, kid), actor)

        return self._carrier.carry_out(key.keyset, actor, propose)

    def _cancelled(self, key: Key, actor: Actor) -> Acts:
        if key.state is KeyState.COMPROMISED:
            raise TransitionRefused(f"Key {key.kid} is compromised; see undo-compromise.")
        if key.state is KeyState.DESTROYED:
            raise TransitionRefused(f"Key {key.kid} is destroyed; that is not undone.")
        if key.times.destroy_at is None and key.times.private_destroyed_at is None:
            raise TransitionRefused(f"No destruction of {key.kid} is pending.")
        if key.times.private_destroyed_at is not None and not actor.dry_run:
            self._backend_of(key).cancel_destruction(key.ref)
        times = replace(key.times, destroy_at=None, private_destroyed_at=None)
        after = replace(key, times=times)
        return acts_on(key, after, "destruction-cancelled", f"Key {key.kid} is kept.")

    def _planned(self, act: ProtectedAct, keyset: Keyset, keys: list[Key], kid: str) -> Acts:
        return plan_protected(act, keyset, keys, kid, (self._carrier.now(), self._timing))

    def _retrieved(self, acts: Acts, actor: Actor) -> Acts:
        """With the private half of a key that is compromised no more, where the backend can still
        give it back. The key does without it otherwise."""
        if actor.dry_run:
            return acts
        return replace(acts, changes=[self._retrieve(change) for change in acts.changes])

    def _retrieve(self, change: Change) -> Change:
        key = change.after
        if change.before.state is not KeyState.COMPROMISED or key.state is KeyState.COMPROMISED:
            return change
        if key.times.private_destroyed_at is None:
            return change
        try:
            self._backend_of(key).cancel_destruction(key.ref)
        except BackendError as error:
            _log.error("The private half of %s is destroyed all the same: %s", key.kid, error)
            return change
        self._carrier.faults.reach("undo.retrieved")
        kept = replace(key.times, private_destroyed_at=None)
        return replace(change, after=replace(key, times=kept))

    def _backend_of(self, key: Key) -> KeyBackend:
        backend = self._backends.get(key.backend)
        if backend is None:
            raise BackendUnavailable(f"The backend {key.backend} is not configured here.")
        return backend
