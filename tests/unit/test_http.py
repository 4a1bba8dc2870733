"""The HTTP layer over a fake backend: failures that a real device cannot be asked for."""

from __future__ import annotations

import hashlib
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import (
    BackendDenied,
    BackendError,
    BackendProtocolError,
    BackendUnavailable,
    KeyNotFound,
    UnsupportedAlgorithm,
)
from kmsjwks.domain.ports import BackendKey
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.http.request_ids import REQUEST_ID
from kmsjwks.http.wsgi import InFlight, wsgi_callback
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

SIGN = "/v1/keysets/demo/sign/jwt"
BEARER = {"Authorization": "Bearer secret"}
CLIENT = f"""
[server]
max_concurrency = 1
[clients.all]
token_sha256 = ["{hashlib.sha256(b"secret").hexdigest()}"]
[[clients.all.grants]]
actions = ["sign", "verify", "read", "rotate", "manage", "destroy"]
keysets = ["*"]
"""


class BlockingBackend(LastingBackend):
    """``sign`` waits until ``released``, if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()

    def sign(self, key: BackendKey, message: bytes) -> bytes:
        self.entered.set()
        assert self.released.wait(10)
        return super().sign(key, message)


@pytest.fixture
def backend() -> BlockingBackend:
    return BlockingBackend()


@pytest.fixture
def service(backend: BlockingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    install_backend_type(monkeypatch, backend)
    settings = load(write_config(tmp_path, CLIENT), environ={})
    prepare_database(settings)
    return build(settings, {})


@pytest.fixture
def client(service: Service) -> FlaskClient:
    rules = TokenRules(issuer="http://127.0.0.1:8080")
    spec = KeysetSpec("demo", find_algorithm("ES256"), "fake", rules, RotationSchedule())
    service.keysets.create(spec, Actor("test"))
    return create_app(service).test_client()


def sign(client: FlaskClient) -> TestResponse:
    return client.post(SIGN, json={"claims": {"sub": "a"}}, headers=BEARER)


def problem(response: TestResponse, status: int) -> dict[str, Any]:
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    body: dict[str, Any] = response.json or {}
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


@pytest.mark.parametrize(
    "error",
    [
        KeyNotFound("ref 4711"),
        UnsupportedAlgorithm("ref 4711"),
        BackendDenied("ref 4711"),
        BackendProtocolError("ref 4711"),
        BackendError("ref 4711"),
        BackendUnavailable("ref 4711", retry_after=2.2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_backend_errors(client: FlaskClient, backend: BlockingBackend, error: BackendError) -> None:
    """503 that tells when to come back, and nothing of what the device said."""
    backend.break_with(error)
    response = sign(client)
    body = problem(response, 503)
    assert body["code"] == error.code
    assert "4711" not in response.text
    expected = "3" if isinstance(error, BackendUnavailable) else "30"
    assert response.headers["Retry-After"] == expected
    backend.break_with(None)
    assert sign(client).status_code == 200


def test_a_wrong_signature_is_not_released(
    client: FlaskClient, backend: BlockingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LastingBackend, "sign", lambda *_: b"\x01" * 64)
    response = sign(client)
    assert problem(response, 503)["code"] == "backend-protocol-error"
    assert "eyJ" not in response.text


def test_a_bug_says_nothing(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("claim value alice")

    monkeypatch.setattr(LastingBackend, "sign", fail)
    response = sign(client)
    body = problem(response, 500)
    assert "alice" not in response.text + caplog.text
    assert "RuntimeError" in caplog.text
    assert body["request_id"] in caplog.text


def test_more_requests_than_may_wait(client: FlaskClient, backend: BlockingBackend) -> None:
    """max_concurrency is 1: the second is refused at once, and reading goes on."""
    assert sign(client).status_code == 200
    backend.entered.clear()
    backend.released.clear()
    statuses: list[int] = []
    app = client.application
    first = threading.Thread(target=lambda: statuses.append(sign(app.test_client()).status_code))
    first.start()
    assert backend.entered.wait(5)
    refused = sign(client)
    assert problem(refused, 503)["code"] == "overloaded"
    assert refused.headers["Retry-After"] == "1"
    for path in ("/.well-known/jwks.json", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    backend.released.set()
    first.join(5)
    assert statuses == [200]
    assert sign(client).status_code == 200


def test_readiness(client: FlaskClient, backend: BlockingBackend) -> None:
    assert client.get("/readyz").json == {
        "status": "ok",
        "keysets": 1,
        "backends_down": {},
        "keysets_that_cannot_sign": 0,
    }
    backend.break_with(BackendUnavailable("gone"))
    shown = client.get("/readyz")
    assert shown.status_code == 200
    assert (shown.json or {})["status"] == "degraded"
    assert (shown.json or {})["keysets_that_cannot_sign"] == 1


def test_a_compromise_elsewhere_costs_no_request(client: FlaskClient, service: Service) -> None:
    """The key is destroyed before this process looked again; nor does the next one at once."""
    for _ in range(3):
        before = sign(client).json or {}
        service.keys.compromise(before["kid"], Actor("test"))
        assert service.planner.tick().done
        after = sign(client)
        assert after.status_code == 200
        assert (after.json or {})["kid"] != before["kid"]


def test_a_dry_run_in_a_body_of_unknown_length_is_one(
    client: FlaskClient, service: Service
) -> None:
    """Chunked, so without Content-Length: what it asks for must not be overlooked."""
    before = [(key.kid, key.state, key.hold) for key in service.store.keys("demo")]
    response = client.post(
        f"/v1/keysets/demo/keys/{before[0][0]}/hold",
        input_stream=BytesIO(b'{"dry_run": true}'),
        content_type="application/json",
        headers=BEARER,
        environ_overrides={"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True},
    )
    assert response.status_code == 200
    assert (response.json or {})["dry_run"] is True
    assert [(key.kid, key.state, key.hold) for key in service.store.keys("demo")] == before


def test_no_body_is_no_dry_run(client: FlaskClient, service: Service) -> None:
    kid = service.store.keys("demo")[0].kid
    assert client.post(f"/v1/keysets/demo/keys/{kid}/hold", headers=BEARER).status_code == 200
    assert service.store.keys("demo")[0].hold


def test_not_ready_before_any_key_is_known(service: Service, tmp_path: Path) -> None:
    client = create_app(service).test_client()
    (tmp_path / "var" / "kmsjwks.db").unlink()
    response = client.get("/readyz")
    assert problem(response, 503)["code"] == "store-unavailable"
    assert response.headers["Retry-After"]
    assert client.get("/healthz").json == {"status": "ok"}


class Reply:
    """Granian's handle, as far as it is used; only the first answer counts."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, dict(headers), body))

    def response_iter(self, status: int, headers: list[tuple[str, str]], body: Any) -> None:
        raise AssertionError("not used")


def test_a_stuck_request_is_answered_with_its_own_id() -> None:
    in_flight, reply = InFlight(), Reply()

    def stuck(environ: dict[str, Any], start: Any) -> list[bytes]:
        environ[REQUEST_ID] = "trace-1"
        in_flight.answer_for(threading.get_ident())
        start("200 OK", [])
        return [b"late"]

    wsgi_callback(stuck, in_flight)(reply, {})
    status, headers, body = reply.answers[0]
    assert (status, headers["Retry-After"], headers["X-Request-Id"]) == (503, "2", "trace-1")
    assert headers["Content-Type"] == "application/problem+json"
    assert b'"request_id":"trace-1"' in body
    in_flight.answer_for(threading.get_ident())  # over: nobody is answered
    assert len(reply.answers) == 2


def test_the_environment_stays_out_of_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PIN may be there."""
    monkeypatch.setenv("KMSJWKS_TEST_PIN", "1234")
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        seen.append(environ)
        start("204 No Content", [])
        return []

    wsgi_callback(app, InFlight())(Reply(), {"PATH_INFO": "/"})
    assert "KMSJWKS_TEST_PIN" not in seen[0]
