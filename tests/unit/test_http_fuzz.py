"""Arbitrary bytes into the application: no 5xx, always a problem with a request id, no secrets."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.http.wsgi import InFlight, wsgi_callback
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

TOKEN = "canary-token-7f3a"
CANARY = "canary-claim-9c1e"
CLIENT = f"""
[clients.all]
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
grants = [{{ actions = ["sign", "verify", "read", "rotate", "manage", "destroy", "audit"],
keysets = ["*"] }}]
""".replace("\nkeysets", " keysets")
FAST = settings(
    max_examples=1000, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

SEGMENTS = st.sampled_from(
    ["v1", "keysets", "demo", "sign", "jwt", "verify", "rotate", "failover", "migrate", "keys",
     "migration", "proposals", "approve", "compromise", "hold", "evidence", "audit", "backends",
     "openapi", "openapi.json", ".well-known", "jwks.json", "openid-configuration", "healthz",
     "oauth-authorization-server", "..", ".", "", "%2e", "\x00", "*", "a" * 300]
)  # fmt: skip
LATIN = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)
PATHS = st.lists(SEGMENTS | LATIN, max_size=8).map(lambda parts: "/" + "/".join(parts))
KNOWN_PATHS = st.sampled_from(
    ["/v1/keysets", "/v1/keysets/demo", "/v1/keysets/demo/sign/jwt", "/v1/keysets/demo/verify",
     "/v1/keysets/demo/rotate", "/v1/keysets/demo/failover", "/v1/keysets/demo/migrate",
     "/v1/keysets/demo/keys/x/hold", "/v1/keysets/demo/keys/x/approve", "/v1/audit",
     "/v1/backends", "/.well-known/jwks.json", "/readyz", "/openapi/"]
)  # fmt: skip
METHODS = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
)
NAMES = st.sampled_from(
    ["ACCEPT", "ACCEPT_ENCODING", "AUTHORIZATION", "CLIENT_CERT", "CONTENT_ENCODING", "COOKIE",
     "EXPECT", "FORWARDED", "HOST", "IF_MATCH", "IF_MODIFIED_SINCE", "IF_NONE_MATCH", "ORIGIN",
     "RANGE", "TRANSFER_ENCODING", "UPGRADE", "X_CLIENT_CERT", "X_FORWARDED_FOR",
     "X_FORWARDED_HOST", "X_FORWARDED_PREFIX", "X_HTTP_METHOD_OVERRIDE", "X_REQUEST_ID"]
)  # fmt: skip
VALUES = LATIN | st.sampled_from(
    ["*", '"x"', 'W/"x"', "bytes=0-1", "Bearer", "Bearer x", "Bearer a.b.c", "Basic Og==",
     "Bearer eyJhbGciOiJub25lIn0.e30.", "gzip", "chunked", "100-continue", ":::", "x" * 9000]
)  # fmt: skip
HEADERS = st.dictionaries(NAMES, VALUES, max_size=5)
CONTENT_TYPES = (
    st.sampled_from(
        ["application/json", "application/json; charset=utf-8", "application/json;charset=x",
         "application/json; charset*=utf-8''x", "text/plain", "multipart/form-data; boundary=x"]
    )
    | LATIN
)  # fmt: skip
LENGTHS = st.sampled_from(["", "0", "5", "-1", "x", "1e3", "99999999", "9" * 30, " 1 ", "+1", "²"])

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["demo", "fake", "none", CANARY, 2**64, -1, 0, 10**400, "\x00", "ES256"])
)  # fmt: skip
MEMBERS = st.sampled_from(
    ["claims", "ttl", "headers", "token", "dry_run", "algorithm", "backend", "standby", "issuer",
     "to", "now", "stop", "proposal", "typ", "nbf", "jti", "audiences", "fixed_claims", "profile",
     "iss", "exp", "aud", "sub", "alg", "kid", "max_lifetime", "rotation_period", "failover_after"]
)  # fmt: skip
OBJECTS = st.recursive(
    st.dictionaries(MEMBERS | st.text(max_size=5), SCALARS, max_size=5),
    lambda inner: (
        st.dictionaries(MEMBERS, inner | SCALARS | st.lists(inner | SCALARS, max_size=3),
                        max_size=5)
    ),
    max_leaves=12,
)  # fmt: skip
BODIES = (
    st.binary(max_size=200)
    | OBJECTS.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    | OBJECTS.map(lambda value: json.dumps(value).encode("utf-16"))
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Recorder:
    """What the server's handle for a response takes."""

    answer: Answer

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answer = Answer(status, {name.lower(): value for name, value in headers}, body)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    with pytest.MonkeyPatch.context() as patch:
        install_backend_type(patch, LastingBackend())
        directory: Path = tmp_path_factory.mktemp("fuzz")
        service_settings = load(write_config(directory, CLIENT), environ={})
        prepare_database(service_settings)
        service = build(service_settings, {})
        rules = TokenRules(issuer="http://127.0.0.1:8080")
        spec = KeysetSpec("demo", find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))
        yield create_app(service)


