"""Failover, coming back, migration and cancellable destruction over a real store."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kmsjwks.domain.errors import (
    BackendThrottled,
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    KeyNotFound,
    TransitionRefused,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.failover import Health, Sight
from kmsjwks.domain.keys import Key, KeyState, Standby, is_published
from kmsjwks.domain.ports import BackendKey
from kmsjwks.services.acting import Actor
from kmsjwks.services.backendwatch import BackendWatch, WatchTiming
from tests.fakes import FakeBackend
from tests.support.lifecycle import DAY, OPERATOR, TRYING, Lab, SetClock, crash_at, spec

STANDBY = Standby("other", failover_after=60, failback_after=3600)
GONE = BackendUnavailable("The token is gone.")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A keyset with a standby, whose spares every verifier knows."""
    made = Lab(tmp_path)
    made.keysets.create(replace(spec(), standby=STANDBY), OPERATOR)
    made.tick()
    made.tick(DAY)
    return made


def spare_in(lab: Lab, backend: str) -> Key:
    found = [
        key
        for key in list(lab.keys())
        if key.state is KeyState.PRE_ACTIVATION
        and key.backend == backend
        and key.times.destroy_at is None
    ]
    assert len(found) == 1
    return found[0]


def health(lab: Lab, *, down: str | None = None, since: int = 0) -> Sight:
    return Sight(
        {
            name: Health(name != down, since if name == down else 0, "gone")
            for name in ("fake", "other")
        }
    )


def look_after(lab: Lab, sight: Sight) -> str | None:
    """What was done; None where nothing was."""
    looked = lab.failover.look_after(["demo"], sight)
    return looked.done[0] if looked.done else None


class TestSpares:
    def test_one_published_in_each_backend(self, lab: Lab) -> None:
        for backend in ("fake", "other"):
            assert is_published(spare_in(lab, backend), lab.now)
        assert lab.active.backend == "fake"
        assert spare_in(lab, "other").times.activate_at is None

    def test_a_standby_that_is_down_stands_in_nobodys_way(self, tmp_path: Path) -> None:
        lab = Lab(tmp_path)
        lab.other.break_with(GONE)
        lab.keysets.create(replace(spec(), standby=STANDBY), OPERATOR)
        report = lab.tick()
        assert str(GONE) in report.failed["demo"]
        # The primary's rotation goes on.
        assert spare_in(lab, "fake").times.activate_at is not None
        assert {key.kid for key in list(lab.keys())} == {lab.active.kid, spare_in(lab, "fake").kid}
        lab.other.break_with(None)
        assert lab.tick().failed == {}
        assert spare_in(lab, "other")

    def test_the_primary_rotates_in_the_primary(self, lab: Lab) -> None:
        next_one = spare_in(lab, "fake")
        lab.tick(7 * DAY)
        assert lab.active.kid == next_one.kid


