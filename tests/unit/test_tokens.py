"""Token rules: what a caller may say, what only the service says, and who is told what."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsjwks.domain.errors import ClaimRejected, InvalidRequest
from kmsjwks.domain.strictjson import dumps, loads
from kmsjwks.domain.tokenrules import (
    JTI_POLICIES,
    NBF_POLICIES,
    complete,
    fingerprint,
)
from kmsjwks.domain.tokens import LEEWAY, TokenContent, TokenRules, build_token, check_rules
from kmsjwks.storage import rows

NOW = 1_900_000_000
RULES = TokenRules(issuer="https://issuer.example")
HUGE = 10**400


def _build(
    claims: dict[str, Any] | None = None,
    rules: TokenRules = RULES,
    *,
    ttl: Any = None,
    headers: dict[str, Any] | None = None,
) -> TokenContent:
    return build_token(rules, claims or {}, ttl=ttl, headers=headers or {}, now=NOW, jti="made")


def _rejected(
    member: str,
    claims: dict[str, Any] | None = None,
    rules: TokenRules = RULES,
    *,
    ttl: Any = None,
    headers: dict[str, Any] | None = None,
) -> str:
    with pytest.raises(ClaimRejected) as caught:
        _build(claims, rules, ttl=ttl, headers=headers)
    assert caught.value.member == member
    assert caught.value.code == "claim-rejected"
    return str(caught.value)


def test_an_empty_request_gives_a_complete_token() -> None:
    token = _build()
    assert token.claims == {
        "iss": "https://issuer.example",
        "iat": NOW,
        "exp": NOW + RULES.default_lifetime,
        "jti": "made",
    }
    assert token.header == {"typ": "JWT"}
    assert (token.exp, token.jti) == (NOW + 300, "made")


# What the caller may not say


@pytest.mark.parametrize("name", ["iss", "iat"])
@pytest.mark.parametrize("value", ["https://issuer.example", NOW, None, "", {}])
def test_stamped_claims_are_refused_even_with_the_right_value(name: str, value: object) -> None:
    _rejected(name, {name: value})


@pytest.mark.parametrize(
    "name",
    [
        *("alg", "kid", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit"),  # RFC 7515 4.1
        *("b64", "enc", "zip"),  # RFC 7797, RFC 7516
    ],
)
@pytest.mark.parametrize("value", ["ES256", "", None, [], {}])
def test_header_parameters_that_are_ours_are_refused(name: str, value: object) -> None:
    message = _rejected(name, headers={name: value})
    assert "set by the service" in message


@pytest.mark.parametrize("name", ["ALG", "Kid", "x5t#s256", "foo", "", "typ ", "iss", "nonce"])
def test_unknown_header_parameters_are_refused(name: str) -> None:
    _rejected(name, headers={name: "value"})


def test_a_long_unknown_header_name_is_not_echoed_whole() -> None:
    assert len(_rejected("x" * 64, headers={"x" * 10_000: 1})) < 200


def test_typ_and_cty_may_be_said() -> None:
    token = _build(headers={"typ": "JWT", "cty": "JWT"})
    assert token.header == {"typ": "JWT", "cty": "JWT"}


def test_typ_comes_from_the_rules() -> None:
    rules = replace(RULES, typ="at+jwt")
    assert _build(rules=rules).header == {"typ": "at+jwt"}
    _rejected("typ", rules=rules, headers={"typ": "JWT"})


@pytest.mark.parametrize("value", ["", "x" * 129, 1, None, ["JWT"], True, {"a": "b"}])
def test_cty_is_a_short_string(value: object) -> None:
    _rejected("cty", headers={"cty": value})


# Expiry


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, -1, -HUGE])
def test_exp_that_is_not_in_the_future_is_refused(exp: int) -> None:
    assert "past" in _rejected("exp", {"exp": exp})


@pytest.mark.parametrize(
    "exp", [True, False, 1.5, float(NOW + 60), str(NOW + 60), None, [], [NOW + 60], {}]
)
def test_exp_must_be_an_integer(exp: object) -> None:
    assert "integer" in _rejected("exp", {"exp": exp})


@pytest.mark.parametrize("seconds", [1, 2, 3599, 3600])
def test_exp_and_ttl_up_to_the_maximum_are_taken(seconds: int) -> None:
    assert _build({"exp": NOW + seconds}).exp == NOW + seconds
    token = _build(ttl=seconds)
    assert token.exp == token.claims["exp"] == NOW + seconds


@pytest.mark.parametrize("seconds", [3601, 10**6, 10**18])
def test_above_the_maximum_is_an_error_and_not_cut(seconds: int) -> None:
    assert "3600" in _rejected("exp", {"exp": NOW + seconds})
    assert "3600" in _rejected("ttl", ttl=seconds)


@pytest.mark.parametrize("ttl", [0, -1, -HUGE, True, False, 1.0, 60.5, "60", [60], {}])
def test_ttl_must_be_a_positive_integer(ttl: object) -> None:
    assert "positive integer" in _rejected("ttl", ttl=ttl)


def test_ttl_and_exp_together_are_refused() -> None:
    _rejected("exp", {"exp": NOW + 60}, ttl=60)


@pytest.mark.parametrize("sign", [1, -1])
def test_huge_integers_are_refused_in_no_time(sign: int) -> None:
    started = perf_counter()
    for number in (sign * HUGE, sign * 10**5000, sign * 2**200_000):
        _rejected("exp", {"exp": number})
        _rejected("nbf", {"nbf": number})
        _rejected("ttl", ttl=number)
    assert perf_counter() - started < 1


# Not before


@pytest.mark.parametrize("nbf", [NOW - LEEWAY, NOW, NOW + 1, NOW + 59])
def test_nbf_within_the_leeway_and_before_exp_is_taken(nbf: int) -> None:
    assert _build({"nbf": nbf}, ttl=60).claims["nbf"] == nbf


@pytest.mark.parametrize("nbf", [NOW - LEEWAY - 1, 0, -1, NOW + 60, NOW + 61, HUGE])
def test_nbf_elsewhere_is_refused(nbf: int) -> None:
    _rejected("nbf", {"nbf": nbf}, ttl=60)


@pytest.mark.parametrize("nbf", [True, float(NOW), str(NOW), None, []])
def test_nbf_must_be_an_integer(nbf: object) -> None:
    assert "integer" in _rejected("nbf", {"nbf": nbf})


# Subject and identifier


@pytest.mark.parametrize("name", ["sub", "jti"])
@pytest.mark.parametrize("value", ["", "x" * 1025, 7, None, True, ["a"], {}])
def test_sub_and_jti_are_strings_of_a_sane_length(name: str, value: object) -> None:
    _rejected(name, {name: value})


@pytest.mark.parametrize("value", ["x", "x" * 1024, "ü😀"])
def test_sub_and_jti_of_the_caller_are_kept(value: str) -> None:
    token = _build({"sub": value, "jti": value})
    assert token.jti == token.claims["jti"] == token.claims["sub"] == value


# Audience


@pytest.mark.parametrize(
    "aud", ["", [], [""], ["a", ""], ["a", 1], 1, None, True, {}, [None], [[]]]
)
def test_aud_is_a_string_or_a_list_of_strings(aud: object) -> None:
    _rejected("aud", {"aud": aud})
    _rejected("aud", {"aud": aud}, replace(RULES, audiences=("a",)))


@pytest.mark.parametrize("aud", ["anything", ["a", "b"]])
def test_any_audience(aud: object) -> None:
    assert _build({"aud": aud}).claims["aud"] == aud
    assert "aud" not in _build().claims


@pytest.mark.parametrize("aud", ["a", "b", ["a"], ["a", "b"], ["b", "a"]])
def test_allowed_audiences_are_taken(aud: object) -> None:
    assert _build({"aud": aud}, replace(RULES, audiences=("a", "b"))).claims["aud"] == aud


@pytest.mark.parametrize("aud", ["c", "A", "a ", ["a", "c"], ["c"], "*", ["*"], "a,b"])
def test_other_audiences_are_refused(aud: object) -> None:
    assert "a, b" in _rejected("aud", {"aud": aud}, replace(RULES, audiences=("a", "b")))


def test_where_audiences_are_listed_one_is_required() -> None:
    assert "required" in _rejected("aud", {}, replace(RULES, audiences=("a",)))


# Required and forbidden


def test_required_claims() -> None:
    rules = replace(RULES, required=("sub", "tenant"))
    _rejected("sub", {"tenant": 1}, rules)
    _rejected("tenant", {"sub": "me"}, rules)
    empties: tuple[object, ...] = (None, "", [], {})
    for empty in empties:
        _rejected("tenant", {"sub": "me", "tenant": empty}, rules)
    assert _build({"sub": "me", "tenant": 0}, rules).claims["tenant"] == 0


def test_stamped_claims_count_as_present() -> None:
    _build(rules=replace(RULES, required=("iss", "iat", "exp", "jti")))


def test_forbidden_claims() -> None:
    rules = replace(RULES, forbidden=("scope", "jti", "exp"))
    _rejected("scope", {"scope": None}, rules)
    _rejected("jti", {"jti": "mine"}, rules)
    _rejected("exp", {"exp": NOW + 60}, rules)
    assert _build({"Scope": "x"}, rules).claims["jti"] == "made"


# Whatever is asked, what comes out

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**50), 10**50) | _NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=10,
)
_REGISTERED = {"iss", "iat", "exp", "nbf", "aud", "sub", "jti"}
_WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_CALLERS = st.builds(
    lambda own, known: {**own, **known},
    st.dictionaries(_NAMES.filter(lambda name: name not in _REGISTERED), _JSON, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "sub": _WORDS,
            "jti": _WORDS,
            "aud": _WORDS | st.lists(_WORDS, min_size=1, max_size=3),
            "nbf": st.integers(NOW - LEEWAY, NOW),
        },
    ),
)


@given(claims=_CALLERS, maximum=st.integers(1, 10**6), data=st.data())
def test_valid_requests_give_bounded_complete_unaltered_tokens(
    claims: dict[str, Any], maximum: int, data: st.DataObject
) -> None:
    rules = replace(
        RULES, max_lifetime=maximum, default_lifetime=data.draw(st.integers(1, maximum))
    )
    ttl = data.draw(st.none() | st.integers(1, maximum))
    if ttl is None and data.draw(st.booleans()):
        claims["exp"] = NOW + data.draw(st.integers(1, maximum))
    before = dumps(claims)
    token = _build(claims, rules, ttl=ttl)
    assert dumps(claims) == before
    assert {"iss", "iat", "exp", "jti"} <= token.claims.keys()
    assert (token.claims["iss"], token.claims["iat"]) == (rules.issuer, NOW)
    assert token.claims["exp"] == token.exp
    assert 0 < token.exp - NOW <= maximum
    kept = {name: value for name, value in token.claims.items() if name in claims}
    assert kept == claims
    assert token.claims.keys() - claims.keys() <= {"iss", "iat", "exp", "jti"}
    assert loads(dumps(token.claims)) == token.claims


@given(
    claims=st.dictionaries(st.sampled_from(sorted(_REGISTERED)) | _NAMES, _JSON, max_size=6),
    ttl=_JSON,
    headers=st.dictionaries(st.sampled_from(["typ", "cty", "alg"]) | _NAMES, _JSON, max_size=2),
)
def test_any_json_is_built_within_bounds_or_rejected(
    claims: dict[str, Any], ttl: Any, headers: dict[str, Any]
) -> None:
    try:
        token = _build(claims, ttl=ttl, headers=headers)
    except ClaimRejected as error:
        assert error.member in {*claims, *headers, "ttl"}
        return
    assert 0 < token.exp - NOW <= RULES.max_lifetime
    assert token.header.keys() <= {"typ", "cty"}


# Rules, when they are written


@pytest.mark.parametrize(
    "issuer",
    [
        "https://issuer.example",
        "http://127.0.0.1:8080",
        "https://issuer.example/tenants/one",
        "https://[2001:db8::1]:8443",
    ],
)
def test_http_urls_are_issuers(issuer: str) -> None:
    rules = replace(RULES, issuer=issuer)
    assert check_rules(rules) is rules


@pytest.mark.parametrize(
    "issuer",
    [
        *("", "issuer.example", "https:", "https://", "//issuer.example", "ftp://issuer.example"),
        *("urn:example:issuer", "https:///path", "javascript:alert(1)"),
        *("https://issuer.example/", "https://issuer.example/a/"),
        *("https://issuer.example?tenant=1", "https://issuer.example#a"),
        *("https://issuer.example?", "https://issuer.example#", "https://issuer.example/a?#"),
        *("https://[2001:db8::1", "https://2001:db8::1]"),
        *("https://issuer.example:99999", "https://issuer.example:port"),
        *("https://issuer .example", " https://issuer.example", "https://issuer.example "),
        *("https://issuer.example\n", "https://is\nsuer.example", "https://is\tsuer.example"),
        *("https://issuer.example/\0", "https://issuer.exampl\u00e9"),
        *("https://user:secret@issuer.example/a", "https://user@issuer.example/a"),
        *(
            "https://issuer.example/../a",
            "https://issuer.example/a/./b",
            "https://issuer.example/..",
        ),
        *("https://issuer.example/%2e%2E/a", "https://issuer.example/a/%2e/b"),
        *("https://issuer.example\\a", 'https://issuer.example/"', "https://issuer.example/<a>"),
    ],
)
def test_what_is_not_an_issuer_is_refused(issuer: str) -> None:
    with pytest.raises(InvalidRequest, match="issuer"):
        check_rules(replace(RULES, issuer=issuer))


@pytest.mark.parametrize("maximum", [0, -1, 366 * 24 * 3600 + 1])
def test_the_maximum_lifetime_is_bounded(maximum: int) -> None:
    with pytest.raises(InvalidRequest, match="maximum lifetime"):
        check_rules(replace(RULES, max_lifetime=maximum))


@pytest.mark.parametrize("default", [0, -1, 3601])
def test_the_default_lifetime_lies_within_the_maximum(default: int) -> None:
    with pytest.raises(InvalidRequest, match="default lifetime"):
        check_rules(replace(RULES, default_lifetime=default))


@pytest.mark.parametrize(("maximum", "default"), [(1, 1), (366 * 24 * 3600, 366 * 24 * 3600)])
def test_lifetimes_at_their_limits(maximum: int, default: int) -> None:
    check_rules(replace(RULES, max_lifetime=maximum, default_lifetime=default))


def test_some_audience_must_be_allowed() -> None:
    with pytest.raises(InvalidRequest, match="audience"):
        check_rules(replace(RULES, audiences=()))


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/at+jwt", 'application/x;part="1/2"'])
def test_media_type_names(typ: str) -> None:
    assert check_rules(replace(RULES, typ=typ)).typ == typ


@pytest.mark.parametrize(
    "typ", ["", "JWT\n", "J\u00dcT", "a\0b", "a b", " JWT", "a/b/c", "a/", ";x=1"]
)
def test_typ_must_be_printable_ascii(typ: str) -> None:
    with pytest.raises(InvalidRequest, match="typ"):
        check_rules(replace(RULES, typ=typ))


def test_a_claim_cannot_be_both_required_and_forbidden() -> None:
    with pytest.raises(InvalidRequest, match="scope, tenant"):
        check_rules(
            replace(RULES, required=("tenant", "sub", "scope"), forbidden=("scope", "tenant"))
        )


# Fixed and allowed claims, nbf and jti, profiles

ACCESS = complete(TokenRules(issuer="https://issuer.example", typ="", profile="at+jwt"))
ACCESS_CLAIMS: dict[str, Any] = {"sub": "alice", "aud": "https://api", "client_id": "app"}


def test_fixed_claims_are_stamped() -> None:
    rules = replace(RULES, fixed={"tenant": "acme", "level": 3, "roles": ["a", {"b": None}]})
    token = _build({"sub": "alice"}, rules)
    assert token.claims["tenant"] == "acme"
    assert (token.claims["level"], token.claims["roles"]) == (3, ["a", {"b": None}])
    assert _build({"tenant": "acme", "level": 3}, rules).claims == {
        name: value for name, value in token.claims.items() if name != "sub"
    }


@pytest.mark.parametrize(
    ("fixed", "sent"),
    [
        (1, True),
        (1, 1.0),
        ("1", 1),
        (True, 1),
        ("a", "A"),
        (["a"], "a"),
        ([1], [True]),
        ("a", None),
    ],
)
def test_another_value_than_the_fixed_one_is_refused(fixed: object, sent: object) -> None:
    message = _rejected("level", {"level": sent}, replace(RULES, fixed={"level": fixed}))
    assert "fixed" in message


def test_a_fixed_audience_need_not_be_sent() -> None:
    rules = check_rules(replace(RULES, audiences=("a", "b"), fixed={"aud": "a"}))
    assert _build({}, rules).claims["aud"] == "a"
    _rejected("aud", {"aud": "b"}, rules)


def test_only_allowed_claims_may_be_sent() -> None:
    rules = check_rules(replace(RULES, allowed=("sub",), required=("tenant",), fixed={"level": 1}))
    _build({"sub": "a", "tenant": "b", "level": 1, "aud": "c", "exp": NOW + 9, "jti": "d"}, rules)
    message = _rejected("admin", {"sub": "a", "tenant": "b", "admin": True}, rules)
    assert "allow" in message


@pytest.mark.parametrize(
    ("policy", "sent", "outcome"),
    [
        ("allowed", True, NOW), ("allowed", False, None),
        ("stamped", True, "refused"), ("stamped", False, NOW),
        ("required", True, NOW), ("required", False, "refused"),
        ("forbidden", True, "refused"), ("forbidden", False, None),
    ],
)  # fmt: skip
def test_nbf_policies(policy: str, sent: bool, outcome: object) -> None:
    rules = check_rules(replace(RULES, nbf=policy))
    claims = {"nbf": NOW} if sent else {}
    if outcome == "refused":
        _rejected("nbf", claims, rules)
    else:
        assert _build(claims, rules).claims.get("nbf") == outcome


@pytest.mark.parametrize(
    ("policy", "sent", "outcome"),
    [
        ("allowed", True, "mine"), ("allowed", False, "made"),
        ("stamped", True, "refused"), ("stamped", False, "made"),
        ("required", True, "mine"), ("required", False, "refused"),
    ],
)  # fmt: skip
def test_jti_policies(policy: str, sent: bool, outcome: str) -> None:
    rules = check_rules(replace(RULES, jti=policy))
    claims = {"jti": "mine"} if sent else {}
    if outcome == "refused":
        _rejected("jti", claims, rules)
    else:
        assert _build(claims, rules).claims["jti"] == outcome


def test_an_access_token_of_rfc_9068() -> None:
    check_rules(ACCESS)
    token = _build({**ACCESS_CLAIMS, "scope": "read write", "amr": ["pwd"]}, ACCESS)
    assert token.header == {"typ": "at+jwt"}
    assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= token.claims.keys()


@pytest.mark.parametrize("missing", list(ACCESS_CLAIMS))
def test_an_access_token_lacks_nothing(missing: str) -> None:
    _rejected(missing, {k: v for k, v in ACCESS_CLAIMS.items() if k != missing}, ACCESS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("client_id", 7), ("client_id", ""), ("scope", ["read"]), ("scope", ""),
        ("scope", "read  write"), ("scope", 'a"b'), ("scope", "läsen"), ("auth_time", "now"),
        ("auth_time", True), ("acr", 1), ("amr", "pwd"), ("amr", []), ("amr", [1]),
    ],
)  # fmt: skip
def test_claims_of_an_access_token_have_their_types(name: str, value: object) -> None:
    message = _rejected(name, {**ACCESS_CLAIMS, name: value}, ACCESS)
    assert "RFC 9068" in message
    _build({**ACCESS_CLAIMS, name: value})  # only the profile says so


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fixed": {"a": 1}, "forbidden": ("a",)}, "both fixed and forbidden: a"),
        ({"allowed": ("a",), "forbidden": ("a",)}, "both allowed and forbidden: a"),
        ({"fixed": {"iss": "x"}}, "iss cannot be fixed"),
        ({"fixed": {"exp": 1}}, "exp cannot be fixed"),
        ({"fixed": {"nbf": 1}}, "nbf cannot be fixed"),
        ({"fixed": {"jti": "x"}}, "jti cannot be fixed"),
        ({"fixed": {"sub": 1}}, "fixed claim sub"),
        ({"fixed": {"a": None}}, "a has no value"),
        ({"fixed": {"a": float("nan")}}, "JSON"),
        ({"fixed": {"aud": "c"}, "audiences": ("a",)}, "fixed claim aud"),
        ({"forbidden": ("iat",)}, "iat cannot be forbidden"),
        ({"forbidden": ("aud",), "audiences": ("a",)}, "aud is forbidden"),
        ({"forbidden": ("nbf",), "nbf": "stamped"}, "policy is 'stamped'"),
        ({"forbidden": ("jti",), "jti": "required"}, "policy is 'required'"),
        ({"required": ("nbf",), "nbf": "forbidden"}, "policy is 'forbidden'"),
        ({"nbf": "never"}, "nbf policy"),
        ({"jti": "forbidden"}, "jti policy"),
        ({"required": ("",)}, "required must have 1 to 128"),
        ({"audiences": ("",)}, "audience is empty"),
        ({"profile": "id"}, "no profile"),
    ],
)
def test_rules_that_cannot_hold_are_refused_when_written(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_rules(replace(RULES, **changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"typ": "JWT"}, "typ 'at+jwt'"),
        ({"required": ("aud", "sub")}, "requires iss"),
        ({"forbidden": ("client_id",), "required": ()}, "client_id is forbidden"),
        ({"fixed": {"client_id": 1}}, "fixed claim client_id"),
        ({"fixed": {"scope": "a  b"}}, "fixed claim scope"),
    ],
)
def test_a_profile_is_not_undone(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest):
        check_rules(replace(ACCESS, **changes))
    found = [str(why) for why in (_why(replace(ACCESS, **changes)),)]
    assert says in found[0]


def _why(rules: TokenRules) -> str:
    """All that is wrong, by taking away the required claims that are named first."""
    try:
        check_rules(rules)
    except InvalidRequest as error:
        text = str(error)
        name = text.partition("requires ")[2].partition(" (")[0]
        if name and "is forbidden" not in text and name not in rules.required:
            return text + " " + _why(replace(rules, required=(*rules.required, name)))
        return text
    return ""


_RULED = ("sub", "aud", "tenant", "scope", "nbf", "jti", "exp")
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "sub": st.sampled_from(["alice", "bob", "", 7]),
    "aud": st.sampled_from(["api", "other", ["api"], ["api", "other"], [], 1]),
    "tenant": st.sampled_from(["acme", "evil", 1, True, None, []]),
    "scope": st.sampled_from(["read", "read write", "", ["read"]]),
    "nbf": st.sampled_from([NOW, NOW - LEEWAY - 1, NOW + 10**9, "now"]),
    "jti": st.sampled_from(["mine", "", 3]),
    "exp": st.sampled_from([NOW + 60, NOW - 1, NOW + 10**9]),
}
_CLAIMS = st.fixed_dictionaries({}, optional=_VALUES)
_SOME = st.lists(st.sampled_from(_RULED), unique=True, max_size=3).map(tuple)
_RULES = st.builds(
    TokenRules,
    issuer=st.just("https://issuer.example"),
    audiences=st.sampled_from([("*",), ("api",), ("api", "other")]),
    typ=st.just(""),
    max_lifetime=st.just(600),
    required=_SOME,
    forbidden=_SOME,
    fixed=st.fixed_dictionaries(
        {}, optional={name: _VALUES[name] for name in ("sub", "aud", "tenant", "scope")}
    ),
    allowed=st.just(()) | _SOME,
    nbf=st.sampled_from(NBF_POLICIES),
    jti=st.sampled_from(JTI_POLICIES),
    profile=st.sampled_from(["", "", "at+jwt"]),
)


def _broken(rules: TokenRules, claims: dict[str, Any]) -> set[str]:
    """Every claim that breaks a rule, told in another way than the service does."""
    wanted = {**claims, **rules.fixed}
    audience, exp = wanted.get("aud"), claims.get("exp", NOW + rules.default_lifetime)
    audiences = audience if isinstance(audience, list) else [audience]
    free = {*rules.allowed, *rules.required, *rules.fixed, "aud", "exp", "nbf", "jti"}
    policies = (("nbf", rules.nbf), ("jti", rules.jti))
    never = ("stamped", "forbidden")
    checks = {
        "sub": "sub" not in claims or claims["sub"] in ("alice", "bob"),
        "jti": "jti" not in claims or claims["jti"] == "mine",
        "exp": NOW < exp <= NOW + rules.max_lifetime,
        "nbf": "nbf" not in claims or (claims["nbf"] == NOW and exp > NOW),
        "aud": (audience is None and "*" in rules.audiences)
        or (
            all(isinstance(one, str) and {"*", one} & set(rules.audiences) for one in audiences)
            and audiences != []
        ),
        "scope": not rules.profile or wanted.get("scope", "read") in ("read", "read write"),
    }
    present = {**wanted, "iss": 1, "iat": 1, "exp": 1, "jti": 1}
    if rules.nbf == "stamped":
        present["nbf"] = 1
    return {
        *(name for name, holds in checks.items() if not holds),
        *(n for n in rules.required if not present.get(n) and present.get(n) is not False),
        *(n for n in claims if n in rules.fixed and dumps(claims[n]) != dumps(rules.fixed[n])),
        *(n for n in claims if rules.allowed and n not in free),
        *(n for n in claims if n in rules.forbidden),
        *(n for n, policy in policies if n in claims and policy in never),
        *(n for n, policy in policies if n not in claims and policy == "required"),
    }  # fmt: skip


@settings(max_examples=400)
@given(rules=_RULES, claims=_CLAIMS)
def test_every_rule_holds_in_what_is_signed_or_names_what_it_refuses(
    rules: TokenRules, claims: dict[str, Any]
) -> None:
    rules = complete(rules)
    try:
        check_rules(rules)
    except InvalidRequest:
        return
    broken = _broken(rules, claims)
    try:
        signed = _build(claims, rules).claims
    except ClaimRejected as refused:
        assert refused.member in broken
        return
    assert not broken
    assert signed.items() >= rules.fixed.items()
    assert all(signed[name] not in (None, "", []) for name in rules.required)
    assert not claims.keys() & set(rules.forbidden)
    assert not rules.allowed or claims.keys() <= {
        *rules.allowed, *rules.required, *rules.fixed, "aud", "exp", "nbf", "jti"
    }  # fmt: skip
    assert NOW < signed["exp"] <= NOW + rules.max_lifetime
    assert signed["iss"] == rules.issuer
    assert signed["jti"] == ("made" if rules.jti == "stamped" else claims.get("jti", "made"))
    assert ("nbf" in claims) is ("nbf" in signed) or rules.nbf == "stamped"
    assert "nbf" not in signed or (rules.nbf != "forbidden" and signed["nbf"] < signed["exp"])
    audience = signed.get("aud", [])
    assert "*" in rules.audiences or audience
    for one in audience if isinstance(audience, list) else [audience]:
        assert {"*", one} & set(rules.audiences)
    if rules.profile:
        assert {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} <= signed.keys()


@given(rules=_RULES)
def test_rules_are_stored_and_read_as_they_are(rules: TokenRules) -> None:
    stored = rows.rules_to_text(rules)
    assert fingerprint(rows.rules_from_text(stored)) == fingerprint(rules)


def test_rules_of_older_databases_are_read() -> None:
    old = (
        '{"issuer":"https://issuer.example","audiences":["*"],"typ":"JWT","max_lifetime":3600,'
        '"default_lifetime":300,"required":["sub"],"forbidden":[]}'
    )
    rules = rows.rules_from_text(old)
    assert rules == replace(RULES, required=("sub",))
    assert rows.rules_to_text(rules) == old, "so that older replicas read it too"


def test_true_and_1_are_different_rules() -> None:
    one, true = replace(RULES, fixed={"a": 1}), replace(RULES, fixed={"a": True})
    assert fingerprint(one) != fingerprint(true)
    assert fingerprint(one) == fingerprint(replace(RULES, fixed={"a": 1}))
