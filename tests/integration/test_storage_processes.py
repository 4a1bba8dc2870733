"""Ten processes on one database, on either kind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from kmsjwks.domain.errors import Conflict, KmsJwksError
from kmsjwks.domain.keys import Key
from kmsjwks.domain.ports import Change, LifecycleEvent
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import migrate
from tests.contract.test_key_store import ES256, NOW, database_url, key_of, keyset_named

__all__ = ["database_url"]  # a fixture

PROCESSES = 10
ROUNDS = 20
KEYSET = keyset_named("demo")

Work = Callable[[str, int, Barrier], str]


def fresh_processes() -> ForkServerContext:
    """Forked from one that has imported this module and done nothing else: ten that import it
    each take ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run_all(work: Work, url: str) -> list[str]:
    """What each of ten fresh processes returned."""
    fresh = fresh_processes()
    barrier, results = fresh.Barrier(PROCESSES), fresh.SimpleQueue()
    processes = [
        fresh.Process(target=report, args=(work, url, number, barrier, results))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return [results.get() for _ in processes]


def report(work: Work, url: str, number: int, barrier: Barrier, results: Any) -> None:
    try:
        results.put(work(url, number, barrier))
    except KmsJwksError as error:
        results.put(f"{error} {error.__cause__}")


def start_and_write(url: str, number: int, barrier: Barrier) -> str:
    """What a replica does at its start."""
    barrier.wait(30)
    engine = make_engine(url)
    migrate(engine)
    store = SqlKeyStore(engine)
    store.check()
    own = keyset_named(f"own-{number}")
    store.begin_creation(f"own-{number}", own.name, own.backend, ES256, NOW)
    store.add_keyset(own, key_of(own), request_id=f"own-{number}")
    shared = keyset_named("shared")
    try:
        store.begin_creation("shared", shared.name, shared.backend, ES256, NOW + number)
        store.add_keyset(shared, key_of(shared), request_id="shared")
    except Conflict:
        return "lost"
    return "won"


def swap(url: str, number: int, barrier: Barrier) -> str:
    """Change the same version of one key as the nine others do, round after round."""
    store = SqlKeyStore(make_engine(url))
    won = 0
    for turn in range(ROUNDS):
        (before,) = store.keys("demo")
        barrier.wait(30)  # everybody has read
        after = replace(before, times=replace(before.times, max_exp=NOW + number))
        try:
            store.apply([Change(before, after)], event(f"{turn}", f"{number}"))
            won += 1
        except Conflict:
            pass
        barrier.wait(30)  # everybody has tried
    return str(won)


def event(name: str, actor: str) -> LifecycleEvent:
    return LifecycleEvent(NOW, actor, "demo", None, name)


def plan(url: str, number: int, barrier: Barrier) -> str:
    """Try for the planner's lock while everybody else does."""
    store = SqlKeyStore(make_engine(url))
    barrier.wait(30)
    with store.planner_lock() as ours:
        barrier.wait(30)  # everybody has tried
        return "ours" if ours else "theirs"


def plan_forever(url: str, holding: Any) -> None:
    with SqlKeyStore(make_engine(url)).planner_lock():
        holding.set()
        time.sleep(60)


@pytest.fixture
def store(database_url: str) -> SqlKeyStore:
    engine = make_engine(database_url)
    migrate(engine)
    return SqlKeyStore(engine)


@pytest.fixture
def key(store: SqlKeyStore) -> Key:
    key = key_of(KEYSET)
    store.add_keyset(KEYSET, key)
    return key


def test_they_migrate_and_write_at_once(database_url: str) -> None:
    outcomes = run_all(start_and_write, database_url)
    assert sorted(outcomes) == ["lost"] * (PROCESSES - 1) + ["won"]
    store = SqlKeyStore(make_engine(database_url))
    assert len(store.keysets()) == len(store.keys()) == PROCESSES + 1
    assert store.revision() == PROCESSES + 1
    assert list(store.open_intents()) == []


def test_one_wins_each_round_of_compare_and_swap(
    database_url: str, store: SqlKeyStore, key: Key
) -> None:
    before = store.revision()
    outcomes = run_all(swap, database_url)
    assert sum(map(int, outcomes)) == ROUNDS
    (after,) = store.keys("demo")
    assert (after.version, store.revision()) == (key.version + ROUNDS, before + ROUNDS)
    turns = [one.event for one in store.events("demo")]
    assert turns == [str(turn) for turn in reversed(range(ROUNDS))]


def test_one_has_the_planner_lock(database_url: str, store: SqlKeyStore) -> None:
    assert sorted(run_all(plan, database_url)) == ["ours"] + ["theirs"] * (PROCESSES - 1)


def test_a_killed_planner_frees_the_lock(database_url: str, store: SqlKeyStore) -> None:
    fresh = fresh_processes()
    holding = fresh.Event()
    process = fresh.Process(target=plan_forever, args=(database_url, holding))
    process.start()
    assert holding.wait(30)
    with store.planner_lock() as ours:
        assert not ours
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    deadline = time.monotonic() + 5
    while True:
        with store.planner_lock() as ours:
            if ours:
                return
        assert time.monotonic() < deadline, "the lock outlived its holder"
        time.sleep(0.02)


def test_an_engine_survives_fork(store: SqlKeyStore) -> None:
    store.add_keyset(keyset_named("parent"), key_of(keyset_named("parent")))
    child = multiprocessing.get_context("fork").Process(
        target=store.add_keyset, args=(keyset_named("child"), key_of(keyset_named("child")))
    )
    child.start()
    store.add_keyset(keyset_named("again"), key_of(keyset_named("again")))
    child.join(timeout=30)
    assert child.exitcode == 0
    assert [keyset.name for keyset in store.keysets()] == ["again", "child", "parent"]


def test_a_fork_while_planning_leaves_the_lock_with_the_parent(store: SqlKeyStore) -> None:
    with store.planner_lock() as ours:
        assert ours
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,))
        child.start()
    try:
        with store.planner_lock() as again:
            assert again  # though the child, still there, has a copy of all that is open
    finally:
        child.terminate()
        child.join(10)
