"""Key states: which may follow which, which sign, which are published."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import Conflict, InvalidRequest, TransitionRefused
from kmsjwks.domain.keys import (
    TRANSITIONS,
    Key,
    KeyState,
    KeyTimes,
    check_keyset_name,
    check_transition,
    is_published,
)
from kmsjwks.domain.rotation import signing_key

NOW = 1_900_000_000
KEY = Key(
    kid="NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
    keyset="demo",
    algorithm=find_algorithm("ES256"),
    backend="softhsm",
    ref="00" * 16,
    spki=b"",
    state=KeyState.ACTIVE,
    times=KeyTimes(created_at=NOW - 100),
)

# The table of the design, in its own words.
ALLOWED = {
    ("pre-activation", "active"),
    ("pre-activation", "compromised"),
    ("pre-activation", "destroyed"),
    ("active", "deactivated"),
    ("active", "compromised"),
    ("deactivated", "compromised"),
    ("deactivated", "destroyed"),
    ("compromised", "destroyed"),
}


def _key(state: KeyState, **times: int | None) -> Key:
    return replace(KEY, state=state, times=replace(KEY.times, **times))  # type: ignore[arg-type]


def test_the_states_are_those_of_nist_sp_800_57() -> None:
    assert {state.value for state in KeyState} == {
        *("pre-activation", "active", "deactivated", "compromised", "destroyed")
    }
    assert set(TRANSITIONS) == set(KeyState)


@pytest.mark.parametrize(("old", "new"), list(product(KeyState, KeyState)), ids=lambda s: s.value)
def test_transitions(old: KeyState, new: KeyState) -> None:
    if (old.value, new.value) in ALLOWED:
        check_transition(_key(old), new)
        return
    with pytest.raises(TransitionRefused) as caught:
        check_transition(_key(old), new)
    assert isinstance(caught.value, Conflict)
    for word in (KEY.kid, old.value, new.value):
        assert word in str(caught.value)


def test_a_destroyed_key_stays_destroyed_and_an_active_one_is_never_destroyed_at_once() -> None:
    assert TRANSITIONS[KeyState.DESTROYED] == frozenset()
    assert KeyState.DESTROYED not in TRANSITIONS[KeyState.ACTIVE]


@pytest.mark.parametrize(("old", "new"), sorted(ALLOWED))
def test_a_hold_stops_every_transition_but_to_compromised(old: str, new: str) -> None:
    held = replace(_key(KeyState(old)), hold=True)
    if new == "compromised":
        check_transition(held, KeyState.COMPROMISED)
        return
    with pytest.raises(TransitionRefused, match="on hold; release it first"):
        check_transition(held, KeyState(new))


@pytest.mark.parametrize("state", KeyState, ids=lambda s: s.value)
def test_only_active_keys_sign(state: KeyState) -> None:
    key = _key(state)
    assert signing_key([key], NOW) is (key if state is KeyState.ACTIVE else None)


@pytest.mark.parametrize("activate_at", [None, NOW - 1, NOW, NOW + 1])
def test_a_key_recorded_as_active_signs_whatever_the_local_clock_says(
    activate_at: int | None,
) -> None:
    key = _key(KeyState.ACTIVE, activate_at=activate_at)
    assert signing_key([key], NOW) is key


@pytest.mark.parametrize("state", [KeyState.PRE_ACTIVATION, KeyState.ACTIVE])
def test_living_keys_are_published_once_they_are(state: KeyState) -> None:
    assert not is_published(_key(state), NOW)
    assert is_published(_key(state, published_at=NOW), NOW)
    assert is_published(_key(state, published_at=NOW - 1, activate_at=NOW + 86_400), NOW)


@pytest.mark.parametrize("state", [KeyState.PRE_ACTIVATION, KeyState.ACTIVE])
def test_a_key_published_by_a_faster_clock_is_published(state: KeyState) -> None:
    assert is_published(_key(state, published_at=NOW + 300), NOW)


@pytest.mark.parametrize(
    ("withdraw_at", "published"), [(None, True), (NOW + 1, True), (NOW, False), (NOW - 1, False)]
)
def test_a_deactivated_key_is_published_until_it_is_withdrawn(
    withdraw_at: int | None, published: bool
) -> None:
    key = _key(KeyState.DEACTIVATED, published_at=NOW - 9, withdraw_at=withdraw_at)
    assert is_published(key, NOW) is published


def test_a_deactivated_key_stays_published_after_its_private_half_is_gone() -> None:
    key = _key(
        KeyState.DEACTIVATED,
        published_at=NOW - 9,
        withdraw_at=NOW + 9,
        private_destroyed_at=NOW - 1,
    )
    assert is_published(key, NOW)


@pytest.mark.parametrize("state", [KeyState.COMPROMISED, KeyState.DESTROYED])
def test_compromised_and_destroyed_keys_are_never_published(state: KeyState) -> None:
    assert not is_published(_key(state, published_at=NOW - 9, withdraw_at=NOW + 9), NOW)
    assert not is_published(_key(state, published_at=NOW - 9), NOW)


def test_what_signs_is_published() -> None:
    for state, activate_at in product(KeyState, (None, NOW - 1, NOW, NOW + 1)):
        key = _key(state, published_at=NOW - 9, activate_at=activate_at)
        assert is_published(key, NOW) or signing_key([key], NOW) is None


def test_a_hold_stops_the_withdrawal() -> None:
    key = _key(KeyState.DEACTIVATED, published_at=NOW - 9, withdraw_at=NOW - 1)
    assert not is_published(key, NOW)
    assert is_published(replace(key, hold=True), NOW)


@pytest.mark.parametrize("name", ["a", "0", "demo", "a.b_c-d", "x" * 63, "0-", "a..b"])
def test_keyset_names(name: str) -> None:
    assert check_keyset_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 64, "Demo", "-a", ".a", "_a", "..", "a/b", "a b", "a\n", "\na", "a%2e"),
        *("\u00e9", "a*", "\u0661", "a\0", "a:b"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="keyset name"):
        check_keyset_name(name)
