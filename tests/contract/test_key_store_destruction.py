"""What every KeyStore must do about a destruction in a backend with a waiting window of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmsjwks.domain.errors import TransitionRefused
from kmsjwks.domain.keys import Key, KeyState
from kmsjwks.domain.ports import Change, KeyStore
from tests.contract.test_key_store import NOW, database_url, open_store, store
from tests.contract.test_key_store_changes import ACTIVE, SPARE, add, event, stored, timed, to

__all__ = ["database_url", "open_store", "store"]  # fixtures

END = NOW + 7 * 86400
STATES = (KeyState.PRE_ACTIVATION, KeyState.DEACTIVATED, KeyState.COMPROMISED)


def pending(store: KeyStore, state: KeyState) -> Key:
    """The backend was asked at ``NOW`` and destroys the key at ``END``."""
    key = timed(replace(SPARE, state=state), destroy_at=NOW)
    add(store, key)
    store.apply([Change(key, timed(key, private_destroyed_at=END))], event())
    return stored(store)["spare"]


def destroyed(key: Key, at: int) -> Change:
    return Change(key, timed(replace(key, state=KeyState.DESTROYED), destroyed_at=at))


def cancelled(key: Key) -> Key:
    times = replace(key.times, private_destroyed_at=None, destroy_at=None)
    return replace(key, times=times)


@pytest.mark.parametrize("state", STATES)
def test_it_keeps_its_state_until_the_window_ends(store: KeyStore, state: KeyState) -> None:
    key = pending(store, state)
    assert (key.state, key.times.private_destroyed_at) == (state, END)
    with pytest.raises(TransitionRefused, match=f"stays {state.value}: it is not destroyed in"):
        store.apply([destroyed(key, END - 1)], event())
    assert stored(store)["spare"] == key
    store.apply([destroyed(key, END)], event())
    assert stored(store)["spare"].state is KeyState.DESTROYED


@pytest.mark.parametrize("state", STATES)
def test_it_can_be_cancelled_and_begun_again(store: KeyStore, state: KeyState) -> None:
    key = pending(store, state)
    store.apply([Change(key, cancelled(key))], event())
    kept = stored(store)["spare"]
    assert (kept.state, kept.times) == (state, SPARE.times)
    store.apply([Change(kept, timed(kept, private_destroyed_at=END))], event())
    assert stored(store)["spare"].times.private_destroyed_at == END


@pytest.mark.parametrize("state", STATES)
def test_on_hold_it_is_neither_cancelled_nor_finished(store: KeyStore, state: KeyState) -> None:
    key = pending(store, state)
    store.apply([Change(key, replace(key, hold=True))], event())
    held = stored(store)["spare"]
    refused = [Change(held, cancelled(held))]
    refused += [destroyed(held, at) for at in (END - 1, END)]
    for change in refused:
        with pytest.raises(TransitionRefused, match="on hold"):
            store.apply([change], event())
    assert stored(store)["spare"] == held
    released = replace(cancelled(held), hold=False)
    store.apply([Change(held, released)], event())
    assert stored(store)["spare"].times.private_destroyed_at is None


def test_once_destroyed_it_is_never_cancelled(store: KeyStore) -> None:
    key = pending(store, KeyState.DEACTIVATED)
    store.apply([destroyed(key, END)], event())
    gone = stored(store)["spare"]
    for after in (cancelled(gone), replace(cancelled(gone), state=key.state)):
        with pytest.raises(TransitionRefused, match="final"):
            store.apply([Change(gone, after)], event())
    assert stored(store)["spare"] == gone


def test_it_never_becomes_active(store: KeyStore) -> None:
    key = pending(store, KeyState.PRE_ACTIVATION)
    with pytest.raises(TransitionRefused, match="cannot be active"):
        store.apply([to(key, KeyState.ACTIVE)], event())
    kept = replace(cancelled(key), state=KeyState.ACTIVE)
    store.apply([Change(key, kept)], event())
    assert stored(store)["spare"].state is KeyState.ACTIVE


def test_an_active_key_is_not_destroyed(store: KeyStore) -> None:
    add(store, ACTIVE)
    with pytest.raises(TransitionRefused, match="cannot be active"):
        store.apply([Change(ACTIVE, timed(ACTIVE, private_destroyed_at=END))], event())
    store.apply([Change(ACTIVE, replace(ACTIVE, hold=True))], event())
    held = stored(store)["first"]
    with pytest.raises(TransitionRefused, match="cannot be active"):
        store.apply(
            [Change(held, timed(replace(held, hold=False), private_destroyed_at=END))],
            event(),
        )
    compromised = timed(replace(held, state=KeyState.COMPROMISED), private_destroyed_at=END)
    store.apply([Change(held, compromised)], event())
    assert stored(store)["first"] == replace(compromised, version=2)


def test_a_compromise_leaves_it_pending(store: KeyStore) -> None:
    key = pending(store, KeyState.DEACTIVATED)
    store.apply([to(key, KeyState.COMPROMISED)], event())
    assert stored(store)["spare"].times == key.times