class TestFailover:
    def test_by_itself(self, lab: Lab) -> None:
        old, new = lab.active, spare_in(lab, "other")
        lab.backend.break_with(GONE)
        since = lab.now
        lab.clock.seconds += 59
        assert look_after(lab, health(lab, down="fake", since=since)) is None
        lab.clock.seconds += 1
        said = look_after(lab, health(lab, down="fake", since=since))
        assert said is not None
        assert new.kid in said
        assert lab.active.kid == new.kid
        after = lab.key(old.kid)
        assert after.state is KeyState.DEACTIVATED
        end = after.times.withdraw_at
        assert end is not None
        # A replica that hears of it last signs for its grace, by a clock that is the skew off.
        grace = lab.timing.grace + lab.timing.skew
        assert end >= lab.now + grace + lab.store.keysets()[0].rules.max_lifetime + 300
        assert look_after(lab, health(lab, down="fake", since=since)) is None
        assert lab.events()[-1] == "failed-over"

    def test_the_primarys_scheduled_rotation_does_not_take_over_again(self, lab: Lab) -> None:
        assert spare_in(lab, "fake").times.activate_at is not None
        lab.failover.fail_over("demo", OPERATOR)
        lab.tick(30 * DAY)
        assert lab.active.backend == "other"

    def test_back_by_itself_with_notice(self, lab: Lab) -> None:
        lab.failover.fail_over("demo", OPERATOR)
        home = spare_in(lab, "fake")
        lab.tick()
        lab.tick(DAY)
        assert look_after(lab, health(lab)) is not None
        assert lab.key(home.kid).times.activate_at == lab.now + lab.timing.notice
        assert lab.active.backend == "other"
        lab.tick(lab.timing.notice)
        assert lab.active.kid == home.kid
        assert spare_in(lab, "other")

    def test_on_command_there_and_back(self, lab: Lab) -> None:
        tried = lab.failover.fail_over("demo", TRYING)
        assert lab.active.backend == "fake"
        done = lab.failover.fail_over("demo", OPERATOR, to="other")
        assert tried.says == done.says
        assert lab.active.backend == "other"
        with pytest.raises(InvalidRequest, match="signs in other already"):
            lab.failover.fail_over("demo", OPERATOR, to="other")
        lab.failover.fail_over("demo", OPERATOR, to="fake")
        assert lab.active.backend == "fake"

    def test_a_young_spare_only_when_that_is_said(self, lab: Lab) -> None:
        lab.failover.fail_over("demo", OPERATOR)
        lab.failover.fail_over("demo", OPERATOR)
        lab.tick()
        with pytest.raises(TransitionRefused, match="--now"):
            lab.failover.fail_over("demo", OPERATOR)
        assert lab.active.backend == "fake"
        proposal = lab.failover.fail_over("demo", OPERATOR, early=True)
        assert any("may refuse its tokens" in line for line in proposal.says)
        assert lab.active.backend == "other"

    def test_refusals(self, lab: Lab) -> None:
        with pytest.raises(InvalidRequest, match="keysets migrate"):
            lab.failover.fail_over("demo", OPERATOR, to="elsewhere")
        lab.keysets.create(replace(spec("plain")), OPERATOR)
        with pytest.raises(InvalidRequest, match="no standby"):
            lab.failover.fail_over("plain", OPERATOR)
        lab.service.hold(lab.active.kid, OPERATOR)
        with pytest.raises(TransitionRefused, match="hold"):
            lab.failover.fail_over("demo", OPERATOR)

    def test_a_tick_that_hangs_in_the_dead_device_is_not_waited_for(self, lab: Lab) -> None:
        down = health(lab, down="fake", since=lab.now - 60)
        with lab.store.planner_lock() as ours:
            assert ours
            assert look_after(lab, down) is not None
        assert lab.active.backend == "other"

    @pytest.mark.parametrize("actor", [OPERATOR, TRYING])
    def test_never_on_command_to_a_backend_that_is_down(self, lab: Lab, actor: Actor) -> None:
        lab.other.break_with(GONE)
        with pytest.raises(BackendUnavailable):
            lab.failover.fail_over("demo", actor, early=True)
        assert lab.active.backend == "fake"

    @pytest.mark.parametrize("point", ["failed-over.before", "failed-over.recorded"])
    def test_a_crash_leaves_one_active_key(self, lab: Lab, point: str) -> None:
        crash_at(lab, point, lambda: lab.failover.fail_over("demo", OPERATOR))
        assert lab.active.backend == ("other" if point.endswith("recorded") else "fake")
        lab.tick()
        assert spare_in(lab, "fake")
        assert spare_in(lab, "other")

    def test_a_compromised_key_is_replaced_in_its_backend(self, lab: Lab) -> None:
        spare = spare_in(lab, "fake")
        lab.service.compromise(lab.active.kid, OPERATOR)
        assert lab.active.kid == spare.kid


