"""The tick and reconciliation, with a crash at every fault point of every operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import BackendUnavailable, TransitionRefused, UnsupportedAlgorithm
from kmsjwks.domain.keys import Keyset, KeyState, is_published
from kmsjwks.domain.timing import total, verifier_terms
from kmsjwks.services.faultpoints import FaultPoints
from kmsjwks.services.planning import Planner, PlannerOptions
from tests.support.lifecycle import DAY, OPERATOR, T0, Lab, crash_at, spec


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


class TestTick:
    def test_nothing_due_changes_nothing(self, lab: Lab) -> None:
        lab.create()
        lab.tick()  # writes down when the spare takes over
        before = lab.store.revision()
        assert lab.tick(DAY).done == ()
        assert lab.store.revision() == before

    def test_a_year_unattended(self, lab: Lab) -> None:
        """By the schedule: 52 rotations, and old keys destroyed after their windows."""
        lab.create()
        for _ in range(365):
            assert lab.tick(DAY).failed == {}
            lab.assert_sound()
        keys = lab.keys()
        activations = sorted(
            key.times.activate_at
            for key in keys
            if key.times.activate_at is not None and key.state is not KeyState.PRE_ACTIVATION
        )
        assert activations == [T0 + 7 * DAY * n for n in range(53)]
        assert sum(key.state is KeyState.DESTROYED for key in keys) == 50

    def test_one_keyset_in_trouble_does_not_stop_the_others(self, lab: Lab) -> None:
        lab.create("demo")
        lab.create("other")
        lab.service.destroy(lab.spare.kid, OPERATOR)
        for key in lab.keys("other"):
            if key.state is KeyState.PRE_ACTIVATION:
                lab.service.rotate("other", OPERATOR)
        create = lab.backend.create_key
        lab.backend.create_key = _refuse  # type: ignore[method-assign,assignment]
        report = lab.tick(DAY)
        assert sorted(report.failed) == ["demo", "other"]
        assert sum(key.state is KeyState.DEACTIVATED for key in lab.keys("other")) == 1
        lab.backend.create_key = create  # type: ignore[method-assign]
        assert lab.tick().failed == {}
        lab.assert_sound("other")

    def test_elsewhere(self, lab: Lab) -> None:
        with lab.store.planner_lock() as ours:
            assert ours
            assert lab.planner.tick().elsewhere


def _refuse(*_: object, **__: object) -> None:
    raise BackendUnavailable("down")


class TestGate:
    def test_no_takeover_before_the_key_was_seen(self, tmp_path: Path) -> None:
        seen: set[str] = set()

        def visible(_: Keyset, kid: str) -> bool:
            return kid in seen

        lab = Lab(tmp_path, visible)
        lab.create()
        old, spare = lab.active, lab.spare
        lab.tick(30 * DAY)
        assert (lab.active.kid, lab.spare.times.activate_at) == (old.kid, None)
        with pytest.raises(TransitionRefused, match="not been seen"):
            lab.service.rotate("demo", OPERATOR)
        seen.add(spare.kid)
        lab.tick(60)
        assert lab.spare.times.seen_at == T0 + 30 * DAY + 60
        assert lab.spare.times.activate_at == lab.now + lab.timing.notice
        lab.tick(lab.timing.notice)
        assert lab.active.kid == spare.kid

    def test_switched_on_when_a_date_is_set_already(self, lab: Lab) -> None:
        lab.create()
        lab.tick()
        old = lab.active
        assert lab.spare.times.activate_at is not None
        options = PlannerOptions(lab.timing, lambda *_: False, FaultPoints())
        gated = Planner(lab.store, {"fake": lab.backend}, lab.maker, lab.clock, options)
        gated.tick()
        assert lab.spare.times.activate_at is None
        lab.clock.seconds += 30 * DAY
        gated.tick()
        assert lab.active.kid == old.kid


class TestLastToken:
    def rotated(self, lab: Lab) -> str:
        lab.create()
        old = lab.active.kid
        lab.service.rotate("demo", OPERATOR)
        lab.tick(DAY)
        return old

    def test_withdrawn_when_the_last_token_has_expired(self, lab: Lab) -> None:
        old = self.rotated(lab)
        at = lab.key(old).times.deactivated_at
        assert at is not None
        planned = lab.key(old).times.withdraw_at
        lab.store.finish_lease(old, "a", at + 100)
        lab.store.finish_lease(old, "b", at + 1500)
        settled = lab.timing.grace + lab.timing.notice
        lab.tick(settled - 1)
        assert (lab.key(old).times.max_exp, lab.key(old).times.withdraw_at) == (None, planned)
        lab.tick(1)
        tighter = at + 1500 + total(verifier_terms(spec().schedule, lab.timing))
        assert planned is not None
        assert tighter < planned
        times = lab.key(old).times
        assert (times.max_exp, times.withdraw_at) == (at + 1500, tighter)
        assert is_published(lab.key(old), tighter - 1)
        assert not is_published(lab.key(old), tighter)

    def test_a_process_that_died_counts_with_its_reservation(self, lab: Lab) -> None:
        old = self.rotated(lab)
        lab.store.extend_lease(old, "dead", lab.now + 2000)
        lab.store.finish_lease(old, "alive", lab.now + 10)
        reserved = lab.now + 2000
        lab.tick(lab.timing.grace + lab.timing.notice)
        assert lab.key(old).times.max_exp == reserved

    def test_never_beyond_what_was_planned(self, lab: Lab) -> None:
        old = self.rotated(lab)
        planned = lab.key(old).times.withdraw_at
        lab.store.extend_lease(old, "dead", lab.now + 10 * DAY)
        lab.tick(lab.timing.grace + lab.timing.notice)
        assert lab.key(old).times.withdraw_at == planned

    def test_nothing_signed_at_all(self, lab: Lab) -> None:
        old = self.rotated(lab)
        lab.tick(lab.timing.grace + lab.timing.notice)
        assert lab.key(old).times.max_exp == 0
        withdraw_at = lab.key(old).times.withdraw_at
        assert withdraw_at == lab.now  # until now it was published, and nobody waits for it


ES256 = find_algorithm("ES256")


class TestReconciliation:
    @pytest.mark.parametrize("made", [False, True])
    def test_abandoned_creations_are_disposed_of(self, lab: Lab, made: bool) -> None:
        lab.create()
        lab.store.begin_creation("gone", "never", "fake", ES256, lab.now)
        if made:
            lab.backend.create_key(ES256, request_id="gone")
        assert "left over for never" in lab.tick().done[-1]
        lab.assert_sound()

    def test_and_nothing_else(self, lab: Lab) -> None:
        """A token may be shared: what nobody here asked for is somebody else's."""
        lab.create()
        foreign = lab.backend.create_key(ES256, request_id="another installation").ref
        lab.store.begin_creation("elsewhere", "demo", "unconfigured", ES256, lab.now)
        lab.tick()
        assert foreign in {key.ref for key in lab.backend.list_keys()}
        assert [intent[0] for intent in lab.store.open_intents()] == ["elsewhere"]

    def test_taken_up_where_it_is_needed(self, lab: Lab) -> None:
        lab.create()
        lab.service.hold(lab.spare.kid, OPERATOR)
        crash_at(lab, "key.created", lab.planner.tick)
        known = {key.ref for key in list(lab.store.keys())}
        orphan = {key.ref for key in lab.backend.list_keys()} - known
        lab.tick()
        assert {lab.spare.ref} == orphan
        lab.assert_sound()

    def test_left_for_later_where_the_backend_is_down(self, lab: Lab) -> None:
        lab.create()
        lab.store.begin_creation("gone", "never", "fake", ES256, lab.now)
        lab.backend.break_with(BackendUnavailable("down"))
        lab.tick()
        assert len(lab.store.open_intents()) == 1
        lab.backend.break_with(None)
        lab.tick()
        lab.assert_sound()

    def test_given_up_where_the_backend_does_not_offer_the_algorithm(self, lab: Lab) -> None:
        """Or each tick would ask AWS KMS again, for as long as the installation lives."""
        lab.create()
        lab.store.begin_creation("gone", "never", "fake", ES256, lab.now)
        lab.backend.break_with(UnsupportedAlgorithm("not offered"))
        assert "gave up the creation of a key in fake for never" in lab.tick().done[-1]
        assert lab.store.open_intents() == []

    def test_kept_where_a_keyset_needs_it(self, lab: Lab) -> None:
        """Its next tick takes it up, rather than open another each time."""
        lab.create()
        lab.store.begin_creation("wanted", "demo", "fake", ES256, lab.now)
        lab.backend.break_with(UnsupportedAlgorithm("not offered"))
        lab.tick()
        assert [intent[0] for intent in lab.store.open_intents()] == ["wanted"]


