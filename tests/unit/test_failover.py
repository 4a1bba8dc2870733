"""Moving to the standby and back, and to another backend for good: decisions, then random
histories in which no verifier may lose."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from kmsjwks.domain import handover, interventions, rotation
from kmsjwks.domain.failover import (
    CALL_OFF_AFTER,
    CallOff,
    Decision,
    FailBack,
    FailOver,
    Health,
    Sight,
    Stuck,
    Trouble,
    decide,
    is_ready,
    successor,
)
from kmsjwks.domain.keys import Key, Keyset, KeyState, Standby
from kmsjwks.domain.migration import moved, progress, stood_by, stopped
from kmsjwks.domain.rotation import CreateSpare, RetireSpare, Schedule, plan
from tests.unit.test_rotation import (
    ACTIVE,
    DUE,
    KEYSET,
    SHORT,
    SMALL,
    SPARE,
    T0,
    TIMING,
    Installation,
    _deactivated,
    _scheduled,
)

DAY = 86400
STANDBY = Standby("kms", failover_after=60, failback_after=3600)
PAIRED = replace(KEYSET, standby=STANDBY)
OTHER = replace(SPARE, kid="other", backend="kms")
KNOWN = T0 + DAY  # when every verifier knows what was published at T0
UP = Health(True, T0 - 10**6)


def _down(since: int, reason: str = "gone") -> Health:
    return Health(False, since, reason)


def _decide(
    keys: list[Key],
    now: int,
    primary: Health = UP,
    standby: Health = UP,
    keyset: Keyset = PAIRED,
    troubles: dict[str, Trouble] | None = None,
) -> Decision | None:
    sight = Sight({"softhsm": primary, "kms": standby}, troubles or {})
    return decide(keyset, keys, sight, TIMING, now, gated=False)


class TestAway:
    def test_after_the_configured_time_and_not_before(self) -> None:
        keys = [ACTIVE, SPARE, OTHER]
        assert _decide(keys, KNOWN, _down(KNOWN - 59)) is None
        done = _decide(keys, KNOWN, _down(KNOWN - 60))
        assert isinstance(done, FailOver)
        assert done.kid == "other"
        assert "60 s" in done.why
        assert "gone" in done.why

    def test_not_by_itself_where_it_is_on_command_only(self) -> None:
        manual = replace(PAIRED, standby=replace(STANDBY, failover_after=None))
        assert _decide([ACTIVE, SPARE, OTHER], KNOWN, _down(T0), keyset=manual) is None
        assert _decide([ACTIVE, SPARE], KNOWN, _down(T0), keyset=KEYSET) is None

    @pytest.mark.parametrize(
        ("keys", "now", "standby", "word"),
        [
            ([ACTIVE, SPARE, OTHER], KNOWN - 1, UP, "not known to every verifier"),
            ([ACTIVE, SPARE], KNOWN, UP, "no spare in kms"),
            ([ACTIVE, OTHER, SPARE], KNOWN, _down(T0), "kms is down too"),
        ],
    )
    def test_stuck_says_why(self, keys: list[Key], now: int, standby: Health, word: str) -> None:
        done = _decide(keys, now, _down(T0), standby)
        assert isinstance(done, Stuck)
        assert word in done.why

    def test_a_spare_that_was_not_seen_through_the_public_url_waits(self) -> None:
        health = Sight({"softhsm": _down(T0), "kms": UP})
        keys = [ACTIVE, SPARE, OTHER]
        assert isinstance(decide(PAIRED, keys, health, TIMING, KNOWN, gated=True), Stuck)
        seen = replace(OTHER, times=replace(OTHER.times, seen_at=T0))
        done = decide(PAIRED, [ACTIVE, SPARE, seen], health, TIMING, KNOWN, gated=True)
        assert done is not None
        assert isinstance(done, FailOver)

    def test_a_hold_stops_it(self) -> None:
        assert _decide([replace(ACTIVE, hold=True), SPARE, OTHER], KNOWN, _down(T0)) is None
        assert isinstance(
            _decide([ACTIVE, SPARE, replace(OTHER, hold=True)], KNOWN, _down(T0)), Stuck
        )

    def test_a_process_without_that_backend_decides_nothing(self) -> None:
        sight = Sight({"kms": UP})
        assert decide(PAIRED, [ACTIVE, OTHER], sight, TIMING, KNOWN, gated=False) is None


class TestKeyThatIsRefused:
    """Its backend is well, so no health check notices."""

    @property
    def refused(self) -> dict[str, Trouble]:
        return {"old": Trouble(KNOWN - 60, KNOWN, "disabled by hand")}

    def test_is_left_as_a_backend_that_is_down(self) -> None:
        done = _decide([ACTIVE, SPARE, OTHER], KNOWN, troubles=self.refused)
        assert isinstance(done, FailOver)
        assert done.kid == "other"
        assert "disabled by hand" in done.why

    def test_what_nobody_asked_for_since_decides_nothing(self) -> None:
        once = {"old": Trouble(KNOWN - 60, KNOWN - 1, "disabled by hand")}
        assert _decide([ACTIVE, SPARE, OTHER], KNOWN + 10**5, troubles=once) is None

    def test_without_a_standby_a_person_decides(self) -> None:
        keys = [ACTIVE, SPARE]
        assert _decide(keys, KNOWN, keyset=KEYSET, troubles=self.refused) is None

    def test_a_spare_that_cannot_serve_does_not_take_over(self) -> None:
        troubles = {"other": Trouble(T0, T0, "deleted by hand")}
        done = _decide([ACTIVE, SPARE, OTHER], KNOWN, _down(T0), troubles=troubles)
        assert isinstance(done, Stuck)
        assert "deleted by hand" in done.why
        second = replace(OTHER, kid="second")
        done = _decide([ACTIVE, SPARE, OTHER, second], KNOWN, _down(T0), troubles=troubles)
        assert isinstance(done, FailOver)
        assert done.kid == "second"

    def test_nobody_goes_back_by_itself_to_where_a_key_is_refused(self) -> None:
        now = KNOWN + DAY
        left = replace(_deactivated(), kid="left")
        keys = [left, TestBack.away, TestBack.home, TestBack.fresh]
        assert isinstance(_decide(keys, now), FailBack)
        for kid in ("left", "new", "fresh"):
            assert _decide(keys, now, troubles={kid: Trouble(T0, T0, "denied")}) is None
        # It was the whole backend, which is up again since.
        expired = {"left": Trouble(KNOWN, KNOWN, "credentials expired")}
        done = _decide(keys, now, Health(True, KNOWN + 1), troubles=expired)
        assert isinstance(done, FailBack)

    def test_what_was_met_before_its_backend_came_back_does_not_count(self) -> None:
        keys = [ACTIVE, SPARE, OTHER]
        assert _decide(keys, KNOWN, Health(True, KNOWN - 59), troubles=self.refused) is None


class TestHandOverThatNobodyRecorded:
    late = _scheduled(KNOWN)

    def test_does_not_delay_a_failover(self) -> None:
        done = _decide([ACTIVE, self.late, OTHER], KNOWN + 100, _down(KNOWN + 10))
        assert isinstance(done, FailOver)
        assert done.kid == "other"

    def test_it_is_the_key_that_signs_by_the_clock_that_counts(self) -> None:
        keys = [ACTIVE, self.late, OTHER]
        assert _decide(keys, KNOWN, troubles={"old": Trouble(T0, KNOWN, "x")}) is None
        done = _decide(keys, KNOWN, troubles={"new": Trouble(T0, KNOWN, "x")})
        assert isinstance(done, FailOver)

    def test_both_keys_end_at_their_own_times(self) -> None:
        found = handover.caught_up(PAIRED, [ACTIVE, self.late, OTHER], TIMING, KNOWN + 100)
        spare = next(key for key in found if key.kid == "other")
        ended = {
            after.kid: after.times.deactivated_at
            for _, after in interventions.taken_over(PAIRED, found, spare, TIMING, KNOWN + 100)
        }
        old = next(key for key in found if key.kid == "old")
        assert (old.state, old.times.deactivated_at) == (KeyState.DEACTIVATED, KNOWN)
        assert ended == {"new": KNOWN + 100, "other": None}


class TestMigrationWhileFailedOver:
    """Signing in kms since softhsm died; it is to go to hsm, and softhsm is not missed."""

    away = replace(ACTIVE, kid="away", backend="kms", times=replace(ACTIVE.times, activate_at=T0))
    there = replace(SPARE, kid="there", backend="hsm")
    commanded = moved(PAIRED, "hsm", T0 + 5)

    def test_it_goes_by_rotation_as_soon_as_its_spare_is_known(self) -> None:
        keys = [self.away, SPARE, OTHER]
        assert rotation.is_migrating(self.commanded, keys)
        assert not rotation.is_failed_over(self.commanded, keys)
        assert plan(self.commanded, keys, TIMING, T0 + 9, gated=False) == [CreateSpare("hsm")]
        steps = plan(self.commanded, [*keys, self.there], TIMING, T0 + 9, gated=False)
        assert steps == [Schedule("there", KNOWN, "migration to hsm")]
        told = progress(self.commanded, [*keys, self.there], T0 + 9)
        assert (told.stage, told.spare, told.done) == ("published", "there", False)

    def test_it_is_over_once_the_primary_has_signed(self) -> None:
        signed = replace(_deactivated(), kid="signed", backend="hsm")
        signed = replace(signed, times=replace(signed.times, activate_at=T0 + 6))
        keys = [signed, self.away, self.there]
        assert rotation.is_failed_over(self.commanded, keys)
        before = replace(signed, times=replace(signed.times, activate_at=T0 + 4))
        assert rotation.is_migrating(self.commanded, [before, self.away])
        unused = replace(self.there, state=KeyState.DESTROYED)
        unused = replace(
            unused, times=replace(unused.times, activate_at=T0 + 99, destroyed_at=T0 + 50)
        )
        assert rotation.is_migrating(self.commanded, [unused, self.away])

    def test_it_can_be_stopped_where_it_is(self) -> None:
        stays = stopped(self.commanded, "kms")
        assert (stays.backend, stays.standby) == ("kms", None)
        stays = stopped(self.commanded, "softhsm")
        assert stays.standby == STANDBY

    def test_another_standby_does_not_end_it(self) -> None:
        assert stood_by(self.commanded, [ACTIVE], STANDBY, T0 + 9) == self.commanded
        bare = replace(KEYSET, backend="hsm")
        paired = stood_by(bare, [ACTIVE], STANDBY, T0 + 9)
        assert rotation.is_migrating(paired, [self.away])


def test_a_compromised_key_in_a_dead_backend_is_replaced_from_another() -> None:
    keys = [ACTIVE, SPARE, OTHER]

    def chosen(sight: Sight, now: int = KNOWN, found: list[Key] = keys) -> str | None:
        key = successor(PAIRED, found, ACTIVE, sight, now, gated=False)
        return key.kid if key else None

    dead = Sight({"softhsm": _down(T0), "kms": UP})
    assert chosen(Sight({})) == "new"
    assert chosen(dead) == "other"
    assert chosen(dead, KNOWN - 1) == "new", "no verifier need know the other yet"
    assert chosen(Sight({"softhsm": _down(T0), "kms": _down(T0)})) == "new"
    assert chosen(Sight({"softhsm": UP, "kms": UP}, {"new": Trouble(T0, T0, "gone")})) == "other"
    assert chosen(dead, KNOWN, [ACTIVE, _scheduled(KNOWN), OTHER]) == "other"


class TestBack:
    away = replace(ACTIVE, backend="kms", times=replace(ACTIVE.times, activate_at=KNOWN))
    home = SPARE
    fresh = replace(OTHER, kid="fresh", times=replace(SPARE.times, published_at=KNOWN))

    def test_when_the_primary_is_stable_and_the_next_failure_can_be_survived(self) -> None:
        now = KNOWN + DAY
        keys = [self.away, self.home, self.fresh]
        done = _decide(keys, now, Health(True, now - 3600))
        assert isinstance(done, FailBack)
        assert done.kid == "new"
        assert _decide(keys, now, Health(True, now - 3599)) is None
        assert _decide(keys, now - 301 - 4, Health(True, T0)) is None, (
            "the standby's spare is too young"
        )
        assert _decide([self.away, self.home], now, UP) is None
        manual = replace(PAIRED, standby=replace(STANDBY, failback_after=None))
        assert _decide(keys, now, UP, keyset=manual) is None

    def test_once_only(self) -> None:
        now = KNOWN + DAY
        dated = replace(self.home, times=replace(self.home.times, activate_at=now + 300))
        assert _decide([self.away, dated, self.fresh], now, UP) is None

    def test_the_standby_may_fail_while_it_signs(self) -> None:
        done = _decide([self.away, self.home, self.fresh], KNOWN + 9, UP, _down(KNOWN - 60))
        assert isinstance(done, FailOver)
        assert done.kid == "new"


def test_a_hand_over_to_a_backend_that_is_down_is_called_off() -> None:
    moving = replace(KEYSET, backend="kms")
    target = replace(_scheduled(DUE), backend="kms")
    health = _down(DUE - 100)
    args = {"standby": health, "keyset": moving}
    done = _decide([ACTIVE, target], DUE - 100 + CALL_OFF_AFTER, **args)  # type: ignore[arg-type]
    assert done == CallOff("new", "kms is down")
    early = _decide([ACTIVE, target], DUE - 101 + CALL_OFF_AFTER, **args)  # type: ignore[arg-type]
    assert early is None
    # Within one backend there is nothing to choose.
    assert _decide([ACTIVE, _scheduled(DUE)], DUE - 50, _down(T0), keyset=KEYSET) is None


class TestPlans:
    def test_a_spare_in_each_backend(self) -> None:
        steps = plan(PAIRED, [ACTIVE], TIMING, T0, gated=False)
        assert steps == [CreateSpare("softhsm"), CreateSpare("kms")]
        steps = plan(PAIRED, [ACTIVE, SPARE], TIMING, T0, gated=False)
        assert steps == [CreateSpare("kms"), Schedule("new", DUE, "rotation period")]
        assert plan(PAIRED, [ACTIVE, _scheduled(), OTHER], TIMING, T0, gated=False) == []

    def test_the_standby_does_not_take_over_by_rotation(self) -> None:
        older = replace(OTHER, times=replace(OTHER.times, created_at=T0 - 5, published_at=T0 - 5))
        steps = plan(PAIRED, [ACTIVE, older, SPARE], TIMING, T0, gated=False)
        assert steps == [Schedule("new", DUE, "rotation period")]

    def test_a_keyset_that_failed_over_rotates_where_it_is(self) -> None:
        away = replace(ACTIVE, backend="kms")
        steps = plan(PAIRED, [away, SPARE, OTHER], TIMING, T0, gated=False)
        assert steps == [Schedule("other", DUE, "rotation period")]

    def test_migration_goes_by_publication_and_does_not_wait_for_the_period(self) -> None:
        moving = replace(KEYSET, backend="kms")
        assert plan(moving, [ACTIVE, SPARE], TIMING, T0, gated=False) == [CreateSpare("kms")]
        steps = plan(moving, [ACTIVE, SPARE, OTHER], TIMING, T0, gated=False)
        assert steps == [Schedule("other", KNOWN, "migration to kms")]
        moved = [_deactivated(), replace(ACTIVE, kid="there", backend="kms"), SPARE, OTHER]
        steps = plan(moving, moved, TIMING, T0, gated=False)
        assert RetireSpare("new", "the keyset is in this backend no more") in steps

    def test_a_compromised_key_is_replaced_in_its_own_backend_first(self) -> None:
        older = replace(OTHER, times=replace(OTHER.times, created_at=T0 - 5))
        found = [older, SPARE]
        assert rotation.replacement(found, T0, "softhsm") is SPARE
        assert rotation.replacement(found, T0, "kms") is older
        assert rotation.replacement([older], T0, "softhsm") is older


def test_progress() -> None:
    moving = replace(KEYSET, backend="kms")
    begun = progress(moving, [ACTIVE, SPARE, _scheduled(DUE, "there", backend="kms")], T0)
    assert (begun.moving, begun.signs_in, begun.done) == (True, "softhsm", False)
    assert (begun.spare, begun.takes_over_at) == ("there", DUE)
    assert {one.kid for one in begun.left} == {"old", "new"}
    there = replace(ACTIVE, kid="there", backend="kms")
    left = progress(moving, [_deactivated(), there], T0)
    assert (left.moving, left.done, len(left.left)) == (False, False, 1)
    gone = replace(_deactivated(), state=KeyState.DESTROYED)
    assert progress(moving, [gone, there], T0).done


class StandbyInstallation(Installation):
    """The same world with a standby; failovers come at any time that the rules allow, for a
    replica may always believe that a backend is down."""

    @initialize(
        ahead=st.lists(st.integers(0, SMALL.skew), min_size=2, max_size=3),
        slack=st.sampled_from([0, 1, 60]),
        gated=st.booleans(),
        lifetime=st.sampled_from([1, 40, 200]),
        device_window=st.sampled_from([0, 60]),
    )
    def build(
        self, ahead: list[int], slack: int, gated: bool, lifetime: int, device_window: int
    ) -> None:
        super().build(ahead, slack, gated, lifetime, device_window)
        self.store.keyset = replace(self.store.keyset, standby=Standby("kms", 1, 1))
        self.failovers = self.migrations = self.caught_up = 0

    @rule(nth=st.integers(0, 2), which=st.integers(0, 1), key_only=st.booleans())
    def fail_over(self, nth: int, which: int, key_only: bool = False) -> None:
        """A backend is down, or with ``key_only`` well and refuses the key that signs."""

        def act(now: int) -> None:
            keyset, keys = self.store.keyset, self.store.all()
            health = {
                name: Health(index == which or key_only, 0, "gone")
                for index, name in enumerate(keyset.backends)
            }
            signing = rotation.signing_key(keys, now)
            assert signing is not None
            refused = {signing.kid: Trouble(0, now, "disabled")} if key_only else {}
            sight = Sight(health, refused)
            decision = decide(keyset, keys, sight, SMALL, now, gated=self.gated)
            if isinstance(decision, FailOver):
                assert decision.kid != signing.kid
                self.catch_up(now)
                keys, spare = self.store.all(), self.store.keys[decision.kid]
                self.store.write(*interventions.taken_over(keyset, keys, spare, SMALL, now))
                self.failovers += 1

        self.operate(nth, act)

    def catch_up(self, now: int) -> None:
        """What a tick has not come to record."""
        while pairs := handover.handed_over(self.store.keyset, self.store.all(), SMALL, now):
            self.store.write(*sorted(pairs, key=lambda pair: pair[1].state is KeyState.ACTIVE))
            self.rotations += 1
            self.caught_up += 1

    @rule(nth=st.integers(0, 2))
    def fail_back(self, nth: int) -> None:
        def act(now: int) -> None:
            keyset, keys = self.store.keyset, self.store.all()
            health = {name: Health(True, 0) for name in keyset.backends}
            decision = decide(keyset, keys, Sight(health), SMALL, now, gated=self.gated)
            if isinstance(decision, FailBack):
                self.catch_up(now)
                keys = self.store.all()
                spare = self.store.keys[decision.kid]
                changes = interventions.brought_forward(keyset, keys, spare, SMALL, now)
                self.store.write(*changes)

        self.operate(nth, act)

    @rule(nth=st.integers(0, 2), to=st.sampled_from(["softhsm", "kms", "hsm"]))
    def migrate(self, nth: int, to: str) -> None:
        def act(now: int) -> None:
            old, keys = self.store.keyset, self.store.all()
            new = old if old.backend == to else moved(old, to, now)
            goes_to = rotation.next_backend(new, keys)
            changes = [
                (key, interventions.unscheduled(old, key, SMALL, now))
                for key in rotation.spares(keys)
                if key.backend != goes_to
            ]
            self.store.write(*changes)
            self.store.keyset = new
            self.migrations += 1

        self.operate(nth, act)

    @rule(nth=st.integers(0, 2), name=st.sampled_from(["softhsm", "kms", "hsm"]))
    def stand_by(self, nth: int, name: str) -> None:
        def act(now: int) -> None:
            keyset, keys = self.store.keyset, self.store.all()
            if name != keyset.backend and not rotation.is_failed_over(keyset, keys):
                self.store.keyset = stood_by(keyset, keys, Standby(name, 1, 1), now)

        self.operate(nth, act)


TestStandbyInstallation = StandbyInstallation.TestCase
TestStandbyInstallation.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def _installation(ahead: list[int], lifetime: int = 200) -> StandbyInstallation:
    world = StandbyInstallation()
    world.build(ahead=ahead, slack=0, gated=False, lifetime=lifetime, device_window=0)
    world.wait_ticking(seconds=SHORT + 5, nth=1)
    return world


def test_there_and_back_and_away_for_good_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.fail_over(nth=0, which=1)
    assert world.failovers == 1
    assert rotation.is_failed_over(world.store.keyset, world.store.all())
    for _ in range(2 * SHORT):
        world.wait_ticking(seconds=5, nth=1)
        world.fail_back(nth=1)
        if not rotation.is_failed_over(world.store.keyset, world.store.all()):
            break
    assert not rotation.is_failed_over(world.store.keyset, world.store.all())
    world.migrate(nth=0, to="kms")
    world.wait_ticking(seconds=2 * SHORT, nth=0)
    active = rotation.active_key(world.store.all())
    assert active is not None
    assert active.backend == "kms"


def test_a_replica_cut_off_before_a_failover_signs_on_and_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.wait_ticking(seconds=20, nth=1)
    world.cut_off(nth=0, seconds=SMALL.grace + 1)
    world.fail_over(nth=1, which=1)
    assert world.failovers == 1
    world.wait_ticking(seconds=400, nth=1)


def test_a_spare_is_ready_when_it_has_been_published_for_the_propagation_delay() -> None:
    assert is_ready(PAIRED, OTHER, KNOWN, gated=False)
    assert not is_ready(PAIRED, OTHER, KNOWN - 1, gated=False)
    assert not is_ready(PAIRED, OTHER, KNOWN, gated=True)


def test_a_failover_while_no_tick_came_for_a_hand_over_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.rotate(nth=1)
    world.wait(seconds=SHORT + 2 * SMALL.notice)  # due for long, and nobody ticked
    world.fail_over(nth=1, which=1)
    assert (world.failovers, world.caught_up) == (1, 1)
    world.wait_ticking(seconds=400, nth=1)


def test_a_migration_while_failed_over_comes_to_its_end_and_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.fail_over(nth=0, which=1)
    world.migrate(nth=0, to="hsm")
    world.wait_ticking(seconds=2 * SHORT, nth=0)
    active = rotation.active_key(world.store.all())
    assert active is not None
    assert active.backend == "hsm"
    world.fail_over(nth=0, which=1)
    assert rotation.is_failed_over(world.store.keyset, world.store.all())
    world.wait_ticking(seconds=400, nth=1)
