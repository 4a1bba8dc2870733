"""Tokens of every algorithm, verified from the issuer's URL by clients we did not write."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from jwcrypto.jwk import JWKSet  # type: ignore[import-untyped]
from jwcrypto.jwt import JWT  # type: ignore[import-untyped]

from kmsjwks.domain.algorithms import find_algorithm
from tests.e2e.conftest import Keyset
from tests.support.service import Server

JOSE = sorted({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
               "ES256", "ES384", "ES512", "ES256K", "EdDSA"})  # fmt: skip


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


def jwks_uri(issuer: str) -> str:
    """As a relying party finds it (OpenID Connect Discovery 1.0 section 4)."""
    metadata = fetch(f"{issuer}/.well-known/openid-configuration")
    assert metadata["issuer"] == issuer
    return str(metadata["jwks_uri"])


def pyjwt(token: str, issuer: str) -> dict[str, Any]:
    key = jwt.PyJWKClient(jwks_uri(issuer)).get_signing_key_from_jwt(token)
    claims: dict[str, Any] = jwt.decode(
        token, key, algorithms=JOSE, issuer=issuer, audience="billing"
    )
    return claims


def joserfc(token: str, issuer: str) -> dict[str, Any]:
    keys = KeySet.import_key_set(fetch(jwks_uri(issuer)))
    decoded = joserfc_jwt.decode(token, keys, algorithms=JOSE)
    joserfc_jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": issuer}, exp={"essential": True}
    ).validate(decoded.claims)
    return dict(decoded.claims)


def jwcrypto(token: str, issuer: str) -> dict[str, Any]:
    keys = JWKSet.from_json(json.dumps(fetch(jwks_uri(issuer))))
    checked = JWT(algs=JOSE, check_claims={"iss": issuer, "exp": None})
    checked.deserialize(token, keys)
    claims: dict[str, Any] = json.loads(checked.claims)
    return claims


@pytest.mark.parametrize("client", [pyjwt, joserfc, jwcrypto])
def test_tokens_of_every_algorithm_verify_from_the_url(
    client: Callable[[str, str], dict[str, Any]], server: Server, keysets: dict[str, Keyset]
) -> None:
    for algorithm, keyset in keysets.items():
        signed = server.sign(keyset.name, {"aud": "billing", "n": 2**63}).json()
        claims = client(signed["token"], keyset.issuer)
        assert (claims["sub"], claims["n"]) == ("alice", 2**63), algorithm
        assert (claims["exp"], claims["jti"]) == (signed["exp"], signed["jti"]), algorithm


def test_header_names_key_and_algorithm(server: Server, keysets: dict[str, Keyset]) -> None:
    for algorithm, keyset in keysets.items():
        signed = server.sign(keyset.name).json()
        jose = find_algorithm(algorithm).jose
        assert jwt.get_unverified_header(signed["token"]) == {
            "typ": "JWT", "alg": jose, "kid": keyset.kid,
        }  # fmt: skip
        assert (signed["kid"], signed["alg"]) == (keyset.kid, jose)


def test_kid_is_the_thumbprint(keysets: dict[str, Keyset], server: Server) -> None:
    """RFC 7638, computed by somebody else."""
    for issuer in {keyset.issuer for keyset in keysets.values()}:
        for jwk in fetch(jwks_uri(issuer))["keys"]:
            assert JWKSet.from_json(json.dumps({"keys": [jwk]})).get_key(jwk["kid"]) is not None
            assert KeySet.import_key_set({"keys": [jwk]}).keys[0].thumbprint() == jwk["kid"]


def test_keys_that_break_clients_live_at_their_own_path(
    server: Server, keysets: dict[str, Keyset]
) -> None:
    default = {jwk["kid"] for jwk in fetch(f"{server.url}/.well-known/jwks.json")["keys"]}
    apart = {name for name in keysets if name in ("ES256K", "Ed448")}
    assert {one.kid for name, one in keysets.items() if name not in apart} <= default
    assert not {keysets[name].kid for name in apart} & default
    for name in apart:
        keyset = keysets[name]
        assert keyset.issuer == f"{server.url}/{keyset.name}"
        own = fetch(f"{keyset.issuer}/.well-known/jwks.json")["keys"]
        assert keyset.kid in [jwk["kid"] for jwk in own]
        assert {jwk["crv"] for jwk in own} == {"secp256k1" if name == "ES256K" else "Ed448"}


def test_published_keys_hold_what_clients_need_and_nothing_private(
    server: Server, keysets: dict[str, Keyset]
) -> None:
    for issuer in {keyset.issuer for keyset in keysets.values()}:
        for jwk in fetch(f"{issuer}/.well-known/jwks.json")["keys"]:
            assert jwk["use"] == "sig"
            assert {"kid", "alg", "kty"} <= jwk.keys()
            assert not {"d", "p", "q", "dp", "dq", "qi", "oth", "k", "key_ops"} & jwk.keys()


def test_metadata_lists_the_algorithms_that_sign(
    server: Server, keysets: dict[str, Keyset]
) -> None:
    for issuer in {keyset.issuer for keyset in keysets.values()}:
        metadata = fetch(f"{issuer}/.well-known/openid-configuration")
        signing = {find_algorithm(k.algorithm).jose for k in keysets.values() if k.issuer == issuer}
        assert set(metadata["id_token_signing_alg_values_supported"]) == signing
        path = issuer.removeprefix(server.url)
        inserted = f"{server.url}/.well-known/oauth-authorization-server{path}"
        assert fetch(inserted) == metadata  # RFC 8414 section 3.1


def test_numbers_arrive_exactly_as_sent(server: Server, keysets: dict[str, Keyset]) -> None:
    sent = (
        '{"claims": {"max": 9223372036854775807, "over": 9007199254740993, '
        '"huge": 123456789012345678901234567890, "minus": -9007199254740993, '
        '"tenth": 0.1, "one": 1.0, "small": 1e-07, "list": [18446744073709551616, 2.5]}}'
    )
    http = server.http("all")
    answer = http.request(
        "POST", "/v1/keysets/es256/sign/jwt", sent.encode(), {"Content-Type": "application/json"}
    )
    payload = answer.json()["token"].split(".")[1]
    text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()
    for member in (
        '"max":9223372036854775807', '"over":9007199254740993',
        '"huge":123456789012345678901234567890', '"minus":-9007199254740993',
        '"tenth":0.1', '"one":1.0', '"small":1e-07', '"list":[18446744073709551616,2.5]',
    ):  # fmt: skip
        assert member in text
