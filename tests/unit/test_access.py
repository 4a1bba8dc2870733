"""Grants: no grant means no, and the answer depends on the name alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.access import Action, Grant, Principal, require
from kmsjwks.domain.errors import Forbidden

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


def _principal(*grants: tuple[set[Action], tuple[str, ...]]) -> Principal:
    return Principal("billing", tuple(Grant(frozenset(a), patterns) for a, patterns in grants))


def test_the_actions_are_those_of_the_design() -> None:
    wanted = {"sign", "verify", "read", "rotate", "manage", "destroy", "audit"}
    assert {action.value for action in Action} == wanted


@given(action=st.sampled_from(Action), keyset=NAMES)
def test_no_grant_means_no(action: Action, keyset: str) -> None:
    for nobody in (
        Principal("nobody"),
        _principal((set(), ("*",))),
        _principal((set(Action), ())),
        _principal((set(Action) - {action}, ("*",))),
        _principal((set(Action), ("",))),
    ):
        assert not nobody.may(action, keyset)
        with pytest.raises(Forbidden):
            require(nobody, action, keyset)


@pytest.mark.parametrize("action", Action, ids=lambda a: a.value)
def test_a_grant_gives_its_actions_and_no_other(action: Action) -> None:
    principal = _principal(({action}, ("demo",)))
    assert [other for other in Action if principal.may(other, "demo")] == [action]
    require(principal, action, "demo")


@pytest.mark.parametrize(
    ("pattern", "keyset", "covered"),
    [
        ("*", "anything", True),
        ("*", "a.b-c", True),
        ("demo", "demo", True),
        ("demo", "demo2", False),
        ("demo", "ademo", False),
        ("demo", "Demo", False),
        ("Demo", "demo", False),
        ("billing-*", "billing-eu", True),
        ("billing-*", "billing-", True),
        ("billing-*", "billing", False),
        ("billing-*", "not-billing-eu", False),
        ("*-eu", "billing-eu", True),
        ("*-eu", "billing-eu2", False),
        ("team.?", "team.a", True),
        ("team.?", "teamxa", False),
        ("team.?", "team.ab", False),
        ("team-[ab]", "team-a", True),
        ("team-[ab]", "team-c", False),
        ("team-[!ab]", "team-c", True),
        ("a.b", "axb", False),
        ("demo\n", "demo", False),
        ("demo", "demo\n", False),
        ("demo*", "demo\nother", True),
    ],
)
def test_patterns(pattern: str, keyset: str, covered: bool) -> None:
    assert _principal(({Action.SIGN}, (pattern,))).may(Action.SIGN, keyset) is covered


def test_any_of_several_grants_and_patterns_is_enough_but_they_do_not_mix() -> None:
    principal = _principal(({Action.SIGN}, ("a", "b-*")), ({Action.READ, Action.VERIFY}, ("c",)))
    allowed = {
        (action.value, keyset)
        for action in Action
        for keyset in ("a", "b-1", "c", "d")
        if principal.may(action, keyset)
    }
    assert allowed == {("sign", "a"), ("sign", "b-1"), ("read", "c"), ("verify", "c")}


@given(action=st.sampled_from(Action), first=NAMES, second=NAMES)
def test_the_refusal_does_not_depend_on_the_keyset(action: Action, first: str, second: str) -> None:
    messages = set()
    for keyset in (first, second):
        with pytest.raises(Forbidden) as caught:
            require(Principal("billing"), action, keyset)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert action.value in messages.pop()
