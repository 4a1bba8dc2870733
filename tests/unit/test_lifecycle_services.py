"""What operators do, over a real SQLite store and a strict fake backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from kmsjwks.domain.errors import (
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    KeyNotKnown,
    KeysetNotFound,
    TransitionRefused,
)
from kmsjwks.domain.keys import KeyState, is_published
from kmsjwks.domain.timing import total, verifier_terms, withdrawal_terms
from kmsjwks.domain.tokens import TokenRules
from tests.support.lifecycle import DAY, OPERATOR, T0, TRYING, Lab, spec


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.create()
    return made


class TestCreate:
    def test_one_active_and_one_published_spare(self, lab: Lab) -> None:
        active, spare = lab.active, lab.spare
        assert active.times.activate_at == active.times.published_at == T0
        assert (spare.times.published_at, spare.times.activate_at) == (T0, None)
        assert is_published(spare, T0)
        assert lab.events() == ["keyset-created"]
        lab.assert_sound()

    def test_a_dry_run_asks_no_backend_and_stores_nothing(self, tmp_path: Path) -> None:
        lab = Lab(tmp_path)
        assert lab.keysets.create(spec(), TRYING).name == "demo"
        assert list(lab.store.keysets()) == []
        lab.assert_no_orphan()

    def test_dated_from_when_it_was_made_not_from_when_it_was_asked_for(
        self, tmp_path: Path
    ) -> None:
        """RSA-4096 in a token takes its time."""
        lab = Lab(tmp_path)
        create, backend = lab.backend.create_key, lab.backend

        def slow(*arguments: object, **named: object) -> object:
            lab.clock.seconds += 5
            return create(*arguments, **named)  # type: ignore[arg-type]

        backend.create_key = slow  # type: ignore[method-assign,assignment]
        lab.create()
        times = lab.active.times
        assert times.created_at == times.published_at == times.activate_at == T0 + 5

    def test_what_exists_is_not_made_again(self, lab: Lab) -> None:
        with pytest.raises(Conflict, match="exists already"):
            lab.create()
        lab.assert_sound()

    def test_an_unknown_backend_and_a_bad_schedule(self, lab: Lab) -> None:
        with pytest.raises(InvalidRequest, match="no backend 'hsm'"):
            lab.keysets.create(replace(spec("other"), backend="hsm"), OPERATOR)
        with pytest.raises(InvalidRequest, match="below the floor"):
            lab.create("other", propagation=60)

    def test_ensure_creates_then_updates_then_leaves_alone(self, tmp_path: Path) -> None:
        lab = Lab(tmp_path)
        lab.keysets.ensure(spec(), OPERATOR)
        lab.keysets.ensure(spec(period=14 * DAY), OPERATOR)
        assert lab.store.keysets()[0].schedule.period == 14 * DAY
        before = lab.store.revision()
        lab.keysets.ensure(spec(period=14 * DAY), OPERATOR)
        assert lab.store.revision() == before
        with pytest.raises(Conflict, match="cannot be changed"):
            lab.keysets.ensure(replace(spec(), backend="other"), OPERATOR)


class TestRotate:
    def test_the_spare_takes_over_once_verifiers_know_it(self, lab: Lab) -> None:
        old, spare = lab.active, lab.spare
        proposal = lab.service.rotate("demo", OPERATOR)
        assert spare.kid in proposal.says[0]
        assert lab.spare.times.activate_at == T0 + DAY  # published_at + propagation
        assert lab.active.kid == old.kid
        lab.tick(DAY - 1)
        assert lab.active.kid == old.kid
        lab.tick(1)
        assert lab.active.kid == spare.kid
        lab.assert_sound()

    def test_not_before_every_replica_has_heard_of_it(self, lab: Lab) -> None:
        lab.clock.seconds += 3 * DAY
        lab.service.rotate("demo", OPERATOR)
        assert lab.spare.times.activate_at == T0 + 3 * DAY + lab.timing.notice

    def test_a_dry_run_changes_nothing(self, lab: Lab) -> None:
        before = lab.keys(), lab.store.revision(), lab.events()
        proposal = lab.service.rotate("demo", TRYING)
        assert proposal.changes[0].after.times.activate_at == T0 + DAY
        assert (lab.keys(), lab.store.revision(), lab.events()) == before

    def test_asked_twice_it_keeps_the_date(self, lab: Lab) -> None:
        lab.service.rotate("demo", OPERATOR)
        lab.clock.seconds += 3600
        assert lab.service.rotate("demo", OPERATOR).changes == ()
        assert lab.spare.times.activate_at == T0 + DAY

    def test_dates_do_not_depend_on_when_the_tick_ran(self, lab: Lab) -> None:
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY + 5000)
        times = lab.key(old.kid).times
        keyset = lab.store.keysets()[0]
        stays = total(withdrawal_terms(keyset.schedule, lab.timing, keyset.rules.max_lifetime))
        assert (times.deactivated_at, times.withdraw_at) == (T0 + DAY, T0 + DAY + stays)
        assert lab.active.times.activate_at == T0 + DAY

    def test_a_hold_on_the_active_key_is_in_the_way(self, lab: Lab) -> None:
        lab.service.hold(lab.active.kid, OPERATOR)
        with pytest.raises(TransitionRefused, match="on hold"):
            lab.service.rotate("demo", OPERATOR)
        with pytest.raises(TransitionRefused, match="on hold"):
            lab.service.deactivate(lab.active.kid, OPERATOR)

    def test_without_a_spare_one_is_made_first(self, lab: Lab) -> None:
        held = lab.spare
        lab.service.hold(held.kid, OPERATOR)
        assert "made first" in lab.service.rotate("demo", TRYING).says[0]
        lab.clock.seconds += 60
        lab.service.rotate("demo", OPERATOR)
        assert lab.spare.kid != held.kid
        assert lab.spare.times.activate_at == T0 + 60 + DAY

    def test_unknown_names(self, lab: Lab) -> None:
        with pytest.raises(KeysetNotFound):
            lab.service.rotate("none", OPERATOR)
        for act in (lab.service.compromise, lab.service.hold, lab.service.destroy):
            with pytest.raises(KeyNotKnown):
                act("none", OPERATOR)

    def test_deactivate_is_a_rotation_of_the_active_key(self, lab: Lab) -> None:
        with pytest.raises(TransitionRefused, match="cannot become deactivated"):
            lab.service.deactivate(lab.spare.kid, OPERATOR)
        old = lab.active
        lab.service.deactivate(old.kid, OPERATOR)
        lab.tick(DAY)
        assert lab.key(old.kid).state is KeyState.DEACTIVATED
        lab.assert_sound()


class TestCompromise:
    def test_the_spare_takes_over_at_once(self, lab: Lab) -> None:
        bad, spare = lab.active, lab.spare
        lab.clock.seconds += 10
        says = lab.service.compromise(bad.kid, OPERATOR).says
        assert f"Key {spare.kid} signs from now on." in says
        assert lab.active.kid == spare.kid
        assert lab.active.times.activate_at == T0 + 10
        gone = lab.key(bad.kid)
        assert gone.state is KeyState.COMPROMISED
        assert not is_published(gone, lab.now)
        lab.tick()
        gone = lab.key(bad.kid)
        assert (gone.state, gone.times.private_destroyed_at) == (KeyState.DESTROYED, T0 + 10)
        lab.assert_sound()
        assert lab.events()[1:] == [
            "compromised",
            "spare-published",
            "destroyed",
            "scheduled",
        ]

    def test_a_dry_run_tells_and_changes_nothing(self, lab: Lab) -> None:
        before = lab.keys(), lab.store.revision()
        proposal = lab.service.compromise(lab.active.kid, TRYING)
        assert [change.after.state for change in proposal.changes] == [
            KeyState.COMPROMISED,
            KeyState.ACTIVE,
        ]
        assert (lab.keys(), lab.store.revision()) == before

    def test_a_hold_does_not_stop_it(self, lab: Lab) -> None:
        bad = lab.active
        lab.service.hold(bad.kid, OPERATOR)
        lab.service.compromise(bad.kid, OPERATOR)
        lab.tick()
        assert lab.key(bad.kid).state is KeyState.DESTROYED
        lab.assert_sound()

    def test_of_the_spare(self, lab: Lab) -> None:
        active, bad = lab.active, lab.spare
        lab.service.compromise(bad.kid, OPERATOR)
        lab.tick()
        assert lab.active.kid == active.kid
        assert lab.spare.kid != bad.kid
        lab.assert_sound()

    def test_of_a_key_that_is_gone(self, lab: Lab) -> None:
        bad = lab.active
        lab.service.compromise(bad.kid, OPERATOR)
        lab.tick()
        with pytest.raises(TransitionRefused):
            lab.service.compromise(bad.kid, OPERATOR)

    def test_a_backend_that_is_down_does_not_stop_it(self, lab: Lab) -> None:
        """No spare, none can be made: the bad key goes, and the next one signs at once."""
        bad = lab.active
        lab.service.hold(lab.spare.kid, OPERATOR)
        lab.backend.break_with(BackendUnavailable("down"))
        says = lab.service.compromise(bad.kid, OPERATOR).says
        assert "There is no spare: a new key is made and signs at once." in says
        assert lab.key(bad.kid).state is KeyState.COMPROMISED
        assert lab.tick().failed == {"demo": "down"}
        lab.backend.break_with(None)
        lab.tick(60)
        assert lab.active.times.activate_at == T0 + 60
        lab.assert_sound()

    def test_the_spare_of_another_key_needs_no_backend(self, lab: Lab) -> None:
        lab.backend.break_with(BackendUnavailable("down"))
        for key in (lab.spare, lab.active):
            lab.service.compromise(key.kid, OPERATOR)
            assert lab.key(key.kid).state is KeyState.COMPROMISED


class TestHold:
    def test_it_stops_the_clock_and_release_sets_new_dates(self, lab: Lab) -> None:
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.service.hold(old.kid, OPERATOR)
        lab.tick(3 * DAY)
        assert lab.active.kid == old.kid
        lab.service.release(old.kid, OPERATOR)
        assert lab.spare.times.activate_at is None
        lab.tick()
        assert lab.active.kid == old.kid
        assert lab.spare.times.activate_at == T0 + 7 * DAY  # by the period again
        assert not lab.active.hold

    def test_needs_no_backend(self, lab: Lab) -> None:
        lab.backend.break_with(BackendUnavailable("down"))
        lab.service.hold(lab.spare.kid, OPERATOR)
        held = next(key for key in list(lab.keys()) if key.hold)
        lab.service.release(held.kid, OPERATOR)
        assert lab.spare.kid == held.kid

    def test_held_deactivated_keys_stay_published_and_stay_whole(self, lab: Lab) -> None:
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        lab.service.hold(old.kid, OPERATOR)
        assert lab.tick(60 * DAY).failed == {}
        assert lab.key(old.kid).state is KeyState.DEACTIVATED
        assert is_published(lab.key(old.kid), lab.now)

    def test_when_it_returns_no_destruction_is_under_way(self, lab: Lab) -> None:
        """A hold during a tick takes effect before or after its destructions, not amid them."""
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        lab.tick(10 * DAY)
        lab.clock.seconds += 30 * DAY
        asked, go_on = Event(), Event()
        destroy = lab.backend.destroy_key

        def slow(ref: str) -> object:
            asked.set()
            assert go_on.wait(10)
            return destroy(ref)

        lab.backend.destroy_key = slow  # type: ignore[method-assign,assignment]
        ticking = Thread(target=lab.planner.tick)
        ticking.start()
        assert asked.wait(10)
        refused: list[str] = []
        holding = Thread(target=lambda: refused.append(_refusal(lab, old.kid)))
        holding.start()
        holding.join(0.3)
        assert holding.is_alive()
        go_on.set()
        ticking.join(10)
        holding.join(10)
        assert lab.key(old.kid).state is KeyState.DESTROYED
        assert refused == ["refused"]


def _refusal(lab: Lab, kid: str) -> str:
    try:
        lab.service.cancel_destroy(kid, OPERATOR)
    except TransitionRefused:
        return "refused"
    return "cancelled"


class TestDestroy:
    def test_refused_while_tokens_may_live(self, lab: Lab) -> None:
        old = lab.active
        with pytest.raises(TransitionRefused, match="cannot become destroyed"):
            lab.service.destroy(old.kid, OPERATOR)
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        with pytest.raises(TransitionRefused, match="may live until"):
            lab.service.destroy(old.kid, OPERATOR)

    def test_two_phases_and_a_way_back(self, tmp_path: Path) -> None:
        lab = Lab(tmp_path)
        lab.create(period=None, destroy_after=None)
        old = lab.active
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        lab.tick(DAY)
        lab.service.destroy(old.kid, OPERATOR)
        ends = lab.now + 7 * DAY
        assert lab.key(old.kid).times.destroy_at == ends
        lab.clock.seconds += DAY
        assert lab.service.destroy(old.kid, OPERATOR).changes == ()  # no new window
        lab.service.cancel_destroy(old.kid, OPERATOR)
        with pytest.raises(TransitionRefused, match="No destruction"):
            lab.service.cancel_destroy(old.kid, OPERATOR)
        lab.tick(30 * DAY)
        assert lab.key(old.kid).state is KeyState.DEACTIVATED
        lab.service.destroy(old.kid, OPERATOR)
        lab.tick(7 * DAY - 1)
        assert lab.key(old.kid).state is KeyState.DEACTIVATED
        lab.tick(1)
        assert lab.key(old.kid).state is KeyState.DESTROYED
        with pytest.raises(TransitionRefused):
            lab.service.cancel_destroy(old.kid, OPERATOR)
        lab.assert_sound()

    def test_a_spare_makes_way_for_another(self, lab: Lab) -> None:
        spare = lab.spare
        lab.service.destroy(spare.kid, OPERATOR)
        lab.tick()
        assert lab.spare.kid != spare.kid
        lab.tick(7 * DAY)
        assert lab.key(spare.kid).state is KeyState.DESTROYED

    def test_a_compromised_key_has_no_window(self, lab: Lab) -> None:
        bad = lab.spare
        lab.service.compromise(bad.kid, OPERATOR)
        proposal = lab.service.destroy(bad.kid, OPERATOR)
        assert proposal.changes == ()
        assert "as soon as" in proposal.says[0]


class TestUpdate:
    def test_an_issuer_that_moves_takes_its_keysets_along(self, lab: Lab) -> None:
        lab.create("other")
        demo = next(one for one in lab.store.keysets() if one.name == "demo")
        moved = replace(demo.rules, issuer="https://elsewhere.example")
        lab.keysets.update("demo", moved, demo.schedule, OPERATOR)
        assert {one.rules.issuer for one in lab.store.keysets()} == {moved.issuer}

    def test_an_issuer_keeps_its_path(self, lab: Lab) -> None:
        demo = lab.store.keysets()[0]
        moved = replace(demo.rules, issuer=demo.rules.issuer + "/new")
        with pytest.raises(Conflict, match="would withdraw"):
            lab.keysets.update("demo", moved, demo.schedule, OPERATOR)

    def test_a_shorter_lifetime_does_not_shorten_tokens_that_are_out(self, lab: Lab) -> None:
        old = lab.active
        rules = replace(lab.store.keysets()[0].rules, max_lifetime=600)
        lab.clock.seconds += DAY
        lab.keysets.update("demo", rules, lab.store.keysets()[0].schedule, OPERATOR)
        bound = lab.now + lab.timing.grace + lab.timing.skew + 3600
        assert lab.active.times.exp_bound == lab.spare.times.exp_bound == bound
        lab.service.rotate("demo", OPERATOR)
        lab.tick(lab.timing.notice)
        schedule = lab.store.keysets()[0].schedule
        withdraw_at = lab.key(old.kid).times.withdraw_at
        assert withdraw_at is not None
        assert withdraw_at >= bound + total(verifier_terms(schedule, lab.timing))

    def test_a_new_period_sets_new_dates(self, lab: Lab) -> None:
        lab.tick()
        assert lab.spare.times.activate_at == T0 + 7 * DAY
        keyset = lab.store.keysets()[0]
        longer = replace(keyset.schedule, period=30 * DAY)
        lab.keysets.update("demo", keyset.rules, longer, TRYING)
        assert lab.store.keysets()[0] == keyset
        lab.keysets.update("demo", keyset.rules, longer, OPERATOR)
        assert lab.spare.times.activate_at is None
        lab.tick()
        assert lab.spare.times.activate_at == T0 + 30 * DAY

    def test_what_cannot_change(self, lab: Lab) -> None:
        schedule = lab.store.keysets()[0].schedule
        with pytest.raises(Conflict, match="Make a new keyset"):
            rules = TokenRules(issuer="https://issuer.example/other")
            lab.keysets.update("demo", rules, schedule, OPERATOR)
        with pytest.raises(InvalidRequest, match="floor"):
            rules = lab.store.keysets()[0].rules
            lab.keysets.update("demo", rules, replace(schedule, propagation=1), OPERATOR)
        with pytest.raises(KeysetNotFound):
            lab.keysets.update("none", rules, schedule, OPERATOR)
