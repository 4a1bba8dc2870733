"""What every KeyStore must do for processes that work side by side: leases, the planner's lock."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread

import pytest

from kmsjwks.domain.errors import Conflict
from kmsjwks.domain.ports import Change, KeyStore, Lease
from tests.contract.test_key_store import ES256, NOW, Open, database_url, open_store, store
from tests.contract.test_key_store_changes import ACTIVE, add, event, timed

__all__ = ["database_url", "open_store", "store"]  # fixtures


class TestLeases:
    def test_a_lease_only_grows_until_it_is_final(self, open_store: Open) -> None:
        store = open_store()
        before = store.revision()
        store.extend_lease("k", "b", 100)
        store.extend_lease("k", "b", 50)
        store.extend_lease("k", "a", 2**40)
        store.extend_lease("other", "b", 1)
        assert list(open_store().leases("k")) == [
            Lease("k", "a", 2**40, False),
            Lease("k", "b", 100, False),
        ]
        store.extend_lease("k", "b", 150)
        store.finish_lease("k", "b", 70)
        with pytest.raises(Conflict, match="b has finished signing"):
            store.extend_lease("k", "b", 200)
        assert store.leases("k")[1] == Lease("k", "b", 70, True)
        assert store.revision() == before

    def test_many_are_extended_at_once_and_final_ones_left_alone(self, open_store: Open) -> None:
        store = open_store()
        store.extend_lease("k", "a", 500)
        store.finish_lease("ended", "a", 70)
        wanted = [Lease(kid, "a", 100, False) for kid in ("k", "ended", "new")]
        assert list(store.extend_leases(wanted)) == [wanted[1]]
        held = [open_store().leases(kid)[0] for kid in ("k", "ended", "new")]
        assert [(one.max_exp, one.final) for one in held] == [
            (500, False),
            (70, True),
            (100, False),
        ]

    def test_finishing_makes_one_where_there_is_none(self, store: KeyStore) -> None:
        store.finish_lease("k", "a", 0)
        assert list(store.leases("k")) == [Lease("k", "a", 0, True)]
        assert list(store.leases("none")) == []


class TestPlannerLock:
    def test_one_holder_and_free_afterwards(self, open_store: Open) -> None:
        one, other = open_store(), open_store()
        with one.planner_lock() as ours:
            assert ours
            with other.planner_lock() as theirs, one.planner_lock() as again:
                assert (theirs, again) == (False, False)
            with other.planner_lock() as still:
                assert not still
        for _ in range(20):
            with other.planner_lock() as theirs:
                assert theirs

    def test_freed_by_an_exception(self, store: KeyStore) -> None:
        with pytest.raises(ZeroDivisionError), store.planner_lock():
            raise ZeroDivisionError
        with store.planner_lock() as ours:
            assert ours

    def test_the_holder_can_use_the_store(self, store: KeyStore) -> None:
        with store.planner_lock():
            add(store, ACTIVE)
            store.begin_creation("r", "demo", "hsm", ES256, NOW)

    def test_threads_exclude_each_other(self, store: KeyStore) -> None:
        got: list[bool] = []
        entered, tried = Barrier(8), Barrier(8)

        def compete() -> None:
            entered.wait(10)
            with store.planner_lock() as ours:
                got.append(ours)
                tried.wait(10)

        run_all([Thread(target=compete) for _ in range(8)])
        assert sorted(got) == [False] * 7 + [True]

    def test_one_of_many_threads_wins_each_swap(self, store: KeyStore) -> None:
        add(store, ACTIVE)
        won: list[str] = []

        def compete(name: str) -> Callable[[], None]:
            def swap() -> None:
                try:
                    store.apply([Change(ACTIVE, timed(ACTIVE, max_exp=NOW))], event(name))
                    won.append(name)
                except Conflict:
                    pass

            return swap

        run_all([Thread(target=compete(str(number))) for number in range(8)])
        assert [one.event for one in store.events("demo")] == won
        assert len(won) == 1


def run_all(threads: list[Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
