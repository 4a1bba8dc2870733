"""What is answered in front of Flask is what Flask would have answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.test import Client, TestResponse

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.http.hotpath import HotPath, is_jwks, signed_keyset
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

SIGN, JWKS = "/v1/keysets/demo/sign/jwt", "/.well-known/jwks.json"
PRIVATE = "/private/.well-known/jwks.json"
CONFIG = f"""
[rotation]
development = true
[[jwks.issuers]]
issuer = "http://127.0.0.1:8080/private"
access = "authenticated"
[clients.all]
token_sha256 = ["{hashlib.sha256(b"secret").hexdigest()}"]
grants = [{{ actions = ["sign"], keysets = ["demo", "missing"] }}]
"""


class BrokenBackend(LastingBackend):
    """Has a bug as soon as it is told to."""

    broken = False

    def sign(self, *args: Any) -> bytes:
        if self.broken:
            raise ZeroDivisionError("the claims of alice")
        return super().sign(*args)


@pytest.fixture(scope="module")
def backend() -> BrokenBackend:
    return BrokenBackend()


@pytest.fixture(scope="module")
def service(backend: BrokenBackend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory: Path = tmp_path_factory.mktemp("hotpath")
    with pytest.MonkeyPatch.context() as patch:
        install_backend_type(patch, backend)
        settings = load(write_config(directory, CONFIG), environ={})
        prepare_database(settings)
        service = build(settings, {})
        for name, issuer in (("demo", ""), ("private", "/private")):
            rules = TokenRules(issuer=f"http://127.0.0.1:8080{issuer}")
            spec = KeysetSpec(name, find_algorithm("ES256"), "fake", rules, RotationSchedule())
            service.keysets.create(spec, Actor("test"))
        yield service


@pytest.fixture(scope="module")
def app(service: Service) -> Flask:
    return create_app(service)


def through(app: Flask) -> Client:
    return Client(app)


def around(app: Flask) -> Client:
    """Flask alone."""
    assert isinstance(app.wsgi_app, HotPath)
    return Client(app.wsgi_app._rest)


@contextmanager
def hot_only(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flask must not be asked."""

    def never(*_: object) -> None:
        raise AssertionError("this went on to Flask")

    with monkeypatch.context() as patch:
        patch.setattr(app.wsgi_app, "_rest", never)
        yield


