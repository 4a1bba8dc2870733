"""The real service while its PostgreSQL is stopped, or frozen so that it does not even refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.http import Answer
from tests.support.load import wait_until
from tests.support.postgres import PostgresServer
from tests.support.service import Installation, Server
from tests.support.softhsm import Token

JWKS = "/.well-known/jwks.json"
GRACE = 3  # seconds
Outage = Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["stopped", "frozen"])
def outage(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Outage:
    return postgres_server.down if request.param == "stopped" else lambda: _frozen(postgres_server)


@contextmanager
def _frozen(server: PostgresServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@pytest.fixture
def installation(own_token: Token, tmp_path: Path, postgres_url: str) -> Installation:
    made = Installation(tmp_path / "service", own_token.options())
    text = made.config.read_text().replace("sqlite:///kmsjwks.db", postgres_url)
    made.config.write_text(f"{text}\n[rotation]\ngrace = {GRACE}\n")
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    running = Server(installation)
    running.start()
    wait_until(lambda: _all_well(running), 10, "both workers")
    yield running
    running.kill_all()


def assert_jwks(server: Server, body: bytes) -> None:
    """The same document as ever, in time for the most impatient verifier, from each worker."""
    for _ in range(4):
        answer = server.http().get(JWKS)
        assert (answer.status, answer.body) == (200, body)
        assert answer.seconds < 0.5


def assert_refused(answer: Answer) -> None:
    assert answer.status == 503
    assert answer.json()["code"] == "store-unavailable"
    assert int(answer.header("Retry-After")) >= 1


def test_signing_goes_on_for_the_grace_and_comes_back(server: Server, outage: Outage) -> None:
    body = server.http().get(JWKS).body
    assert server.sign("demo").status == 200
    with outage():
        began = time.monotonic()
        while time.monotonic() < began + GRACE - 1:
            answer = server.sign("demo")
            assert (answer.status, answer.seconds < 1) == (200, True), answer.body
            assert_jwks(server, body)
            time.sleep(0.1)
        wait_until(lambda: server.sign("demo").status == 503, GRACE + 2, "an end of the grace")
        time.sleep(1)  # for both workers
        for _ in range(4):
            assert_refused(server.sign("demo"))
            assert server.http().get("/readyz").status == 503
        assert_jwks(server, body)
    wait_until(lambda: _all_well(server), 8, "recovery")
    assert_jwks(server, body)


def test_started_while_the_database_is_gone(server: Server, outage: Outage) -> None:
    """The JWKS of the process before is on disk."""
    body = server.http().get(JWKS).body
    installation = server.installation
    assert server.stop() == 0
    again = Server(installation)
    try:
        with outage():
            again.launch()
            wait_until(lambda: _status(again, JWKS) == 200, 15, "a JWKS")
            assert_jwks(again, body)
            assert _status(again, "/readyz") == 503
            assert_refused(again.sign("demo"))
            assert_jwks(again, body)
        wait_until(lambda: _all_well(again), 8, "recovery")
        assert_jwks(again, body)
    finally:
        again.kill_all()


def _status(server: Server, path: str) -> int:
    try:
        return server.http().get(path).status
    except OSError:
        return 0


def _all_well(server: Server) -> bool:
    return all(
        server.sign("demo").status == 200 and _status(server, "/readyz") == 200 for _ in range(4)
    )