def send(app: Flask, environ: dict[str, Any], body: bytes) -> Answer:
    """As the server sends it: the environ of PEP 3333, of which nothing has been checked."""
    given_by_server = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8080", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http", "wsgi.input": BytesIO(body),
    }  # fmt: skip
    reply = Recorder()
    wsgi_callback(app, InFlight())(reply, given_by_server | environ)
    return reply.answer


def check(answer: Answer, environ: dict[str, Any]) -> None:
    assert answer.status < 500, answer.body
    request_id = answer.headers["x-request-id"]
    assert 0 < len(request_id) <= 64
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name, value in answer.headers.items():
        assert not {"\r", "\n", "\x00"} & set(name + value)
        assert TOKEN not in value
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        if environ.get("REQUEST_METHOD") != "HEAD":
            problem = json.loads(answer.body)
            assert problem["status"] == answer.status
            assert problem["request_id"] == request_id
            assert problem["code"] and problem["detail"]
        assert CANARY.encode() not in answer.body
    assert TOKEN.encode() not in answer.body


def as_environ(headers: dict[str, str]) -> dict[str, str]:
    return {f"HTTP_{name}": value for name, value in headers.items()}


@given(method=METHODS, path=PATHS | KNOWN_PATHS, query=LATIN, headers=HEADERS, data=st.data())
@FAST
def test_requests(
    app: Flask, method: str, path: str, query: str, headers: dict[str, str], data: st.DataObject
) -> None:
    credential = data.draw(st.sampled_from([{}, {"AUTHORIZATION": f"Bearer {TOKEN}"}]))
    body = data.draw(st.just(b"") | BODIES)
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query,
        **as_environ({**headers, **credential}),
        **data.draw(st.fixed_dictionaries(
            {}, optional={"CONTENT_TYPE": CONTENT_TYPES, "CONTENT_LENGTH": LENGTHS})),
    }  # fmt: skip
    check(send(app, environ, body), environ)


@given(path=KNOWN_PATHS, method=st.sampled_from(["POST", "PUT"]), body=BODIES)
@FAST
def test_bodies_of_a_client(app: Flask, path: str, method: str, body: bytes) -> None:
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }  # fmt: skip
    check(send(app, environ, body), environ)


@given(claims=OBJECTS, more=OBJECTS)
@FAST
def test_claims(app: Flask, claims: dict[str, Any], more: dict[str, Any]) -> None:
    body = json.dumps({**more, "claims": {"secret": CANARY, **claims}}).encode()
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/v1/keysets/demo/sign/jwt",
        "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)),
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }  # fmt: skip
    check(send(app, environ, body), environ)


@given(query=LATIN | st.lists(
    st.tuples(
        st.sampled_from(["principal", "keyset", "kid", "jti", "event", "since", "until", "limit",
                         "before", "x"]),
        st.sampled_from(["", "*", "[", "%00", "%ff", "0", "1", "-1", "9999999999999999999", "demo",
                         "2026-01-01T00:00:00Z", "0001-01-01T00:00:00%2B23:59",
                         "9999-12-31T23:59:59-23:59", "2026-13-45T99:99:99Z", "a" * 300,
                         "0-0000000000000000-0", f"{'9' * 13}-{'f' * 16}-{'9' * 18}"])
        | LATIN,
    ).map("=".join), max_size=4).map("&".join))  # fmt: skip
@FAST
def test_queries_of_the_audit_trail(app: Flask, query: str) -> None:
    environ = {
        "PATH_INFO": "/v1/audit", "QUERY_STRING": query,
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }  # fmt: skip
    check(send(app, environ, b""), environ)


@pytest.mark.parametrize("query", ["event=\xff", "\xc3", "%ff=%ff", "kid=\xe2\x82"])
def test_queries_that_are_not_utf8(app: Flask, query: str) -> None:
    environ = {
        "PATH_INFO": "/v1/audit", "QUERY_STRING": query,
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }  # fmt: skip
    answer = send(app, environ, b"")
    check(answer, environ)
    assert answer.status == 400


def test_proposals_of_no_keyset(app: Flask) -> None:
    environ = {
        "PATH_INFO": "/v1/keysets/nothing/proposals", "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }  # fmt: skip
    assert send(app, environ, b"").status == 404


def test_nothing_of_it_is_logged(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        test_claims(app)
        test_bodies_of_a_client(app)
    assert CANARY not in caplog.text
    assert TOKEN not in caplog.text