class TestMigration:
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        made = Lab(tmp_path)
        made.create()
        made.tick()
        return made

    def test_for_good(self, lab: Lab) -> None:
        old, stray = lab.active, spare_in(lab, "fake")
        tried = lab.migration.migrate("demo", "other", TRYING)
        assert lab.store.keysets()[0].backend == "fake"
        assert "published now" in tried.says[0]
        lab.migration.migrate("demo", "other", OPERATOR)
        assert lab.key(stray.kid).times.activate_at is None
        lab.tick()
        new = spare_in(lab, "other")
        begun = lab.migration.progress("demo")
        assert (begun.moving, begun.spare, begun.signs_in) == (True, new.kid, "fake")
        assert begun.takes_over_at == lab.now + DAY
        assert lab.key(stray.kid).times.destroy_at is None, "kept while it is the one known spare"
        lab.tick(DAY)
        assert lab.active.kid == new.kid
        assert is_published(lab.key(old.kid), lab.now)
        assert lab.key(stray.kid).times.destroy_at is not None
        for _ in range(30):
            lab.tick(DAY)
        assert lab.key(old.kid).state is KeyState.DESTROYED
        assert lab.key(stray.kid).state is KeyState.DESTROYED
        assert lab.migration.progress("demo").done

    def test_stopped(self, lab: Lab) -> None:
        active = lab.active
        lab.migration.migrate("demo", "other", OPERATOR)
        lab.tick()
        target = spare_in(lab, "other")
        lab.migration.stop("demo", OPERATOR)
        lab.tick(DAY)
        lab.tick(7 * DAY)
        assert lab.store.keysets()[0].backend == "fake"
        assert lab.key(target.kid).state in (KeyState.PRE_ACTIVATION, KeyState.DESTROYED)
        assert lab.active.backend == "fake"
        assert lab.active.kid != active.kid
        with pytest.raises(InvalidRequest, match="No migration"):
            lab.migration.stop("demo", OPERATOR)

    def test_turned_round_after_the_hand_over(self, lab: Lab) -> None:
        lab.migration.migrate("demo", "other", OPERATOR)
        lab.tick()
        lab.tick(DAY)
        assert lab.active.backend == "other"
        lab.migration.migrate("demo", "fake", OPERATOR)
        lab.tick()
        lab.tick(DAY)
        assert lab.active.backend == "fake"

    def test_to_the_standby(self, lab: Lab) -> None:
        lab.migration.stand_by("demo", STANDBY, OPERATOR)
        lab.tick()
        lab.tick(DAY)
        known = spare_in(lab, "other")
        says = lab.migration.migrate("demo", "other", OPERATOR).says
        assert any("none from now on" in line for line in says)
        lab.tick()
        assert lab.key(known.kid).times.activate_at == lab.now + lab.timing.notice
        lab.tick(lab.timing.notice)
        assert lab.active.kid == known.kid
        assert lab.store.keysets()[0].standby is None

    def test_nothing_is_handed_over_to_a_backend_that_is_down(self, lab: Lab) -> None:
        lab.migration.migrate("demo", "other", OPERATOR)
        lab.tick()
        target = spare_in(lab, "other")
        lab.other.break_with(GONE)
        since = lab.now
        lab.clock.seconds += 10
        assert look_after(lab, health(lab, down="other", since=since)) is not None
        assert lab.key(target.kid).times.activate_at is None
        assert str(GONE) in lab.tick(2 * DAY).failed["demo"]
        assert lab.active.backend == "fake"
        lab.other.break_with(None)
        lab.tick()
        lab.tick(lab.timing.notice)
        assert lab.active.kid == target.kid

    def test_refusals(self, lab: Lab) -> None:
        with pytest.raises(InvalidRequest, match="Configured: fake, other"):
            lab.migration.migrate("demo", "elsewhere", OPERATOR)
        with pytest.raises(InvalidRequest, match="is in fake"):
            lab.migration.migrate("demo", "fake", OPERATOR)
        lab.other.break_with(GONE)
        with pytest.raises(InvalidRequest, match="primary"):
            lab.migration.stand_by("demo", Standby("fake"), OPERATOR)
        lab.other.break_with(None)
        lab.migration.stand_by("demo", STANDBY, OPERATOR)
        lab.tick()
        lab.failover.fail_over("demo", OPERATOR, early=True)
        with pytest.raises(TransitionRefused, match="signs in its standby"):
            lab.migration.stand_by("demo", None, OPERATOR)

    def test_a_backend_without_the_algorithm(self, lab: Lab) -> None:
        only_rsa = FakeBackend(frozenset(alg for alg in lab.other.algorithms if alg.id == "RS256"))
        lab.migration._backends = {"fake": lab.backend, "rsa": only_rsa}
        with pytest.raises(UnsupportedAlgorithm, match="rsa does not offer ES256"):
            lab.migration.migrate("demo", "rsa", OPERATOR)
        with pytest.raises(UnsupportedAlgorithm, match="rsa does not offer ES256"):
            lab.migration.stand_by("demo", Standby("rsa"), OPERATOR)

    def test_ensure_changes_the_standby_and_not_the_backend(self, lab: Lab) -> None:
        lab.keysets.ensure(replace(spec(), standby=STANDBY), OPERATOR)
        assert lab.store.keysets()[0].standby == STANDBY
        with pytest.raises(Conflict, match="keysets migrate"):
            lab.keysets.ensure(replace(spec(), backend="other"), OPERATOR)


