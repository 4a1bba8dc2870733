"""What every KeyStore must do about proposals, and about taking back a compromise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmsjwks.domain.approvals import Approval, ApprovalState, ProtectedAct
from kmsjwks.domain.errors import Conflict, TransitionRefused
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.ports import Change, KeyStore
from tests.contract.test_key_store import NOW, Open, database_url, open_store, store
from tests.contract.test_key_store_changes import ACTIVE, SPARE, add, event, stored, timed

__all__ = ["database_url", "open_store", "store"]  # fixtures

ASKED = Approval(
    id="p1",
    act=ProtectedAct.DESTROY,
    keyset="demo",
    kid="spare",
    key_version=0,
    proposed_by="olga",
    proposed_at=NOW,
    expires_at=NOW + 60,
)
DOOMED = timed(SPARE, destroy_at=NOW + 99)


def states(store: KeyStore) -> dict[str, ApprovalState]:
    return {one.id: one.state for one in store.approvals("demo")}


def test_a_proposal_comes_back_with_its_event(open_store: Open) -> None:
    store = open_store()
    add(store, ACTIVE, SPARE)
    store.propose(ASKED, event("destroy-proposed", "spare"))
    assert list(open_store().approvals()) == list(store.approvals("demo")) == [ASKED]
    assert list(store.approvals("other")) == []
    assert store.events("demo")[0] == event("destroy-proposed", "spare")
    assert stored(store)["spare"] == SPARE


def test_of_a_key_that_changed_nothing_is_proposed(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    before = store.events("demo")
    for wrong in (replace(ASKED, key_version=1), replace(ASKED, kid="none")):
        with pytest.raises(Conflict, match="changed by another process"):
            store.propose(wrong, event())
    assert (list(store.approvals()), store.events("demo")) == ([], before)


def test_approved_the_act_and_its_events_are_one_step(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    store.propose(ASKED, event())
    approved = ASKED.approved("paul", NOW + 5)
    events = [event("destroy-approved"), event("destruction-begun")]
    store.approve(approved, [Change(SPARE, DOOMED)], events)
    assert list(store.approvals()) == [approved]
    assert stored(store)["spare"] == replace(DOOMED, version=1)
    assert [one.event for one in store.events("demo")][:2] == [
        "destruction-begun",
        "destroy-approved",
    ]
    with pytest.raises(Conflict, match="not open any more"):
        store.approve(ASKED.approved("rita", NOW + 6), [], [event()])
    with pytest.raises(Conflict, match="not open any more"):
        store.withdraw(replace(ASKED, state=ApprovalState.WITHDRAWN), event())


def test_what_cannot_be_carried_out_is_not_approved(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    store.propose(ASKED, event("asked"))
    approved, stale = ASKED.approved("paul", NOW), replace(SPARE, version=7)
    with pytest.raises(Conflict, match="was changed by another"):
        store.approve(approved, [Change(stale, DOOMED)], [event("done")])
    with pytest.raises(TransitionRefused):
        spent = replace(SPARE, state=KeyState.DEACTIVATED)
        store.approve(approved, [Change(SPARE, spent)], [event("done")])
    assert list(store.approvals()) == [ASKED]
    assert store.events("demo")[0].event == "asked"


def test_nobody_approves_his_own_proposal(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    store.propose(ASKED, event())
    with pytest.raises(Conflict):
        store.approve(ASKED.approved("olga", NOW), [Change(SPARE, DOOMED)], [event()])
    assert (stored(store)["spare"], list(store.approvals())) == (SPARE, [ASKED])


def test_a_new_proposal_ends_the_same_one_and_those_that_expired(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    undo = replace(ASKED, id="u", act=ProtectedAct.UNDO_COMPROMISE)
    other = replace(ASKED, id="o", kid="first", expires_at=NOW + 10)
    for one in (ASKED, undo, other):
        store.propose(one, event())
    assert set(states(store).values()) == {ApprovalState.PROPOSED}
    store.propose(replace(ASKED, id="p2", proposed_at=NOW + 10, expires_at=NOW + 70), event())
    assert states(store) == {
        "p1": ApprovalState.SUPERSEDED,
        "u": ApprovalState.PROPOSED,
        "o": ApprovalState.EXPIRED,
        "p2": ApprovalState.PROPOSED,
    }
    assert [one.id for one in store.approvals()] == ["p2", "o", "p1", "u"]


def test_a_proposal_is_withdrawn(store: KeyStore) -> None:
    add(store, ACTIVE, SPARE)
    store.propose(ASKED, event())
    store.withdraw(replace(ASKED, state=ApprovalState.WITHDRAWN), event("withdrawn"))
    assert states(store) == {"p1": ApprovalState.WITHDRAWN}
    assert store.events("demo")[0].event == "withdrawn"


class TestTakingBackACompromise:
    WRONG = timed(
        replace(SPARE, state=KeyState.COMPROMISED), compromised_at=NOW, destroy_at=NOW + 60
    )

    def corrected(self, key: Key) -> Key:
        times = replace(
            key.times,
            compromised_at=None,
            destroy_at=None,
            deactivated_at=NOW,
            withdraw_at=NOW + 9,
        )
        return replace(key, state=KeyState.DEACTIVATED, times=times)

    def test_with_the_dates_that_protect_its_tokens(self, store: KeyStore) -> None:
        add(store, ACTIVE, self.WRONG)
        store.apply([Change(self.WRONG, self.corrected(self.WRONG))], event())
        assert stored(store)["spare"] == replace(self.corrected(self.WRONG), version=1)

    @pytest.mark.parametrize(
        "missing", [{"compromised_at": NOW}, {"deactivated_at": None}, {"withdraw_at": None}]
    )
    def test_not_without_them(self, store: KeyStore, missing: dict[str, int | None]) -> None:
        add(store, ACTIVE, self.WRONG)
        good = self.corrected(self.WRONG)
        after = replace(good, times=replace(good.times, **missing))  # type: ignore[arg-type]
        with pytest.raises(TransitionRefused, match="this change of its state"):
            store.apply([Change(self.WRONG, after)], event())
        assert stored(store)["spare"] == self.WRONG

    def test_not_on_hold(self, store: KeyStore) -> None:
        held = replace(self.WRONG, hold=True)
        add(store, ACTIVE, held)
        with pytest.raises(TransitionRefused, match="on hold"):
            store.apply([Change(held, self.corrected(held))], event())

    @pytest.mark.parametrize("state", [KeyState.ACTIVE, KeyState.PRE_ACTIVATION])
    def test_never_to_sign_again(self, store: KeyStore, state: KeyState) -> None:
        add(store, ACTIVE, self.WRONG)
        with pytest.raises(TransitionRefused, match="this change of its state"):
            after = replace(self.corrected(self.WRONG), state=state)
            store.apply([Change(self.WRONG, after)], event())
