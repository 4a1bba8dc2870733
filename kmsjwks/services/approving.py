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
        now, who = self._now(), f"somebody else who may destroy keys of {key.keyset}"
        waiting = self.waiting(key, act)
        if waiting is not None and waiting.key_version == key.version:
            says = (
                f"This is proposed by {waiting.proposed_by} as {waiting.id}; {who} than that has "
                f"to approve it until {moment(waiting.expires_at)}."
            )
            event = self._event(actor, waiting, "proposed")
            return Proposal((says, *_then(acts)), (), event, waiting)
        approval = Approval(
            id=secrets.token_hex(6),
            act=act,
            keyset=key.keyset,
            kid=key.kid,
            key_version=key.version,
            proposed_by=actor.name,
            proposed_at=now,
            expires_at=now + self.policy.window,
        )
        until = f"until {moment(approval.expires_at)}"
        event = self._event(actor, approval, "proposed", f"{approval.id}, {until}")
        if actor.dry_run:
            says = f"This is proposed, and {who} has to approve it {until}."
            return Proposal((says, *_then(acts)), (), event)
        self._faults.reach(f"{event.event}.before")
        self._store.propose(approval, event)
        self._faults.reach(f"{event.event}.recorded")
        says = (
            f"Nothing has changed yet. Proposed as {approval.id}; {who} has to approve it {until}: "
            f"kmsjwks keys approve {approval.id}"
        )
        return Proposal((says, *_then(acts)), (), event, approval)

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
        return Proposal(tuple(acts.says), tuple(acts.changes), event, approved)

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


def _then(acts: Acts) -> list[str]:
    return [f"Once it is approved: {said}" for said in acts.says]
