"""Proposals that wait for a second person: made, found, approved, withdrawn."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from kmsjwks.domain.approvals import (
    Approval,
    ApprovalPolicy,
    ApprovalState,
    ProtectedAct,
    check_approvable,
)
from kmsjwks.domain.errors import ApprovalNotKnown
from kmsjwks.domain.explanation import moment
from kmsjwks.domain.keys import Key
from kmsjwks.domain.ports import Clock, KeyStore, LifecycleEvent
from kmsjwks.services.acting import Actor, Acts, Proposal
from kmsjwks.services.faultpoints import FaultPoints


class ApprovalDesk:
    """Call what changes something while holding the planner's lock."""

    def __init__(
        self, store: KeyStore, policy: ApprovalPolicy, clock: Clock, faults: FaultPoints
    ) -> None:
        self.policy = policy
        self._store, self._clock, self._faults = store, clock, faults

    def open(self, keyset: str | None = None) -> Sequence[Approval]:
        """The proposals that wait, newest first."""
        now = self._now()
        found = self._store.approvals(keyset)
        return [one for one in found if one.state_at(now) is ApprovalState.PROPOSED]

    def find(self, approval_id: str) -> Approval:
        """
        Raises:
            ApprovalNotKnown
        """
        found = next((one for one in self._store.approvals() if one.id == approval_id), None)
        if found is None:
            raise ApprovalNotKnown(
                f"There is no proposal {approval_id[:64]}. See 'keys proposals'."
            )
        return found

    def waiting(self, key: Key, act: ProtectedAct) -> Approval | None:
        """The open proposal of this act."""
        return next(
            (one for one in self.open(key.keyset) if (one.kid, one.act) == (key.kid, act)), None
        )

    def propose(self, act: ProtectedAct, key: Key, acts: Acts, actor: Actor) -> Proposal:
        """In the place of the act itself. Proposed again while that waits, it stays as it is."""
        waiting = self.waiting(key, act)
        if waiting is not None and waiting.key_version == key.version:
            says = (
                f"Proposed by {waiting.proposed_by} already, as {waiting.id}; somebody else who "
                f"may destroy keys of {key.keyset} has to approve it until "
                f"{moment(waiting.expires_at)}."
            )
            return self._told(says, acts, self._event(actor, waiting, "proposed"), waiting)
        made = self._made(act, key, actor)
        until = f"until {moment(made.expires_at)}"
        event = self._event(actor, made, "proposed", f"{made.id}, {until}")
        asked = f"somebody else who may destroy keys of {key.keyset} has to approve it {until}"
        if actor.dry_run:
            return self._told(f"This is proposed; {asked}.", acts, event, None)
        self._faults.reach(f"{event.event}.before")
        self._store.propose(made, event)
        self._faults.reach(f"{event.event}.recorded")
        says = (
            f"Nothing has changed yet. Proposed as {made.id}; {asked}: "
            f"kmsjwks keys approve {made.id}"
        )
        return self._told(says, acts, event, made)

    def check(self, approval: Approval, key: Key, actor: Actor) -> None:
        """
        Raises:
            ApprovalRefused
        """
        check_approvable(approval, key, actor.name, self.policy, self._now())

    def approve(self, approval: Approval, acts: Acts, actor: Actor) -> Proposal:
        """The approval and what it carries out, in one transaction. It was checked.

        Raises:
            Conflict: somebody was faster.
        """
        persons = f"proposed by {approval.proposed_by}, approved by {actor.name}"
        approved = approval.approved(actor.name, self._now())
        first = self._event(actor, approved, "approved", f"{approval.id}, {persons}")
        event = replace(first, event=acts.event, detail=persons)
        if not actor.dry_run:
            self._faults.reach(f"{first.event}.before")
            self._store.approve(approved, acts.changes, [first, event])
            self._faults.reach(f"{first.event}.recorded")
        told = approval if actor.dry_run else approved
        return Proposal(tuple(acts.says), tuple(acts.changes), event, told)

    def withdraw(self, approval: Approval, actor: Actor) -> Proposal:
        """
        Raises:
            Conflict: somebody was faster.
        """
        withdrawn = replace(approval, state=ApprovalState.WITHDRAWN)
        event = self._event(actor, withdrawn, "proposal-withdrawn", approval.id)
        if not actor.dry_run:
            self._faults.reach(f"{event.event}.before")
            self._store.withdraw(withdrawn, event)
            self._faults.reach(f"{event.event}.recorded")
        says = f"The proposal {approval.id} to {approval.act.value} {approval.kid} is withdrawn."
        return Proposal((says,), (), event, withdrawn)

    def _made(self, act: ProtectedAct, key: Key, actor: Actor) -> Approval:
        now = self._now()
        return Approval(
            id=secrets.token_hex(6),
            act=act,
            keyset=key.keyset,
            kid=key.kid,
            key_version=key.version,
            proposed_by=actor.name,
            proposed_at=now,
            expires_at=self._end(act, key, now),
        )

    def _told(
        self, says: str, acts: Acts, event: LifecycleEvent, approval: Approval | None
    ) -> Proposal:
        then = [f"Once it is approved: {said}" for said in acts.says]
        return Proposal((says, *then), (), event, approval)

    def _end(self, act: ProtectedAct, key: Key, now: int) -> int:
        """Not after the private half is destroyed, when there is nothing left to undo."""
        end, kept_until = now + self.policy.window, key.times.destroy_at
        if act is ProtectedAct.UNDO_COMPROMISE and kept_until is not None and kept_until > now:
            return min(end, kept_until)
        return end

    def _now(self) -> int:
        return int(self._clock.now())

    def _event(self, actor: Actor, about: Approval, what: str, detail: str = "") -> LifecycleEvent:
        return LifecycleEvent(
            time=self._now(),
            actor=actor.name,
            keyset=about.keyset,
            kid=about.kid,
            event=f"{about.act.value}-{what}",
            detail=detail,
            request_id=actor.request_id,
        )
