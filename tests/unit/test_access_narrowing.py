"""Narrowed grants: what the tokens they sign may say, and what a decision tells."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsjwks.domain.access import Action, Decision, Grant, Principal, decide, permit, require
from kmsjwks.domain.errors import Forbidden, NotGranted
from kmsjwks.domain.narrowing import Narrowing, TokenRequest, matches

SIGN = frozenset({Action.SIGN})


def _breach(narrowing: Narrowing, claims: Mapping[str, Any], lifetime: int | None = 60) -> str:
    """The claim that is in the way; empty where none is."""
    found = narrowing.breach(TokenRequest(claims, lifetime))
    return found.member if found else ""


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a", "a", True),
        ("a", "A", False),
        ("a", "ab", False),
        ("*", "", True),
        ("a*", "a", True),
        ("a*", "a\nb", True),
        ("a*", "ba", False),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a*b*c", "acb-c", True),
        ("a*bc*c", "abc", False),
        ("a?", "ab", False),
        ("a?", "a?", True),
        ("[ab]", "a", False),
        ("a.c", "abc", False),
        ("**", "x", True),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


@given(parts=st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), fill=st.text("ab*?"))
def test_a_pattern_matches_whatever_its_stars_stand_for(parts: list[str], fill: str) -> None:
    assert matches("*".join(parts), fill.join(parts))


def test_a_hostile_text_takes_no_time() -> None:
    assert not matches("*a" * 30 + "b", "a" * 100_000)


@pytest.mark.parametrize(
    ("claims", "member"),
    [
        ({"sub": "svc-1"}, ""),
        ({"sub": "svc-"}, ""),
        ({"sub": "root"}, ""),
        ({"sub": "root2"}, "sub"),
        ({"sub": "xsvc-1"}, "sub"),
        ({}, "sub"),
        ({"sub": None}, "sub"),
        ({"sub": ["root", "other"]}, "sub"),
    ],
)
def test_subjects(claims: dict[str, Any], member: str) -> None:
    assert _breach(Narrowing(subjects=("svc-*", "root")), claims) == member


@pytest.mark.parametrize(
    ("claims", "member"),
    [
        ({"aud": "a"}, ""),
        ({"aud": ["a"]}, ""),
        ({"aud": ["a", "b"]}, ""),
        ({"aud": ["a", "c"]}, "aud"),
        ({"aud": "c"}, "aud"),
        ({"aud": []}, "aud"),
        ({}, "aud"),
    ],
)
def test_every_audience_has_to_be_allowed(claims: dict[str, Any], member: str) -> None:
    assert _breach(Narrowing(audiences=("a", "b")), claims) == member


@pytest.mark.parametrize(
    ("allowed", "value", "is_allowed"),
    [
        (("acme",), "acme", True),
        (("acme",), "acme ", False),
        (("a*", "b"), ["a1", "b"], True),
        (("a*", "b"), ["a1", "c"], False),
        ((1,), 1, True),
        ((1,), True, False),
        ((1,), 1.0, False),
        ((1,), "1", False),
        ((True,), True, True),
        ((True,), 1, False),
        (("1",), 1, False),
        (("*",), 1, False),
        (("*",), None, False),
        (({"a": 1},), {"a": 1}, True),
        (({"a": 1},), {"a": 1, "b": 2}, False),
        (({"a": 1, "b": 2},), {"b": 2, "a": 1}, True),
        (({"a": 1},), {"a": True}, False),
    ],
)
def test_claims(allowed: tuple[Any, ...], value: Any, is_allowed: bool) -> None:
    assert _breach(Narrowing(claims={"x": allowed}), {"x": value}) == ("" if is_allowed else "x")


@pytest.mark.parametrize(
    ("scope", "is_allowed"),
    [
        ("read:a", True),
        ("read:a read:b", True),
        ("read:a write:b", False),
        ("read:a admin", False),
        ("read:a  read:b", False),
        ("", False),
    ],
)
def test_each_value_of_scope_counts(scope: str, is_allowed: bool) -> None:
    """RFC 8693 section 4.2: or "read:*" would allow "read:a admin"."""
    narrowing = Narrowing(claims={"scope": ("read:*",)})
    assert _breach(narrowing, {"scope": scope}) == ("" if is_allowed else "scope")


@pytest.mark.parametrize(("lifetime", "member"), [(299, ""), (300, ""), (301, "ttl"), (None, "")])
def test_lifetime(lifetime: int | None, member: str) -> None:
    assert _breach(Narrowing(max_lifetime=300), {}, lifetime) == member


NARROWED = Principal(
    "billing",
    (
        Grant(frozenset({Action.READ}), ("*",), rule="g0"),
        Grant(SIGN, ("invoices",), Narrowing(subjects=("svc-*",)), "g1"),
        Grant(SIGN, ("inv*",), Narrowing(claims={"tenant": ("acme",)}, max_lifetime=60), "g2"),
    ),
)


@pytest.mark.parametrize(
    ("keyset", "claims", "lifetime", "rule", "member"),
    [
        ("invoices", {"sub": "svc-1"}, 9999, "g1", ""),
        ("invoices", {"sub": "x", "tenant": "acme"}, 60, "g2", ""),
        ("invoices", {"sub": "svc-1", "tenant": "other"}, 60, "g1", ""),
        ("invoices", {"sub": "x", "tenant": "acme"}, 61, "g1", "sub"),
        ("inventory", {"sub": "svc-1"}, 60, "g2", "tenant"),
        ("inventory", {"tenant": "acme"}, 61, "g2", "ttl"),
        ("other", {"tenant": "acme"}, 60, "", ""),
    ],
)
def test_one_grant_has_to_allow_all_of_it(
    keyset: str, claims: dict[str, Any], lifetime: int, rule: str, member: str
) -> None:
    request = TokenRequest(claims, lifetime)
    decision = decide(NARROWED, Action.SIGN, keyset, request)
    assert (decision.rule, decision.member) == (rule, member)
    allowed = bool(rule) and not member
    assert decision.allowed is allowed is NARROWED.may(Action.SIGN, keyset, request)
    assert allowed is _is_permitted(keyset, request)


def _is_permitted(keyset: str, request: TokenRequest) -> bool:
    """Asked in two steps, as for each item of a batch, and refused in the same words as at once."""
    try:
        permit(NARROWED, Action.SIGN, keyset).require(request)
    except (Forbidden, NotGranted) as error:
        with pytest.raises(type(error)) as caught:
            require(NARROWED, Action.SIGN, keyset, request)
        assert str(caught.value) == str(error)
        return False
    return True


def test_the_refusal_names_the_claim_and_the_callers_own_rule() -> None:
    with pytest.raises(NotGranted) as caught:
        require(NARROWED, Action.SIGN, "inventory", TokenRequest({"tenant": "other"}, 10))
    assert caught.value.member == "tenant"
    text = str(caught.value)
    assert "clients" not in text
    for part in ("g2", "tenant", '"acme"'):
        assert part in text
    with pytest.raises(Forbidden) as plain:
        require(NARROWED, Action.SIGN, "other", TokenRequest({"tenant": "acme"}, 10))
    assert not isinstance(plain.value, NotGranted)


@pytest.mark.parametrize("value", ["canary", ["acme", "canary"], {"canary": 1}, {"a": ["canary"]}])
def test_no_refusal_repeats_a_value(value: Any) -> None:
    """Who sent it knows it; others may read the answer: proxies, logs of the caller."""
    with pytest.raises(NotGranted) as caught:
        require(NARROWED, Action.SIGN, "inventory", TokenRequest({"tenant": value}, 10))
    assert "canary" not in str(caught.value)


def test_without_a_request_narrowing_is_told_and_not_judged() -> None:
    decision = decide(NARROWED, Action.SIGN, "inventory")
    assert decision == Decision(
        True,
        "g2",
        'It allows sign with keysets named inv*. Tokens must have tenant "acme"; '
        "a lifetime of at most 60 s.",
    )


def test_every_action_alone_on_every_keyset() -> None:
    """Principals x actions x keysets: each has what its grant says, and nothing more."""
    principals = {
        (granted, pattern): Principal("p", (Grant(frozenset({granted}), (pattern,), rule="g"),))
        for granted, pattern in product(Action, ("a", "b-*"))
    }
    covered = {"a": {"a"}, "b-*": {"b-1", "b-2"}}
    for (granted, pattern), principal in principals.items():
        for action, keyset in product(Action, ("a", "b-1", "b-2", "c")):
            expected = action is granted and keyset in covered[pattern]
            decision = decide(principal, action, keyset)
            assert decision.allowed is expected is principal.may(action, keyset)
            assert bool(decision.rule) is expected
