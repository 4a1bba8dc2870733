"""POST .../verify: 200 with the verdict and its reason, whatever the token is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]

from tests.e2e.conftest import Keyset
from tests.support.service import Server


def verify(server: Server, token: str, keyset: str = "es256") -> dict[str, Any]:
    answer = server.http("all").post(f"/v1/keysets/{keyset}/verify", {"token": token})
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    verdict: dict[str, Any] = answer.json()
    assert verdict.keys() == {"valid", "kid", "claims", "reason"}
    return verdict


@pytest.fixture
def token(server: Server) -> str:
    return str(server.sign("es256").json()["token"])


def encode(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=="))


def test_valid(server: Server, token: str, keysets: dict[str, Keyset]) -> None:
    verdict = verify(server, token)
    assert (verdict["valid"], verdict["reason"]) == (True, "")
    assert verdict["kid"] == keysets["ES256"].kid
    assert verdict["claims"] == decode(token.split(".")[1])


def test_tampered(server: Server, token: str) -> None:
    header, payload, signature = token.split(".")
    claims = decode(payload)
    flipped = base64.urlsafe_b64decode(signature + "==")
    flipped = bytes([flipped[0] ^ 1]) + flipped[1:]
    for forged in (
        f"{header}.{encode({**claims, 'sub': 'root'})}.{signature}",
        f"{header}.{payload}.{encode(flipped)}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{encode(b'x' * 64)}",
        f"{encode({**decode(header), 'cty': 'x'})}.{payload}.{signature}",
    ):
        refused(verify(server, forged))


def refused(verdict: dict[str, Any]) -> None:
    assert verdict["valid"] is False
    assert verdict["reason"]
    assert verdict["claims"] is None


def test_expired(server: Server) -> None:
    short = server.sign("es256", ttl=1).json()["token"]
    assert verify(server, short)["valid"] is True
    time.sleep(1.1)
    verdict = verify(server, short)
    assert (verdict["valid"], verdict["claims"]["sub"]) == (False, "alice")
    assert "expired" in verdict["reason"]


def test_another_keysets_token(server: Server, token: str) -> None:
    refused(verify(server, token, "es384"))
    other = server.sign("ed25519").json()["token"]
    refused(verify(server, other, "es256"))


def test_unsigned(server: Server, token: str) -> None:
    header, payload, signature = token.split(".")
    for name in ("none", "None", "NONE", ""):
        unsigned = encode({**decode(header), "alg": name})
        refused(verify(server, f"{unsigned}.{payload}."))
        refused(verify(server, f"{unsigned}.{payload}.{signature}"))


def test_mac_with_the_public_key(server: Server, keysets: dict[str, Keyset]) -> None:
    """RFC 8725 section 2.1: the public key must not serve as an HMAC secret."""
    jwks = server.http().get("/.well-known/jwks.json").json()["keys"]
    for algorithm in ("RS256", "ES256"):
        keyset = keysets[algorithm]
        jwk = JWK(**next(one for one in jwks if one["kid"] == keyset.kid))
        public = jwk.get_op_key("verify").public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        claims = {"iss": keyset.issuer, "exp": int(time.time()) + 600}
        signed = f"{encode({'alg': 'HS256', 'kid': keyset.kid})}.{encode(claims)}"
        mac = hmac.new(public, signed.encode(), hashlib.sha256).digest()
        refused(verify(server, f"{signed}.{encode(mac)}", keyset.name))


def test_wrong_kid(server: Server, token: str, keysets: dict[str, Keyset]) -> None:
    header, payload, signature = token.split(".")
    for kid in ("unknown", "", 7, None, ["a"], keysets["ES384"].kid, "../../etc/passwd"):
        changed = encode({**decode(header), "kid": kid})
        refused(verify(server, f"{changed}.{payload}.{signature}"))


@pytest.mark.parametrize(
    "garbage",
    ["", ".", "..", "...", "a.b.c", "a.b.c.d.e", "é.é.é", "{}", " ", "\x00", "=.=.=", "x" * 60_000,
     "." * 1000, "eyJhbGciOiJFUzI1NiJ9..", "W10.W10.W10", "bnVsbA.bnVsbA.bnVsbA"],
)  # fmt: skip
def test_garbage(server: Server, garbage: str) -> None:
    refused(verify(server, garbage))


@pytest.mark.parametrize("body", [{}, {"token": 1}, {"token": None}, {"token": "a", "more": 1}])
def test_no_token_to_verify(server: Server, body: Any) -> None:
    answer = server.http("all").post("/v1/keysets/es256/verify", body)
    assert (answer.status, answer.header("Content-Type")) == (400, "application/problem+json")


def test_line_breaks_and_padding_are_not_overlooked(server: Server, token: str) -> None:
    """A JWS in compact form has one spelling (RFC 7515 section 2)."""
    for changed in (f"{token}\n", f" {token}", f"{token}=", token.replace(".", ".\n", 1)):
        refused(verify(server, changed))
