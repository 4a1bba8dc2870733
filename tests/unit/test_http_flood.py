"""What anybody may ask for costs neither the devices nor the database anything."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.http.wsgi import InFlight, wsgi_callback
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.load import wait_until
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CONFIG = f"""
[snapshot]
refresh_interval = 60  # longer than the test: whatever the database is asked, a request caused it
[clients.all]
token_sha256 = ["{hashlib.sha256(b"secret").hexdigest()}"]
grants = [{{ actions = ["sign"], keysets = ["*"] }}]
"""
KNOWN = (
    "/.well-known/jwks.json",
    "/keysets/demo/.well-known/jwks.json",
    "/.well-known/openid-configuration",
)
UNKNOWN = (
    "/nobody-{}/.well-known/jwks.json",
    "/keysets/nobody-{}/.well-known/jwks.json",
    "/nobody-{}/.well-known/openid-configuration",
)


class AskedBackend(LastingBackend):
    """Counts what it is asked, whatever it is."""

    asked = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            self.asked += 1
        return found


class Counting:
    """The application as granian calls it, and what it used meanwhile."""

    def __init__(self, app: Any, backend: AskedBackend) -> None:
        self._serve, self._backend = wsgi_callback(app, InFlight()), backend
        self.transactions = 0

    def checkout(self, *_: object) -> None:
        self.transactions += 1

    def used(self) -> tuple[int, int]:
        """Calls of the backend, connections to the database; since the last time."""
        counted = self._backend.asked, self.transactions
        self._backend.asked = self.transactions = 0
        return counted

    def settle(self) -> None:
        """Until the looks at the database that no request causes are over."""
        wait_until(self._is_quiet, 5, "quiet")

    def _is_quiet(self) -> bool:
        self.used()
        time.sleep(0.2)
        return self.used() == (0, 0)

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        reply = _Reply()
        scope = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/json",
            "HTTP_AUTHORIZATION": "Bearer secret",
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
        }
        self._serve(reply, scope)
        return reply.status


class _Reply:
    status = 0

    def response_bytes(self, status: int, _: list[tuple[str, str]], __: bytes) -> None:
        self.status = status


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    backend = AskedBackend()
    install_backend_type(monkeypatch, backend)
    settings = load(write_config(tmp_path, CONFIG), environ={})
    prepare_database(settings)
    service = build(settings, {})
    rules = TokenRules(issuer="http://127.0.0.1:8080")
    spec = KeysetSpec("demo", find_algorithm("ES256"), "fake", rules, RotationSchedule())
    service.keysets.create(spec, Actor("test"))
    counting = Counting(create_app(service).wsgi_app, backend)
    event.listen(Pool, "checkout", counting.checkout)
    try:
        yield counting
    finally:
        event.remove(Pool, "checkout", counting.checkout)
        service.close()


def test_a_flood_of_requests_for_documents(counting: Counting) -> None:
    assert [counting.ask("GET", path) for path in KNOWN] == [200] * len(KNOWN)
    counting.settle()
    for number in range(300):
        assert counting.ask("GET", KNOWN[number % 3]) == 200
        assert counting.ask("GET", UNKNOWN[number % 3].format(number)) == 404
    assert counting.used() == (0, 0)


def test_what_is_counted(counting: Counting) -> None:
    """Otherwise the test before could not fail."""
    counting.ask("GET", KNOWN[0])
    counting.settle()
    claims = json.dumps({"claims": {"sub": "a"}}).encode()
    assert counting.ask("POST", "/v1/keysets/demo/sign/jwt", claims) == 200
    assert counting.used()[0] > 0
    assert counting.ask("POST", "/v1/keysets/nobody/sign/jwt", claims) == 404
    assert counting.used()[1] > 0
