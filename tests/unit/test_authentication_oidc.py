"""JWTs of trusted issuers: the right ones, and every forgery."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from kmsjwks.config import OidcSettings
from kmsjwks.config.identities import DEFAULT_ALGORITHMS
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import Unavailable
from kmsjwks.domain.principals import TokenIdentity
from kmsjwks.http.authentication.fetching import FetchFailed
from kmsjwks.http.authentication.issuer_keys import FETCH_GAP, FRESH_FOR, IssuerKeys
from kmsjwks.http.authentication.oidc import OidcTokens, TrustedIssuer
from tests.support.idp import AUDIENCE, NOW, Idp, b64, compact, make_key

ISSUER = "https://idp.example"
SUBJECT = "system:serviceaccount:prod:api"


class Clock:
    """Both clocks of the code under test."""

    def __init__(self) -> None:
        self.time = float(NOW)

    def now(self) -> float:
        return self.time


@pytest.fixture(scope="module")
def idp() -> Idp:
    return Idp(ISSUER)


def settings(**more: Any) -> OidcSettings:
    given: dict[str, Any] = {
        "issuer": ISSUER,
        "enabled": True,
        "audiences": (AUDIENCE, "other"),
        "jwks_uri": f"{ISSUER}/keys",
        "algorithms": DEFAULT_ALGORITHMS,
        "leeway": 60,
        "ca_file": None,
        "token_file": None,
        "allow_loopback_http": False,
        **more,
    }
    return OidcSettings(**given)


def tokens(idp: Idp, *identities: TokenIdentity, **more: Any) -> OidcTokens:
    """Accepts ``identities`` (by default: the subject of the IdP's tokens) as c0, c1, ..."""
    wanted = identities or (TokenIdentity(ISSUER, SUBJECT),)
    clock = Clock()
    keys = IssuerKeys(ISSUER, idp.jwks, clock.now)
    clients = [(one, Principal(f"c{index}")) for index, one in enumerate(wanted)]
    return OidcTokens([TrustedIssuer(settings(**more), keys)], clients, clock)


def test_a_valid_token(idp: Idp) -> None:
    assert tokens(idp).principal_of(idp.token()) == Principal("c0")


@pytest.mark.parametrize(
    ("kid", "alg"), [("ec", "ES256"), ("rsa", "RS256"), ("rsa", "PS512"), ("ed", "EdDSA")]
)
def test_algorithms(kid: str, alg: str) -> None:
    idp = Idp(ISSUER)
    idp.keys["ed"] = make_key("Ed25519", "ed")
    token = compact({"alg": alg, "kid": kid}, idp.claims(), idp.keys[kid])
    assert tokens(idp).principal_of(token) is not None
    others = tuple(one for one in DEFAULT_ALGORITHMS if one != alg)
    assert tokens(idp, algorithms=others).principal_of(token) is None


@pytest.mark.parametrize(
    "more",
    [
        {"exp": NOW + 1},
        {"exp": NOW - 59},
        {"exp": NOW + 0.5},
        {"nbf": NOW + 60},
        {"iat": NOW + 60},
        {"iat": None},
        {"aud": "other"},
        {"aud": ["somebody", AUDIENCE]},
    ],
)
def test_still_valid(idp: Idp, more: dict[str, Any]) -> None:
    assert tokens(idp).principal_of(idp.token(**more)) is not None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"exp": NOW - 60}, "expired"),
        ({"exp": None}, "no exp"),
        ({"exp": str(NOW + 300)}, "exp is no number"),
        ({"exp": True}, "exp is no number"),
        ({"nbf": NOW + 61}, "nbf is in the future"),
        ({"nbf": "now"}, "nbf is no number"),
        ({"iat": NOW + 61}, "iat is in the future"),
        ({"aud": "somebody"}, "another audience"),
        ({"aud": AUDIENCE + "/"}, "another audience"),
        ({"aud": []}, "another audience"),
        ({"aud": [[AUDIENCE]]}, "another audience"),
        ({"aud": {AUDIENCE: 1}}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"iss": "https://evil.example"}, "not trusted"),
        ({"iss": ISSUER + "/"}, "not trusted"),
        ({"iss": [ISSUER]}, "not trusted"),
        ({"iss": None}, "not trusted"),
        ({"sub": "system:serviceaccount:prod:other"}, "of no client"),
        ({"sub": None}, "of no client"),
        ({"sub": [SUBJECT]}, "of no client"),
    ],
)
def test_wrong_claims(
    idp: Idp, caplog: pytest.LogCaptureFixture, more: dict[str, Any], reason: str
) -> None:
    token = idp.token(**more)
    with caplog.at_level(logging.INFO):
        assert tokens(idp).principal_of(token) is None
    assert reason in caplog.text
    assert token not in caplog.text