def _create(lab: Lab) -> None:
    lab.keysets.create(spec(), OPERATOR)


def _prepare_handover(lab: Lab) -> None:
    _create(lab)
    lab.service.rotate("demo", OPERATOR)
    lab.clock.seconds += DAY


def _prepare_destruction(lab: Lab) -> None:
    _prepare_handover(lab)
    lab.tick()
    lab.tick(4 * DAY)
    lab.clock.seconds += 8 * DAY


def _prepare_leftover(lab: Lab) -> None:
    _create(lab)
    lab.store.begin_creation("gone", "never", "fake", ES256, lab.now)


def _nothing(_: Lab) -> None:
    pass


def _tick(lab: Lab) -> None:
    lab.planner.tick()


def _compromise(lab: Lab) -> None:
    lab.service.compromise(lab.active.kid, OPERATOR)
    lab.planner.tick()


def _destroy_spare(lab: Lab) -> None:
    lab.service.destroy(lab.spare.kid, OPERATOR)
    lab.planner.tick()


OPERATIONS: dict[str, tuple[Callable[[Lab], None], Callable[[Lab], None]]] = {
    "create": (_nothing, _create),
    "schedule": (_create, _tick),
    "hand-over": (_prepare_handover, _tick),
    "destruction": (_prepare_destruction, _tick),
    "compromise": (_create, _compromise),
    "destroy": (_create, _destroy_spare),
    "reconcile": (_prepare_leftover, _tick),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_point_leaves_what_a_tick_finishes(operation: str, tmp_path: Path) -> None:
    prepare, act = OPERATIONS[operation]
    points = _points(tmp_path / "dry", prepare, act)
    assert points
    for number, point in enumerate(dict.fromkeys(points)):
        directory = tmp_path / str(number)
        directory.mkdir()
        lab = Lab(directory)
        prepare(lab)
        crash_at(lab, point, lambda lab=lab: act(lab))  # type: ignore[misc]
        report = lab.tick()
        assert report.failed == {}
        if operation == "create" and not lab.store.keysets():
            lab.assert_no_orphan()  # nobody asked again: disposed of
            _create(lab)
        lab.assert_sound()


def _points(
    directory: Path, prepare: Callable[[Lab], None], act: Callable[[Lab], None]
) -> list[str]:
    directory.mkdir()
    lab = Lab(directory)
    prepare(lab)
    lab.crashes.reached.clear()
    act(lab)
    return lab.crashes.reached
