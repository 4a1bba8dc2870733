"""The planner: tables of cases, and an installation simulated over random histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kmsjwks.domain import interventions, rotation
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.keys import (
    TRANSITIONS,
    Key,
    Keyset,
    KeyState,
    KeyTimes,
    check_correction,
    check_transition,
    is_published,
)
from kmsjwks.domain.rotation import (
    BeginDestruction,
    CreateSpare,
    Destroy,
    HandOver,
    RetireSpare,
    Schedule,
    Step,
    Tighten,
    plan,
)
from kmsjwks.domain.timing import (
    STALE_WHILE_REVALIDATE,
    InstallationTiming,
    RotationSchedule,
    total,
    verifier_terms,
    withdrawal_terms,
)
from kmsjwks.domain.tokens import TokenRules

T0 = 1_900_000_000
TIMING = InstallationTiming()
SCHEDULE = RotationSchedule(period=7 * 86400, propagation=86400)
KEYSET = Keyset(
    name="demo",
    algorithm=find_algorithm("ES256"),
    backend="softhsm",
    rules=TokenRules(issuer="https://issuer.example"),
    created_at=T0,
    schedule=SCHEDULE,
)


def _key(kid: str, state: KeyState, *, hold: bool = False, **times: int | None) -> Key:
    facts = {"created_at": T0, "published_at": T0, **times}
    return Key(
        kid=kid,
        keyset="demo",
        algorithm=KEYSET.algorithm,
        backend="softhsm",
        ref=kid,
        spki=b"",
        state=state,
        times=KeyTimes(**facts),  # type: ignore[arg-type]
        hold=hold,
    )


ACTIVE = _key("old", KeyState.ACTIVE, activate_at=T0)
SPARE = _key("new", KeyState.PRE_ACTIVATION)
DUE = T0 + 7 * 86400


def _scheduled(at: int = DUE, kid: str = "new", **changes: object) -> Key:
    key = replace(SPARE, kid=kid, times=replace(SPARE.times, activate_at=at))
    return replace(key, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "now", "signs"),
    [
        ([], T0, None),
        ([SPARE], T0, None),
        ([ACTIVE], T0, "old"),
        ([ACTIVE, SPARE], DUE * 2, "old"),
        ([ACTIVE, _scheduled()], DUE - 1, "old"),
        ([ACTIVE, _scheduled()], DUE, "new"),
        ([_scheduled(), ACTIVE], DUE + 10**6, "new"),
        ([ACTIVE, _scheduled(hold=True)], DUE, "old"),
        ([replace(ACTIVE, hold=True), _scheduled()], DUE, "old"),
        ([_scheduled()], DUE, "new"),
        ([_scheduled()], DUE - 1, None),
        # A slower clock than the one that recorded the activation: nobody else may sign.
        ([ACTIVE], T0 - 300, "old"),
        # Left over from a hold: its date is before the active key's own.
        ([ACTIVE, _scheduled(T0 - 1)], DUE, "old"),
        ([ACTIVE, _scheduled(), _scheduled(DUE + 5, "newer")], DUE + 4, "new"),
        ([ACTIVE, _scheduled(), _scheduled(DUE + 5, "newer")], DUE + 5, "newer"),
        ([ACTIVE, _scheduled(DUE + 5), _scheduled(DUE, "newer")], DUE + 4, "newer"),
    ],
)
def test_which_key_signs(keys: list[Key], now: int, signs: str | None) -> None:
    found = rotation.signing_key(keys, now)
    assert (found.kid if found else None) == signs
    begun = [key.kid for start, key in rotation.signing_timeline(keys) if start <= now]
    assert (begun[-1] if begun else None) == signs


def test_a_spare_that_is_to_be_destroyed_takes_over_no_more() -> None:
    doomed = _scheduled()
    doomed = replace(doomed, times=replace(doomed.times, destroy_at=DUE + 1))
    assert rotation.spares([doomed]) == []
    assert rotation.signing_key([ACTIVE, doomed], DUE) is ACTIVE
    assert plan(KEYSET, [ACTIVE, doomed], TIMING, DUE, gated=False) == [CreateSpare(KEYSET.backend)]


def test_of_two_that_are_due_the_earlier_takes_over_first() -> None:
    late, early = _scheduled(DUE + 5, "a"), _scheduled(DUE, "b")
    due = rotation.due_spare([ACTIVE, late, early], DUE + 9)
    assert due is early
    assert rotation.due_spare([ACTIVE, late, early], DUE - 1) is None


def test_the_replacement_is_the_key_that_signs_already_else_the_oldest() -> None:
    older = _key("older", KeyState.PRE_ACTIVATION, created_at=T0 - 5)
    assert rotation.replacement([ACTIVE, SPARE, older], DUE, KEYSET.backend) is older
    due = _scheduled()
    assert rotation.replacement([ACTIVE, due, older], DUE, KEYSET.backend) is due
    assert rotation.replacement([ACTIVE], DUE, KEYSET.backend) is None


OVERLAP = total(withdrawal_terms(SCHEDULE, TIMING, KEYSET.rules.max_lifetime))
VERIFIERS = total(verifier_terms(SCHEDULE, TIMING))


def _deactivated(**times: int | None) -> Key:
    facts: dict[str, int | None] = {"deactivated_at": T0 + 10, "withdraw_at": T0 + 10 + OVERLAP}
    key = _key("gone", KeyState.DEACTIVATED, activate_at=T0)
    return replace(key, times=replace(key.times, **{**facts, **times}))  # type: ignore[arg-type]


def _policy(after: int | None) -> Keyset:
    return replace(KEYSET, schedule=replace(SCHEDULE, destroy_after=after))


WITHDRAWN = T0 + 10 + OVERLAP
REST = [ACTIVE, _scheduled()]
ON_DEMAND = replace(KEYSET, schedule=replace(SCHEDULE, period=None))


@pytest.mark.parametrize(
    ("keyset", "keys", "now", "steps"),
    [
        (KEYSET, [ACTIVE], T0, [CreateSpare(KEYSET.backend)]),
        (KEYSET, [ACTIVE, SPARE], T0, [Schedule("new", DUE, "rotation period")]),
        (
            KEYSET,
            [ACTIVE, SPARE],
            DUE,
            [Schedule("new", DUE + TIMING.notice, "rotation period")],
        ),
        (KEYSET, [SPARE], T0, [Schedule("new", T0 + 86400, "nothing signs")]),
        (KEYSET, [replace(ACTIVE, hold=True), SPARE], T0, []),
        (KEYSET, [ACTIVE, replace(SPARE, hold=True)], T0, [CreateSpare(KEYSET.backend)]),
        (ON_DEMAND, [ACTIVE, SPARE], DUE, []),
        (KEYSET, REST, DUE - 1, []),
        (
            KEYSET,
            REST,
            DUE,
            [
                HandOver("new", "old", DUE, DUE + OVERLAP, "its activation time came"),
                CreateSpare(KEYSET.backend),
            ],
        ),
        (KEYSET, [*REST, _scheduled(DUE + 9, "newer")], T0, []),
        (KEYSET, [*REST, replace(SPARE, kid="second")], T0, []),
        (KEYSET, [*REST, replace(SPARE, kid="before")], T0, []),
        (KEYSET, [*REST, _key("bad", KeyState.COMPROMISED)], T0, [Destroy("bad", "compromised")]),
        (KEYSET, [*REST, _key("bad", KeyState.COMPROMISED, hold=True)], T0, []),
        (KEYSET, [*REST, _key("bad", KeyState.COMPROMISED, private_destroyed_at=T0 + 1)], T0, []),
        (
            KEYSET,
            [*REST, _key("bad", KeyState.COMPROMISED, private_destroyed_at=T0)],
            T0,
            [Destroy("bad", "the backend's waiting window ended")],
        ),
        (KEYSET, [*REST, _key("bad", KeyState.COMPROMISED, destroy_at=T0 + 1)], T0, []),
        (
            KEYSET,
            [*REST, _key("bad", KeyState.COMPROMISED, destroy_at=T0)],
            T0,
            [Destroy("bad", "compromised")],
        ),
        # Its compromise was undone, and its private half is gone all the same.
        (KEYSET, [*REST, _deactivated(private_destroyed_at=T0)], WITHDRAWN - 1, []),
        (
            KEYSET,
            [*REST, _deactivated(private_destroyed_at=T0)],
            WITHDRAWN,
            [Destroy("gone", "the backend's waiting window ended")],
        ),
        (KEYSET, [*REST, _deactivated()], T0 + 20, []),
        (
            KEYSET,
            [*REST, _deactivated(max_exp=T0 + 500)],
            T0 + 20,
            [Tighten("gone", T0 + 500 + VERIFIERS, "the last token it signed is known")],
        ),
        # It signed nothing: verifiers that know a token of it know one from before.
        (
            KEYSET,
            [*REST, _deactivated(max_exp=0)],
            T0 + 20,
            [Tighten("gone", T0 + 10 + VERIFIERS, "the last token it signed is known")],
        ),
        (
            KEYSET,
            [*REST, _deactivated(max_exp=0)],
            WITHDRAWN - 1,
            [Tighten("gone", WITHDRAWN - 1, "the last token it signed is known")],
        ),
        (KEYSET, [*REST, _deactivated(max_exp=T0 + 10**6)], T0 + 20, []),
        (KEYSET, [*REST, _deactivated(max_exp=0)], WITHDRAWN, []),
        (KEYSET, [*REST, _deactivated()], WITHDRAWN, []),
        (_policy(60), [*REST, _deactivated()], WITHDRAWN - 1, []),
        (
            _policy(60),
            [*REST, _deactivated()],
            WITHDRAWN,
            [BeginDestruction("gone", WITHDRAWN + 60 + 7 * 86400, "the keyset's destroy policy")],
        ),
        (
            _policy(60),
            [*REST, _deactivated()],
            WITHDRAWN + 100,
            [BeginDestruction("gone", WITHDRAWN + 100 + 7 * 86400, "the keyset's destroy policy")],
        ),
        (_policy(0), [*REST, replace(_deactivated(), hold=True)], WITHDRAWN, []),
        (KEYSET, [*REST, _deactivated(destroy_at=WITHDRAWN + 5)], WITHDRAWN + 4, []),
        (
            KEYSET,
            [*REST, _deactivated(destroy_at=WITHDRAWN + 5)],
            WITHDRAWN + 5,
            [Destroy("gone", "the waiting window ended")],
        ),
        (
            KEYSET,
            [_scheduled(), _key("a", KeyState.ACTIVE, activate_at=T0, destroy_at=T0)],
            T0 + 9,
            [],
        ),
        (KEYSET, [*REST, _key("x", KeyState.DESTROYED, destroy_at=T0)], T0 + 9, []),
    ],
)
def test_what_is_due(keyset: Keyset, keys: list[Key], now: int, steps: list[Step]) -> None:
    assert plan(keyset, keys, TIMING, now, gated=False) == steps


def test_a_gated_spare_is_scheduled_once_it_was_seen() -> None:
    assert plan(KEYSET, [ACTIVE, SPARE], TIMING, DUE, gated=True) == []
    seen = replace(SPARE, times=replace(SPARE.times, seen_at=T0 + 5))
    (step,) = plan(KEYSET, [ACTIVE, seen], TIMING, T0 + 9, gated=True)
    assert step == Schedule("new", DUE, "rotation period")


def test_longer_lifetimes_of_the_past_keep_a_key_published() -> None:
    bound = DUE + 10**6
    old = replace(ACTIVE, times=replace(ACTIVE.times, exp_bound=bound))
    assert rotation.withdrawal(KEYSET, old, TIMING, DUE) == bound + VERIFIERS
    old = replace(ACTIVE, times=replace(ACTIVE.times, exp_bound=DUE))
    assert rotation.withdrawal(KEYSET, old, TIMING, DUE) == DUE + OVERLAP


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_late_hand_over_is_the_same_hand_over(early: int, late: int) -> None:
    plans = [plan(KEYSET, REST, TIMING, DUE + now, gated=False)[0] for now in (early, late)]
    assert plans[0] == plans[1]


@given(st.integers(0, 7 * 86400 - TIMING.notice), st.integers(0, 7 * 86400 - TIMING.notice))
def test_whoever_schedules_in_time_schedules_the_same(early: int, late: int) -> None:
    plans = [plan(KEYSET, [ACTIVE, SPARE], TIMING, T0 + now, gated=False) for now in (early, late)]
    assert plans[0] == plans[1] == [Schedule("new", DUE, "rotation period")]


def test_rotation_as_soon_as_possible() -> None:
    def at(spare: Key, now: int) -> int:
        return interventions.rotation_date(KEYSET, spare, TIMING, now)

    assert at(SPARE, T0) == T0 + 86400
    assert at(SPARE, T0 + 10**6) == T0 + 10**6 + TIMING.notice
    assert at(_scheduled(), T0) == T0 + 86400
    assert at(_scheduled(), DUE - 1) == DUE
    assert at(_scheduled(), DUE + 50) == DUE


def test_release_strikes_out_a_date_that_the_hold_kept_from_coming_true() -> None:
    held, now = replace(ACTIVE, hold=True), DUE + 10**5
    changed = interventions.released(KEYSET, [held, _scheduled()], "old", TIMING, now)
    assert [after.kid for _, after in changed] == ["old", "new"]
    keys = [after for _, after in changed]
    assert not keys[0].hold
    assert plan(KEYSET, keys, TIMING, now, gated=False) == [
        Schedule("new", now + TIMING.notice, "rotation period")
    ]
    # In time still, so nothing moves.
    in_time = interventions.released(KEYSET, [held, _scheduled()], "old", TIMING, T0)
    assert in_time == [(held, ACTIVE)]


def test_releasing_another_key_leaves_a_due_spare_alone() -> None:
    held = replace(_deactivated(), hold=True)
    changed = interventions.released(KEYSET, [ACTIVE, _scheduled(), held], "gone", TIMING, DUE)
    assert changed == [(held, _deactivated())]


def test_a_new_schedule_decides_again_what_replicas_can_still_be_told() -> None:
    new = replace(KEYSET, schedule=replace(SCHEDULE, period=8 * 86400))

    def date(spare: Key, now: int) -> int | None:
        return interventions.updated(spare, KEYSET, new, TIMING, now).times.activate_at

    assert date(_scheduled(), T0) is None
    assert date(_scheduled(), DUE - TIMING.notice) == DUE
    assert date(_scheduled(hold=True), T0) == DUE
    shorter = replace(KEYSET, rules=replace(KEYSET.rules, max_lifetime=600))
    for key in (ACTIVE, SPARE, replace(ACTIVE, hold=True)):
        after = interventions.updated(key, KEYSET, shorter, TIMING, T0)
        assert after.times.exp_bound == T0 + 900 + 300 + 3600
        again = interventions.updated(after, shorter, KEYSET, TIMING, T0 + 9)
        assert again == after


def test_a_spare_that_may_have_signed_is_destroyed_after_its_tokens() -> None:
    idle = interventions.destruction_begun(KEYSET, SPARE, TIMING, T0)
    assert idle.times.destroy_at == T0 + SCHEDULE.destroy_window
    hasty = replace(KEYSET, schedule=replace(SCHEDULE, destroy_window=0))
    due = interventions.destruction_begun(hasty, _scheduled(), TIMING, DUE)
    exp = interventions.latest_exp(TIMING, 3600, DUE)
    assert (due.times.activate_at, due.times.exp_bound) == (None, exp)
    assert due.times.destroy_at == exp + VERIFIERS


# --- an installation over random histories -------------------------------------------------------

SMALL = InstallationTiming(max_age=20, refresh_interval=2, grace=30, skew=10, development=True)
WINDOW = SMALL.max_age + STALE_WHILE_REVALIDATE
SHORT = SMALL.propagation_floor
LIFETIMES = (1, 5, 40, 200)
LEEWAY = 7


@dataclass
class Replica:
    """``ahead``: how far its clock is from the slowest one, in seconds."""

    ahead: int
    keyset: Keyset
    keys: tuple[Key, ...]
    taken: int = 0
    cut_off_until: int = 0

    def clock(self, t: int) -> int:
        return T0 + t + self.ahead

    def connected(self, t: int) -> bool:
        return t >= self.cut_off_until

    def ready(self, t: int) -> bool:
        return t - self.taken <= SMALL.grace


def _dates(key: Key) -> tuple[object, ...]:
    """What a hold keeps as it is; what a key may have signed is not part of it."""
    return (key.state, replace(key.times, exp_bound=None, max_exp=None))


@dataclass
class Store:
    """What all replicas share. Refuses what the database refuses."""

    keyset: Keyset
    keys: dict[str, Key] = field(default_factory=dict)

    def all(self) -> tuple[Key, ...]:
        return tuple(self.keys.values())

    def write(self, *changes: tuple[Key, Key]) -> None:
        for before, after in changes:
            assert self.keys[before.kid] == before
            if (before.state, after.state) == (KeyState.COMPROMISED, KeyState.DEACTIVATED):
                check_correction(before)
            elif after.state is not before.state:
                check_transition(before, after.state)
            compromised = after.state is KeyState.COMPROMISED
            if before.hold and after.hold and not compromised:
                assert _dates(before) == _dates(after), f"{before.kid} is held and moved"
            self.keys[before.kid] = after
        active = [key for key in self.keys.values() if key.state is KeyState.ACTIVE]
        assert len(active) == 1, active


class Installation(RuleBasedStateMachine):
    """Seconds pass one by one; replicas refresh, sign, fail; verifiers hold the worst JWKS that
    they could have fetched, and the slowest clock."""

    @initialize(
        ahead=st.lists(st.integers(0, SMALL.skew), min_size=2, max_size=3),
        slack=st.sampled_from([0, 1, 60]),
        gated=st.booleans(),
        lifetime=st.sampled_from(LIFETIMES),
        device_window=st.sampled_from([0, 60]),
    )
    def build(
        self, ahead: list[int], slack: int, gated: bool, lifetime: int, device_window: int
    ) -> None:
        schedule = RotationSchedule(
            period=SHORT + SMALL.notice + slack,
            propagation=SHORT,
            leeway=LEEWAY,
            destroy_after=0,
            destroy_window=0,
        )
        rules = replace(KEYSET.rules, max_lifetime=lifetime, default_lifetime=1)
        keyset = replace(KEYSET, schedule=schedule, rules=rules)
        self.t, self.made, self.gated = 0, 0, gated
        self.ttl, self.busy, self.device_window = 10**6, True, device_window
        self.store = Store(keyset)
        first = replace(self.make(T0), state=KeyState.ACTIVE)
        first = replace(first, times=replace(first.times, activate_at=T0 + max(ahead)))
        self.store.keys = {key.kid: key for key in (first, self.make(T0))}
        self.replicas = [Replica(one, keyset, self.store.all()) for one in ahead]
        self.missing: dict[str, int] = {kid: -(10**6) for kid in self.store.keys}
        self.accepted_until: dict[str, int] = {}
        self.max_exp: dict[str, int] = {}
        self.unknown_until: dict[str, int] = {}  # took over from a compromised key before its time
        self.rotations = 0

    def make(self, now: int, backend: str = KEYSET.backend) -> Key:
        self.made += 1
        key = _key(f"k{self.made}", KeyState.PRE_ACTIVATION, created_at=now, published_at=now)
        return replace(key, backend=backend)

    # What the world does.

    @rule(seconds=st.sampled_from([1, 3, 20, 60, SHORT + SMALL.notice]))
    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.second()

    @rule(seconds=st.sampled_from([60, SHORT, 2 * SHORT]), nth=st.integers(0, 2))
    def wait_ticking(self, seconds: int, nth: int) -> None:
        for _ in range(seconds // 5):
            self.wait(5)
            self.tick(nth, True)

    def second(self) -> None:
        self.t += 1
        for nth, replica in enumerate(self.replicas):
            if replica.connected(self.t) and (self.t + nth) % SMALL.refresh_interval == 0:
                replica.keyset, replica.keys = self.store.keyset, self.store.all()
                replica.taken = self.t
            if replica.ready(self.t):
                self.serve(replica)
        for replica in self.replicas:
            if replica.ready(self.t) and self.busy:
                self.sign(replica)
        for kid, end in self.accepted_until.items():
            if self.t < end:
                self.verify(kid)

    def serve(self, replica: Replica) -> None:
        now = replica.clock(self.t)
        published = {key.kid for key in replica.keys if is_published(key, now)}
        for kid in set(self.store.keys) - published:
            self.missing[kid] = self.t

    def sign(self, replica: Replica) -> None:
        now = replica.clock(self.t)
        key = rotation.signing_key(replica.keys, now)
        assert key is not None, "nothing signs"
        exp = now + min(self.ttl, replica.keyset.rules.max_lifetime)
        known = self.store.keys[key.kid].times.max_exp
        assert known is None or exp <= known, f"{key.kid} signs after its last token"
        self.max_exp[key.kid] = max(exp, self.max_exp.get(key.kid, 0))
        end = exp - T0 + self.store.keyset.schedule.leeway
        self.accepted_until[key.kid] = max(end, self.accepted_until.get(key.kid, 0))

    def verify(self, kid: str) -> None:
        """Every JWKS that a verifier may hold has the key."""
        if self.store.keys[kid].times.compromised_at is not None:
            return
        if self.t <= self.unknown_until.get(kid, -1):
            return
        assert self.missing[kid] < self.t - WINDOW, (
            f"at {self.t} a verifier refuses {kid}, missing at {self.missing[kid]}"
        )

    @rule(nth=st.integers(0, 2), seconds=st.sampled_from([3, SMALL.grace, 2 * SMALL.grace, 400]))
    def cut_off(self, nth: int, seconds: int) -> None:
        self.replica(nth).cut_off_until = self.t + seconds

    @rule(ttl=st.sampled_from([1, 30, 10**6]), busy=st.booleans())
    def traffic(self, ttl: int, busy: bool) -> None:
        self.ttl, self.busy = ttl, busy

    def replica(self, nth: int) -> Replica:
        return self.replicas[nth % len(self.replicas)]

    # What replicas do to the store.

    @rule(nth=st.integers(0, 2), seen=st.booleans())
    def tick(self, nth: int, seen: bool) -> None:
        replica = self.replica(nth)
        if not replica.connected(self.t):
            return
        now = replica.clock(self.t)
        self.settle(now)
        self.look(now, seen)
        for _ in range(8):
            steps = self.due(now)
            if not steps:
                break
            for step in steps:
                self.do(step, now)
        assert self.due(now) == []
        assert rotation.spares(self.store.all())

    def due(self, now: int) -> list[Step]:
        return plan(self.store.keyset, self.store.all(), SMALL, now, gated=self.gated)

    def settle(self, now: int) -> None:
        for key in self.store.all():
            over = (key.times.deactivated_at or now) + SMALL.grace + SMALL.notice
            settled = key.times.max_exp is not None or now < over
            if key.state is KeyState.DEACTIVATED and not settled:
                self.set(key, max_exp=self.max_exp.get(key.kid, 0))

    def look(self, now: int, seen: bool) -> None:
        for key in rotation.spares(self.store.all()):
            if seen and key.times.seen_at is None:
                self.set(key, seen_at=now)

    def set(self, key: Key, **times: int) -> None:
        self.store.write((key, replace(key, times=replace(key.times, **times))))

    def do(self, step: Step, now: int) -> None:
        keys = self.store.keys
        if isinstance(step, CreateSpare):
            key = self.make(now, step.backend)
            keys[key.kid], self.missing[key.kid] = key, self.t
        elif isinstance(step, Schedule):
            assert step.activate_at >= now + SMALL.notice
            self.set(keys[step.kid], activate_at=step.activate_at)
        elif isinstance(step, HandOver):
            self.hand_over(step)
        elif isinstance(step, Tighten):
            before = keys[step.kid].times.withdraw_at
            assert before is not None and now <= step.withdraw_at < before
            self.set(keys[step.kid], withdraw_at=step.withdraw_at)
        elif isinstance(step, BeginDestruction):
            self.set(keys[step.kid], destroy_at=step.destroy_at)
        elif isinstance(step, RetireSpare):
            stray = keys[step.kid]
            after = interventions.destruction_begun(self.store.keyset, stray, SMALL, now)
            self.store.write((stray, after))
        else:
            gone = keys[step.kid]
            if self.device_window and gone.times.private_destroyed_at is None:
                self.set(gone, private_destroyed_at=now + self.device_window)
                return
            times = replace(gone.times, private_destroyed_at=now, destroyed_at=now)
            self.store.write((gone, replace(gone, state=KeyState.DESTROYED, times=times)))

    def hand_over(self, step: HandOver) -> None:
        new = self.store.keys[step.kid]
        assert step.old_kid is not None and new.times.activate_at == step.at
        old = self.store.keys[step.old_kid]
        times = replace(old.times, deactivated_at=step.at, withdraw_at=step.withdraw_at)
        self.store.write(
            (old, replace(old, state=KeyState.DEACTIVATED, times=times)),
            (new, replace(new, state=KeyState.ACTIVE)),
        )
        self.rotations += 1

    # What operators do, at a replica that reaches the store.

    def operate(self, nth: int, act: Callable[[int], None]) -> None:
        replica = self.replica(nth)
        if replica.connected(self.t):
            act(replica.clock(self.t))

    @rule(nth=st.integers(0, 2))
    def rotate(self, nth: int) -> None:
        def act(now: int) -> None:
            spare = rotation.next_spare(self.store.keyset, self.store.all())
            active = rotation.active_key(self.store.all())
            assert active is not None
            if spare is not None and not active.hold:
                at = interventions.rotation_date(self.store.keyset, spare, SMALL, now)
                self.set(spare, activate_at=at)

        self.operate(nth, act)

    @rule(nth=st.integers(0, 2), which=st.integers(0, 3), wait=st.sampled_from([0, 50, 500]))
    def compromise(self, nth: int, which: int, wait: int) -> None:
        def act(now: int) -> None:
            living = [key for key in self.store.all() if key.state is not KeyState.DESTROYED]
            living = [key for key in living if key.state is not KeyState.COMPROMISED]
            key = living[which % len(living)]
            keyset = self.store.keyset
            changes = [(key, interventions.compromised(keyset, key, SMALL, wait, now))]
            if key.state is KeyState.ACTIVE:
                spare = rotation.replacement(self.store.all(), now, key.backend)
                if spare is None:
                    return  # the service makes one first
                changes.append((spare, self.take_over(spare, now)))
            self.store.write(*changes)

        self.operate(nth, act)

    @precondition(lambda self: any(one.state is KeyState.COMPROMISED for one in self.store.all()))
    @rule(nth=st.integers(0, 2), which=st.integers(0, 3), retrieved=st.booleans())
    def undo_compromise(self, nth: int, which: int, retrieved: bool) -> None:
        """``retrieved``: the backend gave the private half back where it was to be destroyed."""

        def act(now: int) -> None:
            wrong = [
                key
                for key in self.store.all()
                if key.state is KeyState.COMPROMISED and not key.hold
            ]
            if not wrong:
                return
            key = wrong[which % len(wrong)]
            after = interventions.compromise_undone(self.store.keyset, key, SMALL, now)
            if retrieved:
                after = replace(after, times=replace(after.times, private_destroyed_at=None))
            self.store.write((key, after))
            self.unknown_until[key.kid] = self.t + SHORT

        self.operate(nth, act)

    def take_over(self, spare: Key, now: int) -> Key:
        """At once: verifiers may be without it until it has been published for long enough."""
        assert spare.times.published_at is not None
        self.unknown_until[spare.kid] = spare.times.published_at - T0 + SHORT
        at = min(now, spare.times.activate_at or now)
        times = replace(spare.times, activate_at=at)
        return replace(spare, state=KeyState.ACTIVE, times=times)

    @rule(which=st.integers(0, 3))
    def hold(self, which: int) -> None:
        living = [key for key in self.store.all() if key.state is not KeyState.DESTROYED]
        key = living[which % len(living)]
        self.store.write((key, replace(key, hold=True)))

    @precondition(lambda self: any(key.hold for key in self.store.all()))
    @rule(nth=st.integers(0, 2), which=st.integers(0, 3))
    def release(self, nth: int, which: int) -> None:
        def act(now: int) -> None:
            held = [key.kid for key in self.store.all() if key.hold]
            kid = held[which % len(held)]
            keys = self.store.all()
            self.store.write(*interventions.released(self.store.keyset, keys, kid, SMALL, now))

        self.operate(nth, act)

    @rule(nth=st.integers(0, 2), lifetime=st.sampled_from(LIFETIMES))
    def change_lifetime(self, nth: int, lifetime: int) -> None:
        rules = replace(self.store.keyset.rules, max_lifetime=lifetime)
        self.update(nth, replace(self.store.keyset, rules=rules))

    @rule(nth=st.integers(0, 2), more=st.sampled_from([0, 1, 100]), on_demand=st.booleans())
    def change_schedule(self, nth: int, more: int, on_demand: bool) -> None:
        period = None if on_demand else SHORT + SMALL.notice + 2 * more
        schedule = replace(self.store.keyset.schedule, period=period, propagation=SHORT + more)
        self.update(nth, replace(self.store.keyset, schedule=schedule))

    def update(self, nth: int, new: Keyset) -> None:
        def act(now: int) -> None:
            old = self.store.keyset
            changes = [
                (key, interventions.updated(key, old, new, SMALL, now)) for key in self.store.all()
            ]
            self.store.write(*changes)
            self.store.keyset = new

        self.operate(nth, act)

    @rule(nth=st.integers(0, 2), which=st.integers(0, 3))
    def destroy(self, nth: int, which: int) -> None:
        def act(now: int) -> None:
            spent = [
                key
                for key in self.store.all()
                if not key.hold
                and KeyState.DESTROYED in TRANSITIONS[key.state]
                and (key.times.withdraw_at or 0) <= now
            ]
            if spent:
                key = spent[which % len(spent)]
                after = interventions.destruction_begun(self.store.keyset, key, SMALL, now)
                self.store.write((key, after))

        self.operate(nth, act)


TestInstallation = Installation.TestCase
TestInstallation.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def _installation(ahead: list[int], lifetime: int = 200, device_window: int = 0) -> Installation:
    world = Installation()
    world.build(ahead=ahead, slack=0, gated=False, lifetime=lifetime, device_window=device_window)
    world.wait_ticking(seconds=SHORT + 5, nth=1)
    return world


def test_a_replica_cut_off_before_a_rotation_signs_on_and_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.cut_off(nth=0, seconds=SMALL.grace + 1)
    world.rotate(nth=1)
    world.wait_ticking(seconds=400, nth=1)
    assert world.rotations >= 1


def test_a_replica_cut_off_before_lifetimes_are_shortened_loses_no_token() -> None:
    world = _installation([SMALL.skew, 0])
    world.rotate(nth=1)
    world.wait(seconds=SMALL.notice - 1)
    world.cut_off(nth=0, seconds=SMALL.grace + 1)
    world.change_lifetime(nth=1, lifetime=1)
    world.wait_ticking(seconds=400, nth=1)
    assert world.rotations >= 1


@pytest.mark.parametrize("held", ["active", "spare"])
def test_tokens_signed_beyond_a_date_that_a_hold_stopped_are_not_lost(held: str) -> None:
    world = _installation([0, 0], lifetime=40)
    world.rotate(nth=1)
    keys = world.store.all()
    found = rotation.active_key(keys) if held == "active" else rotation.spares(keys)[0]
    assert found is not None
    world.hold(which=keys.index(found))
    world.wait(seconds=400)
    world.release(nth=1, which=0)
    world.wait_ticking(seconds=400, nth=1)
    assert world.rotations >= 1


def test_a_key_compromised_by_a_fast_clock_is_replaced_on_the_slow_one_too() -> None:
    world = _installation([SMALL.skew, 0])
    keys = world.store.all()
    active = rotation.active_key(keys)
    assert active is not None
    world.compromise(nth=0, which=keys.index(active), wait=0)
    world.wait_ticking(seconds=400, nth=1)


@pytest.mark.parametrize("retrieved", [False, True])
@pytest.mark.parametrize("wait", [0, 60])
def test_tokens_of_a_key_whose_compromise_is_undone_verify_again(
    wait: int, retrieved: bool
) -> None:
    """Also those that a replica signed that did not hear of the compromise."""
    world = _installation([SMALL.skew, 0], device_window=60)
    world.cut_off(nth=0, seconds=SMALL.grace + 1)
    keys = world.store.all()
    active = rotation.active_key(keys)
    assert active is not None
    world.compromise(nth=1, which=keys.index(active), wait=wait)
    world.tick(nth=1, seen=True)
    world.wait(seconds=5)
    world.change_lifetime(nth=1, lifetime=1)
    world.undo_compromise(nth=1, which=0, retrieved=retrieved)
    undone = world.store.keys[active.kid]
    assert undone.state is KeyState.DEACTIVATED
    assert is_published(undone, T0 + world.t)
    assert world.accepted_until[active.kid] > world.t + SHORT, "no token is left to verify"
    world.wait_ticking(seconds=400, nth=1)
    assert not is_published(world.store.keys[active.kid], T0 + world.t)
    assert rotation.active_key(world.store.all()) is not undone


def test_a_compromise_that_is_undone_leaves_the_dates_of_a_deactivated_key() -> None:
    key = _deactivated(destroy_at=WITHDRAWN + 50)
    gone = interventions.compromised(KEYSET, key, TIMING, 10**6, T0 + 20)
    assert gone.times.destroy_at == WITHDRAWN + 50  # no later than was decided
    undone = interventions.compromise_undone(KEYSET, gone, TIMING, T0 + 30)
    assert undone == replace(key, times=replace(key.times, destroy_at=None))


def test_a_spare_whose_compromise_is_undone_never_takes_over() -> None:
    gone = interventions.compromised(KEYSET, _scheduled(), TIMING, 60, T0 + 20)
    undone = interventions.compromise_undone(KEYSET, gone, TIMING, T0 + 30)
    assert (undone.state, undone.times.activate_at) == (KeyState.DEACTIVATED, None)
    assert rotation.signing_timeline([ACTIVE, undone]) == [(0, ACTIVE)]
    assert undone.times.compromised_at is None