def _none(idp: Idp, alg: str = "none") -> str:
    return f"{b64(json.dumps({'alg': alg}).encode())}.{b64(json.dumps(idp.claims()).encode())}."


def _hs256_with_the_public_key(idp: Idp) -> str:
    """Key confusion: the public key, in PEM, taken for an HMAC key."""
    key = idp.keys["rsa"]
    assert isinstance(key, RSAKey)
    pem = key.as_pem(private=False)
    head = b64(json.dumps({"alg": "HS256", "kid": "rsa"}).encode())
    text = f"{head}.{b64(json.dumps(idp.claims()).encode())}"
    return f"{text}.{b64(hmac.digest(pem, text.encode(), 'sha256'))}"


def _own_key(idp: Idp, kid: str | None = "ec", **header: Any) -> str:
    own = make_key("P-256", "ec")
    whole = {"alg": "ES256", **({"kid": kid} if kid else {}), **header}
    if "jwk" in whole:
        whole["jwk"] = {**own.as_dict(private=False), "kid": "ec"}
    return compact(whole, idp.claims(), own)


def _cut(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


FORGERIES: dict[str, tuple[Callable[[Idp], str], str]] = {
    "none": (_none, "alg is not one"),
    "None": (lambda idp: _none(idp, "None"), "alg is not one"),
    "hs256 with the public key": (_hs256_with_the_public_key, "alg is not one"),
    "own key": (_own_key, "signature"),
    "own key, no kid": (lambda idp: _own_key(idp, None), "signature"),
    "own key, unknown kid": (lambda idp: _own_key(idp, "mine"), "no key of the issuer"),
    "jwk": (lambda idp: _own_key(idp, jwk=True), "brings a key"),
    "jku": (lambda idp: _own_key(idp, jku="https://evil.example/k"), "brings a key"),
    "x5u": (lambda idp: _own_key(idp, x5u="https://evil.example/c"), "brings a key"),
    "x5c": (lambda idp: _own_key(idp, x5c=["MIIB"]), "brings a key"),
    "jku beside the right key": (lambda idp: idp.token({"jku": ISSUER}), "brings a key"),
    "kid of another type's key": (lambda idp: idp.token({"kid": "rsa"}), "none for its alg"),
    "kid that is a path": (lambda idp: idp.token({"kid": "../ec"}), "no key of the issuer"),
    "kid that is too long": (lambda idp: idp.token({"kid": "x" * 300}), "its kid is no kid"),
    "no signature": (lambda idp: _cut(idp.token(), 2, lambda _: ""), "signature"),
    "other claims": (
        lambda idp: _cut(
            idp.token(), 1, lambda _: b64(json.dumps(idp.claims(exp=NOW + 301)).encode())
        ),
        "signature",
    ),
    "header twice": (
        lambda idp: _cut(idp.token(), 0, lambda _: b64(b'{"alg":"none","alg":"ES256","kid":"ec"}')),
        "not a JWT",
    ),
    "claims twice": (
        lambda idp: compact(
            {"alg": "ES256", "kid": "ec"},
            b'{"iss":"x",' + json.dumps(idp.claims()).encode()[1:],
            idp.keys["ec"],
        ),
        "not a JWT",
    ),
    "list of claims": (
        lambda idp: compact({"alg": "ES256", "kid": "ec"}, [1], idp.keys["ec"]),
        "not a JWT",
    ),
    "standard base64": (lambda idp: _cut(idp.token(), 0, lambda part: part + "+/"), "not a JWT"),
    "too long": (lambda idp: idp.token(x="y" * 17000), "too long"),
    "nothing": (lambda idp: "..", "not a JWT"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(idp: Idp, caplog: pytest.LogCaptureFixture, name: str) -> None:
    forge, reason = FORGERIES[name]
    token = forge(idp)
    with caplog.at_level(logging.INFO):
        assert tokens(idp).principal_of(token) is None
    assert reason in caplog.text


@pytest.mark.parametrize("name", ["crit", "b64"])
def test_extensions_are_refused(idp: Idp, caplog: pytest.LogCaptureFixture, name: str) -> None:
    header = {"alg": "ES256", "kid": "ec", name: ["b64"] if name == "crit" else False}
    text = b64(json.dumps(header).encode())
    token = _cut(idp.token(), 0, lambda _: text)
    with caplog.at_level(logging.INFO):
        assert tokens(idp).principal_of(token) is None
    assert "an extension" in caplog.text


@pytest.mark.parametrize("header", [{"nonce": "abc", "ver": 1}, {"kid": "ec", "x5t": "y" * 600}])
def test_other_header_parameters_are_ignored(idp: Idp, header: dict[str, Any]) -> None:
    """RFC 7515 section 4: what is not understood and not critical. Identity providers send such."""
    assert tokens(idp).principal_of(idp.token(header)) is not None


def test_what_is_no_jwt_is_somebody_elses(idp: Idp, caplog: pytest.LogCaptureFixture) -> None:
    assert tokens(idp).principal_of("kmsjwks_opaque") is None
    assert not caplog.records


def test_the_spelling_of_base64_is_not_a_second_token(idp: Idp) -> None:
    """Bits that base64 leaves over must not make two texts of one token."""
    token = idp.token()
    signature = base64.urlsafe_b64decode(token.split(".")[2] + "==")
    assert tokens(idp).principal_of(_cut(token, 2, lambda _: b64(signature))) is not None


class TestMapping:
    def test_claims(self, idp: Idp) -> None:
        wanted = TokenIdentity(ISSUER, claims={"email": "ci@example", "kubernetes.io": {"ns": "a"}})
        accepts = tokens(idp, wanted)
        right: dict[str, Any] = {
            "email": "ci@example",
            "kubernetes.io": {"ns": "a", "pod": {"name": "x"}},
        }
        assert accepts.principal_of(idp.token(**right)) is not None
        wrongs: tuple[dict[str, Any], ...] = (
            {**right, "email": "CI@example"},
            {**right, "email": ["ci@example"]},
            {**right, "kubernetes.io": {"ns": "b"}},
            {**right, "kubernetes.io": {"pod": {"ns": "a"}}},
            {**right, "kubernetes.io": "a"},
            {"email": "ci@example"},
        )
        for wrong in wrongs:
            assert accepts.principal_of(idp.token(**wrong)) is None

    def test_types_count(self, idp: Idp) -> None:
        accepts = tokens(idp, TokenIdentity(ISSUER, claims={"email_verified": True}))
        assert accepts.principal_of(idp.token(email_verified=True)) is not None
        for wrong in (1, "true", False, [True]):
            assert accepts.principal_of(idp.token(email_verified=wrong)) is None

    def test_spiffe_id(self, idp: Idp) -> None:
        accepts = tokens(idp, TokenIdentity(ISSUER, "spiffe://example.org/ns/prod/sa/api"))
        token = idp.token(sub="spiffe://example.org/ns/prod/sa/api")
        assert accepts.principal_of(token) is not None
        assert accepts.principal_of(idp.token(sub="spiffe://example.org/ns/prod/sa/api2")) is None

    def test_a_subject_of_another_issuer(self, idp: Idp) -> None:
        other = TokenIdentity("https://other.example", SUBJECT)
        assert tokens(idp, other).principal_of(idp.token()) is None

    def test_a_token_of_two_clients_is_nobodys(
        self, idp: Idp, caplog: pytest.LogCaptureFixture
    ) -> None:
        both = (TokenIdentity(ISSUER, SUBJECT), TokenIdentity(ISSUER, claims={"x": 1}))
        accepts = tokens(idp, *both)
        assert accepts.principal_of(idp.token()) == Principal("c0")
        assert accepts.principal_of(idp.token(x=1)) is None
        assert "of several clients: c0, c1" in caplog.text

    def test_the_log_tells_who_it_was(self, idp: Idp, caplog: pytest.LogCaptureFixture) -> None:
        tokens(idp).principal_of(idp.token(sub="x\nforged line"))
        assert "sub 'x\\nforged line'" in caplog.text


class Source:
    """Counts fetches; each can be held until it is let go."""

    def __init__(self, idp: Idp) -> None:
        self.idp, self.fetches, self.broken = idp, 0, False
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self) -> list[Any]:
        self.fetches += 1
        self.entered.set()
        assert self.go.wait(10)
        if self.broken:
            raise FetchFailed("down.")
        return self.idp.jwks()


class TestKeys:
    @pytest.fixture
    def source(self, idp: Idp) -> Source:
        return Source(Idp(ISSUER))

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def keys(self, source: Source, clock: Clock) -> IssuerKeys:
        return IssuerKeys(ISSUER, source, clock.now)

    def test_fetched_once(self, keys: IssuerKeys, source: Source) -> None:
        for _ in range(10):
            assert len(keys.find("ec")) == len(keys.find("rsa")) == 1
        assert source.fetches == 1

    def test_a_flood_of_unknown_kids(self, keys: IssuerKeys, source: Source, clock: Clock) -> None:
        """1000 a minute for five minutes: a fetch every 30 seconds, not more."""
        for step in range(5000):
            clock.time = NOW + step * 300 / 5000
            assert keys.find(f"unknown-{step}") == ()
        assert source.fetches == 10
        assert len(keys.find("ec")) == 1

    def test_a_new_key_is_found(self, keys: IssuerKeys, source: Source, clock: Clock) -> None:
        keys.find("ec")
        source.idp.keys["new"] = make_key("P-256", "new")
        clock.time += FETCH_GAP - 1
        assert keys.find("new") == ()
        clock.time += 1
        assert len(keys.find("new")) == 1
        assert source.fetches == 2

    def test_one_thread_fetches_and_the_others_use_what_is_there(
        self, keys: IssuerKeys, source: Source, clock: Clock
    ) -> None:
        keys.find("ec")
        clock.time += FETCH_GAP
        source.entered.clear()
        source.go.clear()
        fetching = threading.Thread(target=keys.find, args=("unknown",))
        fetching.start()
        assert source.entered.wait(10)
        clock.time += 10 * FETCH_GAP
        for number in range(100):  # would not return if they waited
            assert keys.find(f"u{number}") == ()
            assert len(keys.find("ec")) == 1
        source.go.set()
        fetching.join(10)
        assert source.fetches == 2

    def test_the_issuer_is_down(
        self, keys: IssuerKeys, source: Source, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys.find("ec")
        source.broken = True
        for _ in range(20):
            clock.time += FETCH_GAP
            assert keys.find("unknown") == ()
            assert len(keys.find("ec")) == 1
        assert "down" in caplog.text

    def test_the_issuer_was_never_up(self, keys: IssuerKeys, source: Source, clock: Clock) -> None:
        source.broken = True
        for _ in range(50):
            with pytest.raises(Unavailable):
                keys.find("ec")
        assert source.fetches == 1
        source.broken = False
        clock.time += FETCH_GAP
        assert len(keys.find("ec")) == 1

    def test_a_withdrawn_key_goes(self, keys: IssuerKeys, source: Source, clock: Clock) -> None:
        """Asked for aside: the token that shows that the keys are old does not wait."""
        keys.find("ec")
        del source.idp.keys["ec"]
        clock.time += FRESH_FOR + 1
        source.entered.clear()
        source.go.clear()
        assert len(keys.find("ec")) == 1
        assert source.entered.wait(10)
        source.go.set()
        while threads := [one for one in threading.enumerate() if one.name.endswith("issuer-keys")]:
            threads[0].join(10)
        assert keys.find("ec") == ()

    @pytest.mark.parametrize(
        "jwk",
        [
            "text",
            {},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
            {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "x"},
            {**ECKey.generate_key("P-256").as_dict(private=True), "kid": "x"},
            {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "x", "use": "enc"},
            {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "x", "key_ops": ["sign"]},
            {**RSAKey.generate_key(1024).as_dict(private=False), "kid": "x"},
            {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "x", "key_ops": None},
            {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "x", "key_ops": 5},
        ],
        ids=range(10),
    )
    def test_keys_that_cannot_be_used_are_left_out(self, source: Source, jwk: Any) -> None:
        keys = IssuerKeys(ISSUER, lambda: [jwk, *source.idp.jwks()], Clock().now)
        assert keys.find("x") == ()
        assert len(keys.find(None)) == 2

    def test_no_usable_key_at_all_keeps_the_old(
        self, source: Source, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        answers = [source.idp.jwks(), [{"kty": "oct", "k": "AA"}]]
        keys = IssuerKeys(ISSUER, lambda: answers.pop(0), clock.now)
        keys.find("ec")
        clock.time += FETCH_GAP
        assert keys.find("unknown") == ()
        assert len(keys.find("ec")) == 1
        assert "none of them can be used" in caplog.text


def test_a_token_without_kid_where_the_issuer_has_one_key() -> None:
    idp = Idp(ISSUER)
    token = compact({"alg": "ES256"}, idp.claims(), idp.keys["ec"])
    assert tokens(idp).principal_of(token) is not None  # the RSA key does not fit its alg
    idp.keys["ec2"] = make_key("P-256", "ec2")
    assert tokens(idp).principal_of(token) is None


def test_a_key_for_another_alg(idp: Idp) -> None:
    def jwks() -> list[Any]:
        return [{**one, "alg": "PS256"} if one["kid"] == "rsa" else one for one in idp.jwks()]

    clock = Clock()
    issuer = TrustedIssuer(settings(), IssuerKeys(ISSUER, jwks, clock.now))
    accepts = OidcTokens([issuer], [(TokenIdentity(ISSUER, SUBJECT), Principal("c"))], clock)
    for alg, valid in (("PS256", True), ("RS256", False)):
        token = compact({"alg": alg, "kid": "rsa"}, idp.claims(), idp.keys["rsa"])
        assert (accepts.principal_of(token) is not None) is valid


def test_the_library_is_told_the_algorithm() -> None:
    """Our own check of alg is not the only one."""
    key = make_key("P-256", "ec")
    token = compact({"alg": "ES256"}, {"a": 1}, key)
    with pytest.raises(Exception, match=r"(?i)algorithm"):
        jws.deserialize_compact(token, key, algorithms=["RS256"])