class TestBackendWithAWaitingWindow:
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Lab:
        """A keyset in a backend that waits seven days of its own; its first key is withdrawn."""
        made = Lab(tmp_path)
        made.keysets.create(
            replace(spec(destroy_after=None, destroy_window=DAY), backend="other"), OPERATOR
        )
        self.first = made.active
        made.tick()
        made.tick(DAY)
        made.service.rotate("demo", OPERATOR)
        made.tick(DAY)
        made.tick(DAY)
        assert made.key(self.first.kid).state is KeyState.DEACTIVATED
        made.service.destroy(self.first.kid, OPERATOR)
        return made

    def test_destroyed_when_the_backend_says_that_it_is(self, lab: Lab) -> None:
        lab.tick(DAY)
        pending = lab.key(self.first.kid)
        assert pending.state is KeyState.DEACTIVATED
        assert pending.times.private_destroyed_at == lab.now + 7 * DAY
        with pytest.raises(KeyNotFound):
            lab.other.get_key(self.first.ref)
        lab.tick(7 * DAY - 1)
        assert lab.key(self.first.kid).state is KeyState.DEACTIVATED
        lab.tick(1)
        gone = lab.key(self.first.kid)
        assert gone.state is KeyState.DESTROYED
        assert gone.times.private_destroyed_at == gone.times.destroyed_at == lab.now
        events = lab.events()
        assert events.index("destruction-scheduled") < events.index("destroyed")

    def test_cancelled_until_then(self, lab: Lab) -> None:
        lab.tick(DAY)
        lab.service.cancel_destroy(self.first.kid, TRYING)
        with pytest.raises(KeyNotFound):
            lab.other.get_key(self.first.ref)
        lab.service.cancel_destroy(self.first.kid, OPERATOR)
        kept = lab.key(self.first.kid)
        assert (kept.times.destroy_at, kept.times.private_destroyed_at) == (None, None)
        handle = BackendKey(kept.ref, kept.algorithm, kept.spki)
        assert lab.other.sign(handle, b"message")
        lab.tick(30 * DAY)
        assert lab.key(self.first.kid).state is KeyState.DEACTIVATED

    def test_too_late(self, lab: Lab) -> None:
        lab.tick(DAY)
        lab.clock.seconds += 8 * DAY  # nobody ticked
        with pytest.raises(KeyNotFound):
            lab.service.cancel_destroy(self.first.kid, OPERATOR)
        lab.tick()
        with pytest.raises(TransitionRefused, match="destroyed"):
            lab.service.cancel_destroy(self.first.kid, OPERATOR)

    def test_a_compromised_key_leaves_at_once_and_is_not_brought_back(self, lab: Lab) -> None:
        active = lab.active
        lab.service.compromise(active.kid, OPERATOR)
        lab.tick()
        gone = lab.key(active.kid)
        assert gone.state is KeyState.COMPROMISED
        assert gone.times.private_destroyed_at == lab.now + 7 * DAY
        with pytest.raises(TransitionRefused, match="compromised"):
            lab.service.cancel_destroy(active.kid, OPERATOR)
        lab.tick(7 * DAY)
        assert lab.key(active.kid).state is KeyState.DESTROYED


