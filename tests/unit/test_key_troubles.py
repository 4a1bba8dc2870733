"""Keys that their backend refuses though it is well, and what hangs in a device meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from kmsjwks.domain.errors import BackendDenied, KeyDisabled, StoreUnavailable, TransitionRefused
from kmsjwks.domain.failover import Health, Sight
from kmsjwks.domain.keys import Key, KeyState, Standby
from kmsjwks.domain.ports import BackendKey
from kmsjwks.services import acting
from tests.fakes import FakeBackend, SoftwareKey
from tests.support.lifecycle import DAY, OPERATOR, TRYING, Lab, spec

STANDBY = Standby("other", failover_after=60, failback_after=3600)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A keyset with a standby, whose spares every verifier knows."""
    made = Lab(tmp_path)
    made.keysets.create(replace(spec(), standby=STANDBY), OPERATOR)
    made.tick()
    made.tick(DAY)
    return made


def spare_in(lab: Lab, backend: str) -> Key:
    (found,) = [
        key
        for key in list(lab.keys())
        if (key.state, key.backend) == (KeyState.PRE_ACTIVATION, backend)
        and key.times.destroy_at is None
    ]
    return found


def primary_down(lab: Lab) -> Sight:
    down = Health(False, lab.now - 60, "gone")
    return Sight({"fake": down, "other": Health(True, 0)})


def another_key(backend: FakeBackend, ref: str) -> None:
    backend._keys[ref] = SoftwareKey.generate(backend._keys[ref].algorithm)