def compared(answer: TestResponse) -> tuple[int, dict[str, str], Any]:
    """Without what differs between any two requests."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    body: Any = answer.get_data()
    if b'"token"' in body:
        body = json.loads(body)
        for name in ("token", "jti", "exp"):
            body[name] = type(body[name]).__name__
        headers.pop("content-length")
    return answer.status_code, headers, body


ID = {"X-Request-Id": "a-b.c:1"}
BEARER = {"Authorization": "Bearer secret", **ID}
TYPED = {**BEARER, "Content-Type": "application/json"}
CLAIMS = b'{"claims": {"sub": "alice"}}'
REQUESTS: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "token": ("POST", SIGN, TYPED, CLAIMS),
    "token-charset": (
        "POST",
        SIGN,
        {**BEARER, "Content-Type": "application/json; charset=utf-8"},
        CLAIMS,
    ),
    "nobody": ("POST", SIGN, ID, CLAIMS),
    "wrong-token": ("POST", SIGN, {**TYPED, "Authorization": "Bearer wrong"}, CLAIMS),
    "no-type": ("POST", SIGN, BEARER, CLAIMS),
    "wrong-type": ("POST", SIGN, {**BEARER, "Content-Type": "text/json"}, CLAIMS),
    "latin-1": (
        "POST",
        SIGN,
        {**BEARER, "Content-Type": "application/json; charset=latin-1"},
        CLAIMS,
    ),
    "encoded": ("POST", SIGN, {**TYPED, "Content-Encoding": "gzip"}, CLAIMS),
    "malformed": ("POST", SIGN, TYPED, b'{"claims": {"a": 1, "a": 2}}'),
    "too-large": ("POST", SIGN, TYPED, b'{"claims": {"a": "' + b"x" * 70000 + b'"}}'),
    "no-claims": ("POST", SIGN, TYPED, b"{}"),
    "own-claim": ("POST", SIGN, TYPED, b'{"claims": {"iss": "x"}}'),
    "not-granted": ("POST", "/v1/keysets/other/sign/jwt", TYPED, CLAIMS),
    "no-keyset": ("POST", "/v1/keysets/missing/sign/jwt", TYPED, CLAIMS),
    "jwks": ("GET", JWKS, ID, b""),
    "jwks-query": ("GET", f"{JWKS}?a=b", ID, b""),
    "jwks-other-etag": ("GET", JWKS, {**ID, "If-None-Match": '"x"'}, b""),
    "jwks-any": ("GET", JWKS, {**ID, "If-None-Match": "*"}, b""),
    "jwks-unknown": ("GET", "/nobody/.well-known/jwks.json", ID, b""),
    "jwks-private": ("GET", PRIVATE, ID, b""),
    "jwks-private-granted": ("GET", PRIVATE, BEARER, b""),
}
ELSEWHERE: dict[str, tuple[str, str]] = {
    "sign-get": ("GET", SIGN),
    "sign-put": ("PUT", SIGN),
    "sign-slash": ("POST", f"{SIGN}/"),
    "sign-slashes": ("POST", f"/{SIGN}"),
    "sign-nothing": ("POST", "/v1/keysets//sign/jwt"),
    "sign-short": ("POST", "/v1/keysets/sign/jwt"),
    "sign-deep": ("POST", "/v1/keysets/a/b/sign/jwt"),
    "sign-umlaut": ("POST", "/v1/keysets/d%C3%A9mo/sign/jwt"),
    "jwks-head": ("HEAD", JWKS),
    "jwks-options": ("OPTIONS", JWKS),
    "jwks-post": ("POST", JWKS),
    "jwks-slashes": ("GET", f"/{JWKS}"),
    "jwks-umlaut": ("GET", "/%C3%A9/.well-known/jwks.json"),
    "metadata": ("GET", "/.well-known/openid-configuration"),
    "jwks-newline": ("GET", "/a%0Ab/.well-known/jwks.json"),
    "nothing": ("GET", "/nothing"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_flasks(app: Flask, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, path, headers, body = REQUESTS[name]
    expected = around(app).open(path, method=method, headers=headers, data=body)
    with hot_only(app, monkeypatch):
        answer = through(app).open(path, method=method, headers=headers, data=body)
    assert compared(answer) == compared(expected)
    assert answer.headers["X-Kmsjwks-Unsafe"] == "rotation.development"


def test_not_modified(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {**ID, "If-None-Match": around(app).get(JWKS).headers["ETag"]}
    expected = around(app).get(JWKS, headers=headers)
    with hot_only(app, monkeypatch):
        answer = through(app).get(JWKS, headers=headers)
    assert answer.status_code == 304
    assert compared(answer) == compared(expected)


def test_a_bug_is_answered_and_tells_nothing(
    app: Flask,
    backend: BrokenBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(backend, "broken", True)
    expected = around(app).post(SIGN, headers=TYPED, data=CLAIMS)
    with hot_only(app, monkeypatch):
        answer = through(app).post(SIGN, headers=TYPED, data=CLAIMS)
    assert answer.status_code == 500
    assert compared(answer) == compared(expected)
    assert caplog.text.count("unexpected ZeroDivisionError") == 2
    assert "alice" not in answer.text + caplog.text


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_a_little_different_is_left_to_flask(app: Flask, name: str) -> None:
    method, path = ELSEWHERE[name]
    expected = around(app).open(path, method=method, headers=BEARER)
    answer = through(app).open(path, method=method, headers=BEARER)
    assert compared(answer) == compared(expected)


def test_an_upgrade_is_left_to_flask(app: Flask) -> None:
    headers = {**TYPED, "Connection": "Upgrade", "Upgrade": "websocket"}
    for method, path in (("POST", SIGN), ("GET", JWKS)):
        expected = around(app).open(path, method=method, headers=headers, data=CLAIMS)
        answer = through(app).open(path, method=method, headers=headers, data=CLAIMS)
        assert compared(answer) == compared(expected)
        assert answer.status_code >= 400


SEGMENTS = st.text(st.sampled_from("/ab.é %:\n\x7f"), max_size=6)


def endpoint(app: Flask, path: str, method: str) -> tuple[str, dict[str, Any]]:
    """What Flask would call."""
    try:
        name, values = app.url_map.bind("localhost").match(path, method)
    except HTTPException:
        return "none", {}
    return str(name), dict(values)


@given(st.builds("{}{}{}".format, SEGMENTS, st.just(JWKS) | SEGMENTS, SEGMENTS | st.just("")))
@example(JWKS)
@example(f"/a{JWKS}")
def test_documents_are_what_flask_takes_for_documents(app: Flask, path: str) -> None:
    if is_jwks(path):
        assert endpoint(app, path, "GET")[0].startswith("publication.GET")


@given(
    st.builds("{}{}{}".format, st.just("/v1/keysets/"), SEGMENTS, st.just("/sign/jwt") | SEGMENTS)
)
@example(SIGN)
def test_keysets_are_what_flask_takes_for_keysets(app: Flask, path: str) -> None:
    name = signed_keyset(path)
    if name is not None:
        assert endpoint(app, path, "POST") == ("keysets.sign_jwt", {"name": name})


def test_refusals_are_counted_once_whoever_answers(service: Service) -> None:
    counted: list[tuple[str, int]] = []
    app = create_app(service, lambda code, times: counted.append((code, times)))
    for client in (through(app), around(app)):
        assert client.post(SIGN, headers=TYPED, data=b"{}").status_code == 400
        assert client.post(SIGN, headers=ID, data=CLAIMS).status_code == 401
        assert client.post(SIGN, headers=TYPED, data=CLAIMS).status_code == 200
    assert counted == [("invalid-request", 1), ("unauthenticated", 1)] * 2