class TestWatch:
    def watch(self, backend: FakeBackend, **timing: float) -> BackendWatch:
        options = WatchTiming(**{"interval": 0.01, "patience": 5.0, **timing})
        return BackendWatch({"fake": backend}, self.clock, options)

    @pytest.fixture(autouse=True)
    def _clock(self) -> None:
        self.clock = SetClock()

    def wait_for(self, watch: BackendWatch, *, available: bool) -> Health:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            found = watch.health()["fake"]
            if found.available is available:
                return found
            time.sleep(0.005)
        raise AssertionError("the watch did not notice")

    def test_a_backend_that_throttles_is_well(self) -> None:
        asked = threading.Semaphore(0)

        class Throttling(FakeBackend):
            def check(self) -> None:
                asked.release()
                raise BackendThrottled("quota")

        watch = self.watch(Throttling())
        watch.start()
        assert all(asked.acquire(timeout=5) for _ in range(2))  # the first was dealt with by then
        assert watch.health()["fake"].available
        watch.close()

    def test_down_and_up_with_the_time_of_each(self) -> None:
        backend = FakeBackend()
        watch = self.watch(backend)
        watch.start()
        self.clock.seconds += 100
        backend.break_with(GONE)
        down = self.wait_for(watch, available=False)
        assert (down.since, down.reason) == (self.clock.seconds, str(GONE))
        self.clock.seconds += 100
        assert watch.health()["fake"] == down
        backend.break_with(None)
        assert self.wait_for(watch, available=True).since == self.clock.seconds
        watch.close()

    def test_a_backend_that_may_be_tried_again_is_not_up_before_it_answers(self) -> None:
        """A breaker that half-opens says available, and closes again with the next call."""

        class HalfOpen(FakeBackend):
            def check(self) -> None:
                raise GONE

        watch = self.watch(HalfOpen())
        watch.start()
        down = self.wait_for(watch, available=False)
        self.clock.seconds += 60
        for _ in range(20):
            assert watch.health()["fake"] == down
            time.sleep(0.005)
        watch.close()

    def test_one_that_never_answers_is_down(self) -> None:
        released = threading.Event()

        class Hanging(FakeBackend):
            def check(self) -> None:
                released.wait(10)

        watch = self.watch(Hanging(), patience=0.05)
        watch.start()
        assert "does not answer" in self.wait_for(watch, available=False).reason
        released.set()
        self.wait_for(watch, available=True)
        watch.close()

    def test_before_it_starts_it_says_what_the_backend_noticed(self) -> None:
        backend = FakeBackend()
        watch = self.watch(backend)
        assert watch.health()["fake"].available
        backend.break_with(GONE)
        assert not watch.health()["fake"].available

    def test_before_the_first_answer_it_says_so(self) -> None:
        backend = FakeBackend()
        watch = self.watch(backend)
        first = watch.health()["fake"]
        assert (first.available, first.reason) == (True, "It has not answered yet.")
        self.clock.seconds += 100
        watch.start()
        deadline = time.monotonic() + 5
        while watch.health()["fake"].reason and time.monotonic() < deadline:
            time.sleep(0.005)
        assert watch.health()["fake"] == Health(True, self.clock.seconds)
        watch.close()
