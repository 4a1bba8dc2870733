"""Acts that take two persons, over a real SQLite store and a strict fake backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kmsjwks.domain.approvals import ApprovalPolicy, ApprovalState, ProtectedAct
from kmsjwks.domain.errors import (
    ApprovalNotKnown,
    ApprovalRefused,
    BackendUnavailable,
    Conflict,
    TransitionRefused,
)
from kmsjwks.domain.keys import Key, KeyState, is_published
from kmsjwks.domain.timing import total, withdrawal_terms
from kmsjwks.services.acting import Actor, Proposal
from tests.support.lifecycle import DAY, OPERATOR, TRYING, Lab, crash_at

BOTH = ApprovalPolicy(frozenset(ProtectedAct), window=3600)
SECOND = Actor("paul")


def make(directory: Path, policy: ApprovalPolicy = BOTH) -> Lab:
    lab = Lab(directory, approvals=policy)
    lab.create()
    return lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make(tmp_path)


def proposal_id(proposal: Proposal) -> str:
    assert proposal.waits
    assert proposal.approval is not None
    return proposal.approval.id


def states(lab: Lab) -> list[str]:
    """Oldest first."""
    found = list(lab.store.approvals())
    return [one.state.value for one in sorted(found, key=lambda one: one.proposed_at)]


class TestPersons:
    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("olga", "olga", True),
            ("cli:olga", "olga", True),
            ("olga", "cli:Olga", True),
            ("olga", "paul", False),
            ("cli:olga", "cli:paul", False),
            ("cli:ops1", "olga-laptop", True),
            ("ops1", "olga-laptop", True),
            ("olga-laptop", "olga", False),
            ("olga-laptop", "paul", False),
            ("cli:root", "olga", True),
            ("cli:root", "paul", True),
            ("cli:root", "cli:rita", False),
        ],
    )
    def test_who_is_whom(self, one: str, other: str, same: bool) -> None:
        listed = frozenset({"cli:ops1", "olga-laptop"})
        shared = [frozenset({"cli:root", name}) for name in ("olga", "paul")]
        policy = replace(BOTH, same_person=(*shared, listed))
        assert policy.are_same(one, other) is policy.are_same(other, one) is same

    def test_nobody_approves_what_he_proposed(self, lab: Lab) -> None:
        proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        before = lab.keys(), lab.events()
        for name in ("olga", "cli:olga"):
            for actor in (Actor(name), Actor(name, dry_run=True)):
                with pytest.raises(ApprovalRefused, match="which is you"):
                    lab.service.approve(proposed, actor)
        assert (lab.keys(), lab.events()) == before


class TestDestroy:
    def test_nothing_begins_before_the_approval(self, lab: Lab) -> None:
        spare = lab.spare
        proposal = lab.service.destroy(spare.kid, OPERATOR)
        assert proposal_id(proposal) in proposal.says[0]
        assert proposal.changes == ()
        lab.tick(30 * DAY)
        assert lab.key(spare.kid).times.destroy_at is None

    def test_the_window_before_destruction_starts_with_the_approval(self, lab: Lab) -> None:
        spare = lab.spare
        proposed = proposal_id(lab.service.destroy(spare.kid, OPERATOR))
        assert lab.key(spare.kid) == spare
        lab.clock.seconds += 60
        done = lab.service.approve(proposed, SECOND)
        assert lab.key(spare.kid).times.destroy_at == lab.now + 7 * DAY
        assert done.changes[0].after.times.destroy_at == lab.now + 7 * DAY
        assert lab.events() == [
            "keyset-created",
            "destroy-proposed",
            "destroy-approved",
            "destruction-begun",
        ]
        begun, approved, asked, _ = lab.store.events("demo")
        assert (asked.actor, approved.actor, begun.actor) == ("olga", "paul", "paul")
        assert begun.detail == "proposed by olga, approved by paul"
        assert proposed in asked.detail
        assert proposed in approved.detail
        (kept,) = lab.store.approvals("demo")
        assert (kept.proposed_by, kept.approved_by, kept.approved_at) == ("olga", "paul", lab.now)
        assert list(lab.service.desk.open()) == []

    def test_an_approval_is_used_once(self, lab: Lab) -> None:
        proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        lab.service.approve(proposed, SECOND)
        with pytest.raises(ApprovalRefused, match="approved by paul already"):
            lab.service.approve(proposed, Actor("rita"))

    def test_in_time(self, lab: Lab) -> None:
        spare = lab.spare
        proposed = proposal_id(lab.service.destroy(spare.kid, OPERATOR))
        lab.clock.seconds += 3600
        assert list(lab.service.desk.open()) == []
        with pytest.raises(ApprovalRefused, match="has expired"):
            lab.service.approve(proposed, SECOND)
        again = proposal_id(lab.service.destroy(spare.kid, OPERATOR))
        assert states(lab) == ["expired", "proposed"]
        lab.clock.seconds += 3599
        lab.service.approve(again, SECOND)

    def test_a_key_that_changed_needs_a_new_proposal(self, lab: Lab) -> None:
        spare = lab.spare
        proposed = proposal_id(lab.service.destroy(spare.kid, OPERATOR))
        lab.service.rotate("demo", OPERATOR)  # it is to sign now
        with pytest.raises(ApprovalRefused, match="has changed since"):
            lab.service.approve(proposed, SECOND)
        again = proposal_id(lab.service.destroy(spare.kid, OPERATOR))
        assert again != proposed
        assert sorted(states(lab)) == ["proposed", "superseded"]
        lab.service.approve(again, SECOND)
        assert lab.key(spare.kid).times.activate_at is None

    def test_proposed_twice_it_is_one_proposal_whoever_asks(self, lab: Lab) -> None:
        first = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        for actor in (OPERATOR, SECOND, TRYING):
            again = lab.service.destroy(lab.spare.kid, actor)
            assert proposal_id(again) == first
            assert "by olga" in again.says[0]
        assert lab.events().count("destroy-proposed") == 1
        assert lab.spare.times.destroy_at is None

    def test_what_cannot_be_done_cannot_be_proposed(self, lab: Lab) -> None:
        with pytest.raises(TransitionRefused, match="cannot become destroyed"):
            lab.service.destroy(lab.active.kid, OPERATOR)
        lab.service.hold(lab.spare.kid, OPERATOR)
        held = next(key for key in list(lab.keys()) if key.hold)
        with pytest.raises(TransitionRefused, match="on hold"):
            lab.service.destroy(held.kid, OPERATOR)
        assert list(lab.store.approvals()) == []

    def test_a_dry_run_proposes_and_approves_nothing(self, lab: Lab) -> None:
        tried = lab.service.destroy(lab.spare.kid, TRYING)
        assert (tried.approval, tried.changes, list(lab.store.approvals())) == (None, (), [])
        assert "Once it is approved" in tried.says[1]
        proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        before = lab.keys(), lab.events(), list(lab.store.approvals())
        tried = lab.service.approve(proposed, Actor("paul", dry_run=True))
        assert tried.approval in before[2]
        assert tried.changes[0].after.times.destroy_at is not None
        assert (lab.keys(), lab.events(), list(lab.store.approvals())) == before

    def test_a_proposal_can_be_withdrawn(self, lab: Lab) -> None:
        proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        lab.service.cancel_destroy(lab.spare.kid, SECOND)
        assert states(lab) == ["withdrawn"]
        with pytest.raises(ApprovalRefused, match="is withdrawn"):
            lab.service.approve(proposed, SECOND)
        with pytest.raises(TransitionRefused, match="No destruction"):
            lab.service.cancel_destroy(lab.spare.kid, OPERATOR)

    def test_what_is_begun_takes_nobody(self, lab: Lab) -> None:
        spare = lab.spare
        lab.service.approve(proposal_id(lab.service.destroy(spare.kid, OPERATOR)), SECOND)
        again = lab.service.destroy(spare.kid, OPERATOR)
        assert (again.approval, again.changes) == (None, ())

    def test_an_unknown_proposal(self, lab: Lab) -> None:
        with pytest.raises(ApprovalNotKnown):
            lab.service.approve("none", SECOND)

    def test_two_who_approve_at_once_do_it_once(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
        seen = lab.service.desk.find(proposed)
        lab.service.approve(proposed, SECOND)
        stale = lab.key(seen.kid)
        monkeypatch.setattr(lab.service.desk, "find", lambda _: seen)
        monkeypatch.setattr(lab.service.desk, "check", lambda *_: None)
        with pytest.raises(Conflict, match="not open any more"):
            lab.service.approve(proposed, Actor("rita"))
        assert lab.key(seen.kid) == stale

    def test_policies_and_retired_spares_need_nobody(self, tmp_path: Path) -> None:
        """A policy was decided on where it was configured."""
        lab = make(tmp_path)
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        lab.tick(DAY + 7200)
        lab.tick(DAY)
        assert lab.key(old.kid).times.destroy_at is not None
        assert list(lab.store.approvals()) == []


class TestUndoCompromise:
    def compromised(self, lab: Lab) -> Key:
        """What was the active key an hour after its creation; ticked."""
        wrong = lab.active
        lab.clock.seconds += 3600
        lab.service.compromise(wrong.kid, OPERATOR)
        lab.tick()
        return lab.key(wrong.kid)

    def test_a_compromise_takes_one_person_and_keeps_the_private_half(self, lab: Lab) -> None:
        wrong = self.compromised(lab)
        assert (wrong.state, wrong.times.destroy_at) == (KeyState.COMPROMISED, lab.now + 3600)
        assert not is_published(wrong, lab.now)
        assert lab.active.kid != wrong.kid
        lab.tick(3599)
        assert lab.backend.get_key(wrong.ref)
        lab.tick(1)
        assert lab.key(wrong.kid).state is KeyState.DESTROYED
        lab.assert_sound()

    def test_it_is_told_what_is_kept_and_until_when(self, lab: Lab) -> None:
        says = lab.service.compromise(lab.active.kid, TRYING).says
        assert any("undo-compromise" in said for said in says)
        assert not any("cannot be undone" in said for said in says)

    def test_undone_it_is_published_for_its_tokens_and_never_signs(self, lab: Lab) -> None:
        wrong = self.compromised(lab)
        declared = lab.now
        lab.clock.seconds += 600
        proposal = lab.service.undo_compromise(wrong.kid, OPERATOR)
        assert lab.key(wrong.kid) == wrong
        signs = lab.active.kid
        lab.service.approve(proposal_id(proposal), SECOND)
        lab.tick()
        undone, keyset = lab.key(wrong.kid), lab.store.keysets()[0]
        stays = total(withdrawal_terms(keyset.schedule, lab.timing, keyset.rules.max_lifetime))
        assert undone.state is KeyState.DEACTIVATED
        assert undone.times.deactivated_at == declared
        assert undone.times.withdraw_at is not None
        assert undone.times.withdraw_at >= declared + stays
        assert (undone.times.compromised_at, undone.times.destroy_at) == (None, None)
        assert is_published(undone, lab.now)
        assert lab.backend.get_key(wrong.ref)
        assert lab.active.kid == signs
        assert [one for one in lab.events() if "undo" in one or "undone" in one] == [
            "undo-compromise-proposed",
            "undo-compromise-approved",
            "compromise-undone",
        ]
        assert lab.store.events("demo")[0].detail == "proposed by olga, approved by paul"
        lab.assert_sound()
        for _ in range(20):
            lab.tick(DAY)
        assert lab.key(wrong.kid).state is KeyState.DESTROYED

    def test_it_is_proposed_no_longer_than_it_can_be_done(self, lab: Lab) -> None:
        wrong = self.compromised(lab)
        lab.clock.seconds += 600
        approval = lab.service.undo_compromise(wrong.kid, OPERATOR).approval
        assert approval is not None
        assert approval.expires_at == wrong.times.destroy_at
        lab.tick(3000)
        assert lab.key(wrong.kid).state is KeyState.DESTROYED
        with pytest.raises(ApprovalRefused, match="has expired"):
            lab.service.approve(approval.id, SECOND)

    @pytest.mark.parametrize("point", ["undo.retrieved", "undo-compromise-approved.before"])
    def test_a_crash_after_the_backend_gave_it_back(self, tmp_path: Path, point: str) -> None:
        lab = Lab(tmp_path, approvals=BOTH)
        lab.backend._window = lab.other._window
        lab.create()
        wrong = self.compromised(lab)
        lab.service.approve(proposal_id(lab.service.destroy(wrong.kid, OPERATOR)), SECOND)
        lab.tick()
        pending = lab.key(wrong.kid)
        assert pending.times.private_destroyed_at == lab.now + 7 * DAY
        proposed = proposal_id(lab.service.undo_compromise(wrong.kid, OPERATOR))
        crash_at(lab, point, lambda: lab.service.approve(proposed, SECOND))
        assert lab.key(wrong.kid) == pending
        lab.service.approve(proposed, SECOND)
        undone = lab.key(wrong.kid)
        assert (undone.state, undone.times.private_destroyed_at) == (KeyState.DEACTIVATED, None)
        assert lab.events()[-2:] == ["undo-compromise-approved", "compromise-undone"]

    def test_an_approved_destruction_ends_the_wait(self, lab: Lab) -> None:
        wrong = self.compromised(lab)
        undo = proposal_id(lab.service.undo_compromise(wrong.kid, OPERATOR))
        proposed = proposal_id(lab.service.destroy(wrong.kid, OPERATOR))
        lab.service.approve(proposed, SECOND)
        lab.tick()
        assert lab.key(wrong.kid).state is KeyState.DESTROYED
        with pytest.raises(ApprovalRefused, match="has changed since"):
            lab.service.approve(undo, SECOND)
        with pytest.raises(TransitionRefused, match="only before that"):
            lab.service.undo_compromise(wrong.kid, OPERATOR)
        lab.assert_sound()

    def test_only_a_compromise_is_undone(self, lab: Lab) -> None:
        for key in list(lab.keys()):
            with pytest.raises(TransitionRefused, match="not compromised"):
                lab.service.undo_compromise(key.kid, OPERATOR)

    def test_no_other_act_takes_a_compromise_back(self, lab: Lab) -> None:
        wrong = self.compromised(lab)
        for act in (lab.service.deactivate, lab.service.cancel_destroy):
            with pytest.raises(TransitionRefused):
                act(wrong.kid, OPERATOR)
        lab.service.hold(wrong.kid, OPERATOR)
        with pytest.raises(TransitionRefused, match="on hold"):
            lab.service.undo_compromise(wrong.kid, OPERATOR)

    def test_a_backend_that_is_down_does_not_stop_it(self, tmp_path: Path) -> None:
        lab = make(tmp_path, ApprovalPolicy())
        lab.service.rotate("demo", OPERATOR)
        wrong = lab.active
        lab.backend.break_with(BackendUnavailable("down"))
        lab.service.compromise(wrong.kid, OPERATOR)
        lab.tick()
        assert lab.key(wrong.kid).state is KeyState.COMPROMISED
        lab.service.undo_compromise(wrong.kid, SECOND)  # one person: no approvals configured
        assert is_published(lab.key(wrong.kid), lab.now)
        lab.backend.break_with(None)
        lab.tick()
        assert lab.key(wrong.kid).state is KeyState.DEACTIVATED
        lab.assert_sound()

    def test_without_approvals_it_is_too_late_once_it_is_destroyed(self, tmp_path: Path) -> None:
        lab = make(tmp_path, ApprovalPolicy())
        wrong = self.compromised(lab)
        assert wrong.state is KeyState.DESTROYED
        with pytest.raises(TransitionRefused, match="is destroyed; a compromise can be undone"):
            lab.service.undo_compromise(wrong.kid, OPERATOR)

    @pytest.mark.parametrize("down", [False, True])
    def test_in_the_window_of_the_backend(self, tmp_path: Path, down: bool) -> None:
        """The private half comes back where the backend answers; verifiers do not wait for it."""
        lab = Lab(tmp_path)
        lab.backend._window = lab.other._window
        lab.create()
        wrong = self.compromised(lab)
        ends = wrong.times.private_destroyed_at
        assert (wrong.state, ends) == (KeyState.COMPROMISED, lab.now + 7 * DAY)
        lab.backend.break_with(BackendUnavailable("down") if down else None)
        lab.service.undo_compromise(wrong.kid, OPERATOR)
        undone = lab.key(wrong.kid)
        assert undone.times.private_destroyed_at == (ends if down else None)
        assert is_published(undone, lab.now)
        lab.backend.break_with(None)
        if down:
            lab.service.cancel_destroy(wrong.kid, OPERATOR)
        assert lab.backend.get_key(wrong.ref)
        assert lab.key(wrong.kid).times.private_destroyed_at is None

    def test_only_undo_takes_two(self, tmp_path: Path) -> None:
        policy = ApprovalPolicy(frozenset({ProtectedAct.UNDO_COMPROMISE}), window=60)
        lab = make(tmp_path, policy)
        wrong = self.compromised(lab)
        assert lab.service.undo_compromise(wrong.kid, OPERATOR).waits
        assert not lab.service.destroy(wrong.kid, OPERATOR).waits
        lab.tick()
        assert lab.key(wrong.kid).state is KeyState.DESTROYED


def test_what_is_open_is_told_by_time_not_by_what_was_written(lab: Lab) -> None:
    proposed = proposal_id(lab.service.destroy(lab.spare.kid, OPERATOR))
    found = lab.service.desk.find(proposed)
    assert found.state_at(found.expires_at - 1) is ApprovalState.PROPOSED
    assert found.state_at(found.expires_at) is ApprovalState.EXPIRED
    assert found.approved("paul", 1).state_at(found.expires_at) is ApprovalState.APPROVED
