"""The token process is killed, stopped, or not there, while clients sign and fetch the JWKS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.support.load import Load, Seen, wait_until
from tests.support.p11kit import P11KitServer
from tests.support.service import Installation, Server
from tests.support.softhsm import Token

CALL_TIMEOUT = 1.0  # seconds
READING_LIMIT = 0.5  # seconds, for the JWKS and health, whatever the token does


@pytest.fixture
def installation(p11kit: P11KitServer, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    directory = tmp_path_factory.mktemp("service")
    made = Installation(directory, p11kit.options(call_timeout=CALL_TIMEOUT, replace_after=3.0))
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    running = Server(installation)
    running.start()
    running.wait_until_each_worker_signs("demo")  # so each is connected to this token process
    yield running
    running.kill_all()


def is_retryable(one: Seen) -> bool:
    """A 503 as a client needs it: when to come back, and what it was."""
    answer = one.answer
    return (
        answer is not None
        and answer.status == 503
        and 1 <= int(answer.header("Retry-After")) <= 30
        and answer.header("Content-Type") == "application/problem+json"
        and answer.header("Cache-Control") == "no-store"
        and answer.json()["code"] in ("backend-unavailable", "overloaded")
        and answer.json()["request_id"] == answer.header("X-Request-Id") != ""
    )


def assert_well_behaved(server: Server, load: Load) -> None:
    """Only tokens that verify, or 503; JWKS and health as if nothing had happened."""
    odd = [one for one in load.signing() if one.status != 200 and not is_retryable(one)]
    assert odd == []
    assert load.failed_connections() == 0
    assert {one.status for one in load.reading()} == {200}
    assert max(one.seconds for one in load.reading()) < READING_LIMIT
    key = jwt.PyJWKSet.from_dict(server.http().get("/.well-known/jwks.json").json()).keys[0]
    tokens = load.tokens()
    assert tokens
    assert len({jwt.decode(token, key, algorithms=["ES256"])["jti"] for token in tokens}) == len(
        tokens
    )
    assert server.installation.audit_lines() >= len(tokens)


def signs(load: Load, since: float) -> bool:
    return sum(one.status == 200 for one in load.signing(since)) >= 20


def assert_recovers(load: Load, seconds: float) -> None:
    since = time.monotonic()
    wait_until(lambda: signs(load, since), seconds, "recovery")


def test_killed_and_restarted(server: Server, p11kit: P11KitServer) -> None:
    with Load(server, "demo").running() as load:
        wait_until(lambda: signs(load, 0), 5, "signing")
        for _ in range(2):
            p11kit.kill()
            killed = time.monotonic()
            time.sleep(0.9)
            assert {one.status for one in load.signing(killed + 0.3)} == {503}
            p11kit.start()
            assert_recovers(load, 8)
    assert_well_behaved(server, load)
    assert server.stop() == 0


def test_stopped(server: Server, p11kit: P11KitServer) -> None:
    with Load(server, "demo").running() as load:
        wait_until(lambda: signs(load, 0), 5, "signing")
        p11kit.stop()
        stopped = time.monotonic()
        time.sleep(CALL_TIMEOUT + 2.0)
        p11kit.go_on()
        assert_recovers(load, 3)
    assert_well_behaved(server, load)
    in_flight = [one for one in load.signing() if one.began < stopped + 0.2 < one.ended]
    assert len(in_flight) >= 4
    assert max(one.seconds for one in in_flight) < CALL_TIMEOUT + 0.7
    # Each worker finds out for itself, when its first call is overdue.
    later = [
        one
        for one in load.signing(stopped + CALL_TIMEOUT + 0.8)
        if one.ended < stopped + CALL_TIMEOUT + 2.0
    ]
    assert {one.status for one in later} == {503}
    assert max(one.seconds for one in later) < 0.2
    assert server.stop() == 0


def test_stopped_when_the_service_starts(installation: Installation, p11kit: P11KitServer) -> None:
    p11kit.stop()
    server = Server(installation)
    try:
        server.start()
        with Load(server, "demo").running() as load:
            time.sleep(CALL_TIMEOUT + 1.5)
            p11kit.go_on()
            assert_recovers(load, 8)
        assert_well_behaved(server, load)
        assert server.stop() == 0
    finally:
        server.kill_all()


def test_absent_when_the_service_starts(installation: Installation, p11kit: P11KitServer) -> None:
    p11kit.kill()
    server = Server(installation)
    try:
        server.start()
        with Load(server, "demo").running() as load:
            time.sleep(1)
            assert {one.status for one in load.signing()} == {503}
            p11kit.start()
            assert_recovers(load, 8)
        assert_well_behaved(server, load)
    finally:
        server.kill_all()


def test_a_worker_that_is_stuck_for_good_is_replaced(
    server: Server, p11kit: P11KitServer, own_token: Token, tmp_path: Path
) -> None:
    """The old token process never answers again; another one does, for whoever connects anew."""
    elsewhere = tmp_path / "fresh"
    elsewhere.mkdir()
    fresh = P11KitServer(own_token, elsewhere)
    workers = set(server.worker_pids())
    with Load(server, "demo").running() as load:
        wait_until(lambda: signs(load, 0), 5, "signing")
        p11kit.stop()
        try:
            fresh.start()
            (elsewhere / "p11-kit.sock").replace(tmp_path / "p11-kit.sock")
            wait_until(lambda: not workers & set(server.worker_pids()), 25, "replacement")
            assert_recovers(load, 5)
            time.sleep(1)
            settled = time.monotonic()
            time.sleep(1)
        finally:
            fresh.kill()
    assert {one.status for one in load.signing(settled) if one.began < settled + 0.8} == {200}
    # A replaced worker closes its connections: nothing else may fail in that way.
    assert load.failed_connections() <= 2 * 10
    assert {one.status for one in load.reading()} == {200}
    assert [o for o in load.signing() if o.status != 200 and not is_retryable(o)] == []


def test_ends_while_the_token_hangs(server: Server, p11kit: P11KitServer) -> None:
    with Load(server, "demo", signers=4).running() as load:
        wait_until(lambda: signs(load, 0), 5, "signing")
        p11kit.stop()
        time.sleep(0.3)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 12
    assert server.worker_pids() == []


def test_readiness_says_which_backend_is_down(server: Server, p11kit: P11KitServer) -> None:
    """Still 200: what verifiers need is there."""
    assert server.sign("demo").status == 200
    p11kit.kill()
    wait_until(lambda: server.sign("demo").status == 503, 3, "the loss is noticed")

    def degraded() -> bool:
        answer = server.http().get("/readyz")
        assert answer.status == 200
        shown = answer.json()
        return shown["status"] == "degraded" and "token" in shown["backends_down"]

    wait_until(degraded, 3, "readiness")


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_the_command_line_says_that_the_token_is_away(
    installation: Installation, p11kit: P11KitServer, fault: str
) -> None:
    p11kit.kill() if fault == "kill" else p11kit.stop()
    for words in (("doctor",), ("sign", "demo"), ("keysets", "create", "b", "--alg", "ES256")):
        started = time.monotonic()
        done = installation.cli(*words)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 8
    assert installation.cli("jwks", "get").returncode == 0