class TestSpareThatIsGone:
    @pytest.mark.parametrize("how", ["deleted", "replaced"])
    def test_nothing_moves_to_it(self, lab: Lab, how: str) -> None:
        spare = spare_in(lab, "other")
        if how == "deleted":
            lab.other.destroy_key(spare.ref)
        else:
            another_key(lab.other, spare.ref)
        looked = lab.failover.look_after(["demo"], primary_down(lab))
        assert looked.done == ()
        assert f"the spare {spare.kid} in other cannot be used" in looked.refused["demo"]
        assert lab.active.backend == "fake"
        assert list(lab.failover.troubles.all()) == [spare.kid]
        for actor in (OPERATOR, TRYING):
            with pytest.raises(TransitionRefused, match="keys destroy"):
                lab.failover.fail_over("demo", actor)
        assert lab.active.backend == "fake"

    def test_another_is_made_once_it_is_given_up(self, lab: Lab) -> None:
        lab.other.destroy_key(spare_in(lab, "other").ref)
        assert lab.failover.look_after(["demo"], primary_down(lab)).refused
        lab.service.destroy(spare_in(lab, "other").kid, OPERATOR)
        lab.tick()
        lab.tick(DAY)
        assert lab.failover.look_after(["demo"], primary_down(lab)).done
        assert lab.active.backend == "other"

    def test_the_next_takes_over_in_its_place(self, lab: Lab) -> None:
        first = spare_in(lab, "other")
        lab.service.hold(first.kid, OPERATOR)
        lab.tick()
        lab.service.release(first.kid, OPERATOR)
        lab.tick(DAY)
        lab.other.destroy_key(first.ref)
        assert lab.failover.look_after(["demo"], primary_down(lab)).done
        assert lab.active.backend == "other"
        assert lab.active.kid != first.kid

    def test_it_is_known_before_it_is_needed_and_when_it_is_mended(self, lab: Lab) -> None:
        spare, checks = spare_in(lab, "other"), lab.failover.checks
        lab.other.destroy_key(spare.ref)
        known = [(lab.store.keysets()[0], lab.keys())]
        checks.look(known, lab.now)
        assert checks.troubles.all() == {}, "not all at once when a process starts"
        checks.look(known, lab.now + 60)
        assert list(checks.troubles.all()) == [spare.kid]
        lab.other.cancel_destruction(spare.ref)
        checks.look(known, lab.now + 61)
        assert list(checks.troubles.all()) == [spare.kid], "not at every look"
        checks.look(known, lab.now + 60 + 720)
        assert checks.troubles.all() == {}

    def test_spares_without_a_standby_are_not_asked_for(self, lab: Lab) -> None:
        spare, checks = spare_in(lab, "other"), lab.failover.checks
        lab.other.destroy_key(spare.ref)
        bare = replace(lab.store.keysets()[0], standby=None)
        for after in (0, 60, 900):
            checks.look([(bare, lab.keys())], lab.now + after)
        assert checks.troubles.all() == {}

    def test_who_may_sign_need_not_be_allowed_to_read_public_keys(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(_: str) -> BackendKey:
            raise BackendDenied("kms:GetPublicKey")

        monkeypatch.setattr(lab.other, "get_key", denied)
        assert lab.failover.look_after(["demo"], primary_down(lab)).done
        assert lab.active.backend == "other"


def test_a_hand_over_that_nobody_recorded_is_recorded_with_the_failover(lab: Lab) -> None:
    old, new = lab.active, spare_in(lab, "fake")
    due = lab.key(new.kid).times.activate_at
    assert due is not None
    lab.clock.seconds = due + 500
    target = spare_in(lab, "other")
    assert lab.failover.look_after(["demo"], primary_down(lab)).done
    assert lab.events()[-2:] == ["activated", "failed-over"]
    assert lab.active.kid == target.kid
    assert lab.key(old.kid).times.deactivated_at == due
    assert lab.key(new.kid).times.deactivated_at == due + 500


def test_on_command_too(lab: Lab) -> None:
    new = spare_in(lab, "fake")
    lab.clock.seconds = (new.times.activate_at or 0) + 500
    tried = lab.failover.fail_over("demo", TRYING)
    assert lab.events()[-1] == "scheduled"
    assert lab.failover.fail_over("demo", OPERATOR).says == tried.says
    assert lab.key(new.kid).state is KeyState.DEACTIVATED


class TestWhileATickHangs:
    def test_many_keysets_wait_for_it_once(self, lab: Lab) -> None:
        names = ["demo", "second", "third", "fourth"]
        for name in names[1:]:
            lab.keysets.create(replace(spec(name), standby=STANDBY), OPERATOR)
        lab.tick()
        lab.tick(DAY)
        with lab.store.planner_lock() as ours:
            assert ours
            began = time.monotonic()
            looked = lab.failover.look_after(names, primary_down(lab))
            assert time.monotonic() - began < 2.5
        assert len(looked.done) == len(names)

    def test_a_compromise_does_not_wait(self, lab: Lab) -> None:
        old, spare = lab.active, spare_in(lab, "fake")
        with lab.store.planner_lock() as ours:
            assert ours
            began = time.monotonic()
            lab.service.compromise(old.kid, OPERATOR)
            assert time.monotonic() - began < 5
        assert lab.key(old.kid).state is KeyState.COMPROMISED
        assert lab.active.kid == spare.kid

    def test_no_key_is_made_out_of_turn(self, lab: Lab) -> None:
        for backend in ("fake", "other"):
            lab.service.hold(spare_in(lab, backend).kid, OPERATOR)
        made = len(lab.keys())
        with lab.store.planner_lock() as ours:
            assert ours
            proposal = lab.service.compromise(lab.active.kid, OPERATOR)
        assert any("no spare" in line for line in proposal.says)
        assert len(lab.keys()) == made
        lab.tick()
        assert lab.active

    def test_what_the_tick_writes_meanwhile_is_not_overwritten(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its hand-over comes between what the compromise reads and what it writes."""
        old, new = lab.active, spare_in(lab, "fake")
        lab.clock.seconds = new.times.activate_at or 0
        once: list[bool] = []
        apply = lab.store.apply

        def between(*args: object, **kwargs: object) -> None:
            if not once:
                once.append(True)
                keyset, keys = lab.store.keysets()[0], {key.kid: key for key in list(lab.keys())}
                (step, *_) = lab.planner.due(keyset, list(keys.values()))
                lab.planner._do(keyset, keys, step)
            apply(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(lab.store, "apply", between)
        with lab.store.planner_lock() as ours:
            assert ours
            lab.service.compromise(old.kid, OPERATOR)
        assert lab.key(old.kid).state is KeyState.COMPROMISED
        assert lab.key(old.kid).times.deactivated_at == new.times.activate_at
        assert lab.active.kid == new.kid

    def test_a_hold_does_not_wait(self, lab: Lab) -> None:
        with lab.store.planner_lock() as ours:
            assert ours
            lab.service.hold(lab.active.kid, OPERATOR)
        assert lab.active.hold

    def test_but_where_the_tick_may_be_destroying_the_key(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(acting, "_LOCK_PATIENCE", 0.1)
        spare = spare_in(lab, "fake")
        lab.service.destroy(spare.kid, OPERATOR)
        due = lab.key(spare.kid).times.destroy_at
        assert due is not None
        lab.clock.seconds = due - lab.timing.skew
        with lab.store.planner_lock() as ours:
            assert ours
            with pytest.raises(StoreUnavailable):
                lab.service.hold(spare.kid, OPERATOR)
        assert not lab.key(spare.kid).hold


def test_a_compromised_key_in_a_dead_backend_is_replaced_from_another(lab: Lab) -> None:
    home, away = spare_in(lab, "fake"), spare_in(lab, "other")
    assert home.times.activate_at is not None
    lab.service._sight = lambda: primary_down(lab)
    lab.service.compromise(lab.active.kid, OPERATOR)
    assert lab.active.kid == away.kid
    assert lab.key(home.kid).times.activate_at is None
    lab.tick(30 * DAY)
    assert lab.active.backend == "other"


def test_troubles_last_until_the_key_serves_and_are_told_while_they_are_recent(lab: Lab) -> None:
    troubles, key = lab.failover.troubles, lab.active
    troubles.refused(key, "disabled")
    lab.clock.seconds += 100
    troubles.refused(key, str(KeyDisabled("still disabled")))
    met = troubles.all()[key.kid]
    assert (met.since, met.last, met.reason) == (lab.now - 100, lab.now, "still disabled")
    assert troubles.recent() == troubles.all()
    lab.clock.seconds += 901
    assert troubles.recent() == {}
    assert troubles.all()
    troubles.served(key.kid)
    assert troubles.all() == {}
