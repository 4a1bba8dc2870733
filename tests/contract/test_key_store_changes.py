"""What every KeyStore must do about changes, events, leases and the planner's lock."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import Conflict, TransitionRefused
from kmsjwks.domain.keys import TRANSITIONS, Key, Keyset, KeyState, KeyTimes, Standby
from kmsjwks.domain.ports import Change, KeyStore, LifecycleEvent
from kmsjwks.domain.timing import RotationSchedule
from tests.contract.test_key_store import (
    ES256,
    NOW,
    Open,
    database_url,
    key_of,
    keyset_named,
    open_store,
    store,
)

__all__ = ["database_url", "open_store", "store"]  # fixtures

DEMO = keyset_named("demo")
ACTIVE = key_of(DEMO, "first")
SPARE = replace(key_of(DEMO, "spare"), state=KeyState.PRE_ACTIVATION)


def event(name: str = "tested", kid: str | None = "first", time: int = NOW) -> LifecycleEvent:
    return LifecycleEvent(time, "tester", "demo", kid, name, "why: caf\u00e9")


def add(store: KeyStore, *keys: Key) -> None:
    """The keyset ``demo`` with these keys, at least one."""
    store.add_keyset(DEMO, keys[0])
    for key in keys[1:]:
        store.begin_creation(key.kid, "demo", "hsm", ES256, NOW)
        store.apply([], event("added", key.kid), added=[(key, key.kid)])


def stored(store: KeyStore) -> dict[str, Key]:
    return {key.kid: key for key in store.keys("demo")}


def to(key: Key, state: KeyState) -> Change:
    return Change(key, replace(key, state=state))


def timed(key: Key, **times: int) -> Key:
    return replace(key, times=replace(key.times, **times))


class TestAddingKeysets:
    def test_spare_and_event_come_in_the_same_step(self, store: KeyStore) -> None:
        store.begin_creation("r1", "demo", "hsm", ES256, NOW)
        store.begin_creation("r2", "demo", "hsm", ES256, NOW)
        store.add_keyset(DEMO, ACTIVE, request_id="r1", spare=(SPARE, "r2"), event=event())
        assert stored(store) == {"first": ACTIVE, "spare": SPARE}
        assert list(store.events("demo")) == [event()]
        assert list(store.open_intents()) == []
        assert store.revision() == 1

    def test_all_or_nothing(self, store: KeyStore) -> None:
        store.begin_creation("r1", "demo", "hsm", ES256, NOW)
        with pytest.raises(Conflict, match="request id r2"):
            store.add_keyset(DEMO, ACTIVE, request_id="r1", spare=(SPARE, "r2"), event=event())
        other = replace(SPARE, keyset="other")
        with pytest.raises(Conflict, match="does not fit the keyset demo"):
            store.add_keyset(DEMO, ACTIVE, spare=(other, "r1"))
        second = replace(SPARE, state=KeyState.ACTIVE)
        with pytest.raises(Conflict, match="spare cannot become another"):
            store.add_keyset(DEMO, ACTIVE, spare=(second, "r1"))
        assert (list(store.keysets()), list(store.keys()), store.revision()) == ([], [], 0)
        assert list(store.events("demo")) == []
        assert [intent[0] for intent in store.open_intents()] == ["r1"]

    def test_a_schedule_comes_back(self, store: KeyStore) -> None:
        keyset = replace(DEMO, schedule=RotationSchedule(7 * 86400, 3600, 301, 60, 61))
        store.add_keyset(keyset, ACTIVE)
        assert list(store.keysets()) == [keyset]

    @pytest.mark.parametrize("standby", [Standby("kms"), Standby("kms", None, None)])
    def test_a_standby_comes_back(self, store: KeyStore, standby: Standby) -> None:
        keyset = replace(DEMO, standby=standby)
        store.add_keyset(keyset, ACTIVE)
        assert list(store.keysets()) == [keyset]


class TestApply:
    def test_a_change_counts_the_version_up(self, open_store: Open) -> None:
        store = open_store()
        add(store, ACTIVE)
        before = store.revision()
        after = timed(replace(ACTIVE, hold=True), max_exp=NOW + 5, seen_at=NOW)
        store.apply([Change(ACTIVE, after)], event())
        assert stored(open_store()) == {"first": replace(after, version=1)}
        assert store.revision() > before
        assert list(store.events("demo")) == [event()]

    def test_a_stale_before_conflicts_and_changes_nothing(self, store: KeyStore) -> None:
        add(store, ACTIVE, SPARE)
        store.apply([Change(ACTIVE, timed(ACTIVE, max_exp=NOW))], event("first"))
        before = stored(store), store.revision(), store.events("demo")
        changes = [
            Change(SPARE, timed(SPARE, seen_at=NOW)),
            Change(ACTIVE, timed(ACTIVE, max_exp=NOW + 1)),
        ]
        with pytest.raises(Conflict, match="key first was changed by another"):
            store.apply(changes, event("second"))
        assert (stored(store), store.revision(), store.events("demo")) == before

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("end", [KeyState.DEACTIVATED, KeyState.COMPROMISED])
    def test_a_hand_over_in_either_order(
        self, store: KeyStore, end: KeyState, reverse: bool
    ) -> None:
        add(store, ACTIVE, SPARE)
        changes = [to(ACTIVE, end), to(SPARE, KeyState.ACTIVE)]
        store.apply(changes[::-1] if reverse else changes, event())
        assert {kid: key.state for kid, key in stored(store).items()} == {
            "first": end,
            "spare": KeyState.ACTIVE,
        }

    def test_never_two_active_keys(self, store: KeyStore) -> None:
        add(store, ACTIVE, SPARE)
        with pytest.raises(Conflict, match="spare cannot become another"):
            store.apply([to(SPARE, KeyState.ACTIVE)], event())
        store.begin_creation("r", "demo", "hsm", ES256, NOW)
        with pytest.raises(Conflict, match="third cannot become another"):
            store.apply([], event(), added=[(key_of(DEMO, "third"), "r")])
        assert stored(store) == {"first": ACTIVE, "spare": SPARE}

    def test_an_added_key_finishes_its_creation(self, store: KeyStore) -> None:
        add(store, ACTIVE)
        store.begin_creation("r", "demo", "hsm", ES256, NOW)
        store.apply([to(ACTIVE, KeyState.DEACTIVATED)], event(), added=[(SPARE, "r")])
        assert stored(store)["spare"] == SPARE
        assert list(store.open_intents()) == []
        with pytest.raises(Conflict, match="key spare belongs to the keyset demo"):
            store.apply([], event(), added=[(SPARE, "r")])
        with pytest.raises(Conflict, match="request id r"):
            store.apply([], event(), added=[(replace(SPARE, kid="x", ref="x"), "r")])
        with pytest.raises(Conflict, match="no keyset: there is no other"):
            store.apply(
                [], event(), added=[(replace(SPARE, kid="x", ref="x", keyset="other"), "r")]
            )
        assert len(list(store.events("demo"))) == 1

    def test_an_event_alone(self, store: KeyStore) -> None:
        add(store, ACTIVE)
        store.apply([], event("noted", kid=None))
        assert list(store.events("demo")) == [event("noted", kid=None)]


class TestGuards:
    @pytest.mark.parametrize("hold", [False, True])
    def test_transitions_are_those_of_the_domain(self, store: KeyStore, hold: bool) -> None:
        for old, new in product(KeyState, KeyState):
            keyset = keyset_named(f"{old.value}-{new.value}")
            key = replace(key_of(keyset), state=old, hold=hold)
            store.add_keyset(keyset, key)
            allowed = old is not KeyState.DESTROYED and (
                old is new
                or (new in TRANSITIONS[old] and (not hold or new is KeyState.COMPROMISED))
            )
            if allowed:
                store.apply([to(key, new)], event())
            else:
                refused = f"Key {key.kid} stays {old.value}: (it is|this change)"
                with pytest.raises(TransitionRefused, match=refused):
                    store.apply([to(key, new)], event())
            (found,) = store.keys(keyset.name)
            assert found.state is (new if allowed else old)

    ENDINGS = (
        "deactivated_at",
        "withdraw_at",
        "destroy_at",
        "private_destroyed_at",
        "destroyed_at",
    )

    @pytest.mark.parametrize("name", ENDINGS)
    def test_the_end_of_a_held_key_cannot_be_planned(self, store: KeyStore, name: str) -> None:
        key = replace(ACTIVE, hold=True)
        add(store, key)
        with pytest.raises(TransitionRefused, match="on hold"):
            store.apply([Change(key, timed(key, **{name: NOW}))], event())
        compromised = replace(timed(key, **{name: NOW}), state=KeyState.COMPROMISED)
        store.apply([Change(key, compromised)], event())
        assert stored(store)["first"] == replace(compromised, version=1)

    def test_a_release_comes_before_the_transition(self, store: KeyStore) -> None:
        key = replace(ACTIVE, hold=True)
        add(store, key)
        with pytest.raises(TransitionRefused, match="release it first"):
            store.apply([Change(key, replace(ACTIVE, state=KeyState.DEACTIVATED))], event())
        store.apply([Change(key, ACTIVE)], event())
        released = stored(store)["first"]
        store.apply([to(released, KeyState.DEACTIVATED)], event())
        assert stored(store)["first"].state is KeyState.DEACTIVATED

    @pytest.mark.parametrize(
        "after",
        [
            replace(ACTIVE, kid="other"),
            replace(ACTIVE, spki=b"other"),
            replace(ACTIVE, ref="other"),
            replace(ACTIVE, backend="other"),
            replace(ACTIVE, keyset="other"),
        ],
    )
    def test_what_a_key_is_never_changes(self, store: KeyStore, after: Key) -> None:
        add(store, ACTIVE)
        with pytest.raises(TransitionRefused, match="never changes"):
            store.apply([Change(ACTIVE, after)], event())
        assert stored(store) == {"first": ACTIVE}

    def test_a_destroyed_key_never_changes(self, store: KeyStore) -> None:
        key = replace(ACTIVE, state=KeyState.DESTROYED)
        add(store, key)
        with pytest.raises(TransitionRefused, match="final"):
            store.apply([Change(key, timed(key, max_exp=NOW))], event())


class TestUpdatingKeysets:
    AFTER = replace(
        DEMO,
        rules=replace(DEMO.rules, max_lifetime=60),
        schedule=RotationSchedule(period=90 * 86400),
    )

    def test_rules_schedule_and_keys_change_together(self, open_store: Open) -> None:
        store = open_store()
        add(store, ACTIVE)
        before = store.revision()
        change = Change(ACTIVE, timed(ACTIVE, exp_bound=NOW + 900))
        store.update_keyset(DEMO, self.AFTER, [change], event("rules"))
        assert list(open_store().keysets()) == [self.AFTER]
        assert stored(store)["first"].times.exp_bound == NOW + 900
        assert store.revision() > before
        assert [one.event for one in store.events("demo")] == ["rules"]

    def test_a_stale_before_conflicts(self, store: KeyStore) -> None:
        add(store, ACTIVE)
        store.update_keyset(DEMO, replace(DEMO, rules=self.AFTER.rules), [], event("theirs"))
        revision = store.revision()
        with pytest.raises(Conflict, match="keyset demo was changed by another"):
            store.update_keyset(DEMO, self.AFTER, [], event())
        current = store.keysets()[0]
        with pytest.raises(Conflict, match="key first was changed"):
            store.update_keyset(
                current, self.AFTER, [to(replace(ACTIVE, version=9), KeyState.COMPROMISED)], event()
            )
        assert (list(store.keysets()), store.revision()) == ([current], revision)
        assert [one.event for one in store.events("demo")] == ["theirs"]

    @pytest.mark.parametrize(
        "after",
        [
            replace(AFTER, name="x"),
            replace(AFTER, algorithm=find_algorithm("ES384")),
            replace(AFTER, created_at=1),
        ],
    )
    def test_nothing_else_changes(self, store: KeyStore, after: Keyset) -> None:
        add(store, ACTIVE)
        with pytest.raises(Conflict, match="keyset demo never change"):
            store.update_keyset(DEMO, after, [], event())
        assert list(store.keysets()) == [DEMO]

    def test_a_keyset_moves_and_its_keys_stay(self, open_store: Open) -> None:
        store = open_store()
        add(store, ACTIVE)
        versions = [
            DEMO,
            replace(DEMO, standby=Standby("kms")),
            replace(DEMO, standby=Standby("kms", failover_after=5, failback_after=None)),
            replace(DEMO, backend="kms", standby=Standby("hsm")),
            replace(DEMO, backend="kms", standby=None),
        ]
        for before, after in pairwise(versions):
            revision = store.revision()
            store.update_keyset(before, after, [], event())
            assert list(open_store().keysets()) == [after]
            assert store.revision() > revision
        assert stored(store) == {"first": ACTIVE}

    @pytest.mark.parametrize(
        "theirs",
        [
            replace(DEMO, backend="kms"),
            replace(DEMO, standby=Standby("kms")),
            replace(DEMO, standby=Standby("kms", failover_after=5)),
        ],
    )
    @pytest.mark.parametrize("first", [DEMO, replace(DEMO, standby=Standby("other"))])
    def test_a_move_meanwhile_conflicts(
        self, store: KeyStore, first: Keyset, theirs: Keyset
    ) -> None:
        store.add_keyset(first, ACTIVE)
        store.update_keyset(first, theirs, [], event("theirs"))
        with pytest.raises(Conflict, match="keyset demo was changed by another"):
            store.update_keyset(first, replace(first, rules=self.AFTER.rules), [], event())
        assert list(store.keysets()) == [theirs]

    def test_an_unknown_keyset(self, store: KeyStore) -> None:
        with pytest.raises(Conflict):
            store.update_keyset(DEMO, self.AFTER, [], event())


class TestEvents:
    def test_newest_first_whatever_the_clocks_say(self, store: KeyStore) -> None:
        add(store, ACTIVE)
        for name, time in (("a", NOW + 60), ("b", NOW), ("c", NOW + 30)):
            store.apply([], event(name, time=time))
        assert [one.event for one in store.events("demo")] == ["c", "b", "a"]
        assert [one.event for one in store.events("demo", limit=2)] == ["c", "b"]
        assert list(store.events("other")) == []


def test_an_empty_key_has_no_times(store: KeyStore) -> None:
    key = replace(SPARE, times=KeyTimes(NOW))
    add(store, key)
    assert stored(store)["spare"].times == KeyTimes(NOW)
