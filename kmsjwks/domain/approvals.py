"""Acts that take two persons: one proposes, another approves in time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from kmsjwks.domain.errors import ApprovalRefused
from kmsjwks.domain.keys import Key

_COMMAND_LINE = "cli:"


class ProtectedAct(Enum):
    """What can be made to take a second person."""

    DESTROY = "destroy"
    UNDO_COMPROMISE = "undo-compromise"


class ApprovalState(Enum):
    PROPOSED = "proposed"
    APPROVED = "approved"  # and carried out, in the same transaction
    EXPIRED = "expired"  # not approved in time
    SUPERSEDED = "superseded"  # the key changed, and the act was proposed anew
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Approval:
    """A proposal and what became of it. Times in seconds since the epoch.

    ``key_version`` is that of the key as the proposer saw it: it can be approved only while the
    key is the same.
    """

    id: str
    act: ProtectedAct
    keyset: str
    kid: str
    key_version: int
    proposed_by: str
    proposed_at: int
    expires_at: int
    state: ApprovalState = ApprovalState.PROPOSED
    approved_by: str | None = None
    approved_at: int | None = None

    def state_at(self, now: int) -> ApprovalState:
        """Its state at ``now`` (seconds), whether or not its end was written down."""
        if self.state is ApprovalState.PROPOSED and self.expires_at <= now:
            return ApprovalState.EXPIRED
        return self.state

    def approved(self, by: str, now: int) -> Approval:
        return replace(self, state=ApprovalState.APPROVED, approved_by=by, approved_at=now)


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Which acts take a second person; none by default.

    ``window`` (seconds): how long a proposal can be approved, and how long the private half of a
    key that was declared compromised waits for its destruction. ``same_person``: names that
    may be one person; a name may be in several lists.
    """

    required_for: frozenset[ProtectedAct] = frozenset()
    window: int = 86400
    same_person: tuple[frozenset[str], ...] = ()

    def requires(self, act: ProtectedAct) -> bool:
        return act in self.required_for

    @property
    def compromise_wait(self) -> int:
        """In seconds; 0 where no act takes a second person."""
        return self.window if self.required_for else 0

    def are_same(self, one: str, other: str) -> bool:
        """Whether two principals are one person, as far as their names tell: ``cli:olga`` is the
        client ``olga``."""
        if _bare(one) == _bare(other):
            return True
        return any(
            _listed(one, names) and _listed(other, names)
            for names in (tuple(group) for group in self.same_person)
        )


def check_approvable(
    approval: Approval, key: Key, by: str, policy: ApprovalPolicy, now: int
) -> None:
    """Whether ``by`` may approve it at ``now`` (seconds), of ``key`` as it is now.

    Raises:
        ApprovalRefused
    """
    what = f"The proposal {approval.id} to {approval.act.value} {approval.kid}"
    state = approval.state_at(now)
    if state is ApprovalState.APPROVED:
        raise ApprovalRefused(f"{what} was approved by {approval.approved_by} already.")
    if state is ApprovalState.EXPIRED:
        raise ApprovalRefused(f"{what} has expired; propose it anew.")
    if state is not ApprovalState.PROPOSED:
        raise ApprovalRefused(f"{what} is {state.value}; propose it anew.")
    if policy.are_same(approval.proposed_by, by):
        raise ApprovalRefused(
            f"{what} was made by {approval.proposed_by}, which is you; somebody else has to "
            "approve it."
        )
    if key.version != approval.key_version:
        raise ApprovalRefused(
            f"{what} is about the key as it was then; it has changed since. Look at it, and "
            "propose it anew."
        )


def _bare(name: str) -> str:
    return name.removeprefix(_COMMAND_LINE).casefold()


def _listed(name: str, names: Iterable[str]) -> bool:
    return _bare(name) in {_bare(one) for one in names}
