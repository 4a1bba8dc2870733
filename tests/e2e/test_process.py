"""The process: ending, restarting, a port that is taken, what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest

from tests.support.http import Answer, read_response
from tests.support.load import wait_until
from tests.support.service import Installation, Server
from tests.support.softhsm import Token, provision

BODY = b'{"claims": {"sub": "a"}}'


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return provision(tmp_path_factory.mktemp("process") / "token")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, token: Token) -> Installation:
    directory = tmp_path_factory.mktemp("process-service")
    made = Installation(directory, token.options(), shutdown_timeout=2)
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def running(own: Installation) -> Iterator[Server]:
    server = Server(own)
    server.start()
    yield server
    server.kill_all()


def half_sent(server: Server) -> socket.socket:
    """A request that the service is reading."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = (
        "POST /v1/keysets/demo/sign/jwt HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {server.installation.tokens['all']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    connection.sendall(head.encode() + BODY[:5])
    return connection


def finish(connection: socket.socket) -> Answer:
    with connection:
        connection.sendall(BODY[5:])
        return read_response(connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_finish(running: Server, number: signal.Signals) -> None:
    in_flight = [half_sent(running) for _ in range(40)]
    time.sleep(0.2)
    running.process.send_signal(number)
    time.sleep(0.3)
    assert running.process.poll() is None
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(finish, in_flight))
    assert [answer.status for answer in answers] == [200] * 40
    assert running.process.wait(5) == 0
    assert running.worker_pids() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=1)


def test_ends_under_load(running: Server) -> None:
    """Every answer that comes is a good one; then connections are refused."""

    def load(_: int) -> list[int]:
        seen = []
        while True:
            try:
                seen.append(running.sign("demo").status)
            except OSError:
                return seen

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(load, range(8))
        time.sleep(1)
        assert running.stop() == 0
        assert running.worker_pids() == []
        statuses = [status for seen in results for status in seen]
    assert len(statuses) > 50
    assert set(statuses) == {200}


def test_a_client_that_stalls_does_not_stop_the_end(own: Installation) -> None:
    server = Server(own)
    server.start()
    stalled = half_sent(server)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(20)
    assert time.monotonic() - started < 5  # shutdown_timeout is 2
    assert server.worker_pids() == []
    stalled.close()
    server.kill_all()


def test_clients_that_stall_leave_the_jwks_and_health_alone(running: Server) -> None:
    stalled = [half_sent(running) for _ in range(320)]  # more than both workers have threads
    time.sleep(0.3)
    for path in ("/.well-known/jwks.json", "/healthz", "/readyz") * 3:
        answer = running.http(timeout=2).get(path)
        assert (answer.status, answer.seconds < 0.5) == (200, True)
    refused = [running.sign("demo")]
    while refused[-1].status == 200 and len(stalled) < 960:  # connections are shared unevenly
        stalled += [half_sent(running) for _ in range(64)]
        refused.append(running.sign("demo"))
    assert (refused[-1].status, refused[-1].json().get("code")) == (503, "overloaded")
    for connection in stalled:
        connection.close()
    wait_until(lambda: running.sign("demo").status == 200, 3, "signing")


@pytest.mark.parametrize("delay", [0.3, 0.45, 0.6, 0.75])
def test_ends_while_it_starts(own: Installation, delay: float) -> None:
    server = Server(own)
    server.launch()
    try:
        time.sleep(delay)
        started = time.monotonic()
        assert server.stop() in (0, -signal.SIGTERM)  # the latter before it handles signals
        assert time.monotonic() - started < 1.5
        wait_until(lambda: not server.worker_pids(), 1, "the workers' end")
    finally:
        server.kill_all()


def test_a_restart_keeps_the_keys(own: Installation) -> None:
    first = Server(own)
    first.start()
    before = first.sign("demo").json()
    document = first.http().get("/.well-known/jwks.json")
    assert first.stop() == 0
    second = Server(own)
    second.start()
    try:
        after = second.http().get("/.well-known/jwks.json")
        assert (after.body, after.header("ETag")) == (document.body, document.header("ETag"))
        key = jwt.PyJWKClient(f"{own.base_url}/.well-known/jwks.json")
        claims = jwt.decode(
            before["token"], key.get_signing_key_from_jwt(before["token"]), algorithms=["ES256"]
        )
        assert claims["jti"] == before["jti"]
        verdict = second.http("all").post("/v1/keysets/demo/verify", {"token": before["token"]})
        assert verdict.json()["valid"] is True
        assert second.sign("demo").json()["kid"] == before["kid"]
    finally:
        second.kill_all()


def test_a_port_that_another_service_has(running: Server, own: Installation) -> None:
    refused_to_start(own, running.port)
    assert running.sign("demo").status == 200


@pytest.mark.parametrize("reuse", [False, True], ids=["exclusive", "SO_REUSEPORT"])
def test_a_port_that_another_program_has(own: Installation, reuse: bool) -> None:
    with socket.socket() as other:
        if reuse:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        refused_to_start(own, other.getsockname()[1])


def refused_to_start(installation: Installation, port: int) -> None:
    done = installation.cli("serve", "--port", str(port))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_do_not_outlive_a_killed_service(running: Server) -> None:
    """They would keep the port, and sign with a configuration that nobody can change."""
    workers = running.worker_pids()
    assert len(workers) == 2
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(5)
    wait_until(lambda: not running.worker_pids(), 5, "the workers' end")


def test_secrets_stay_out_of_logs_and_the_audit_trail(running: Server, token: Token) -> None:
    marker = "claim-value-that-is-private"
    http = running.http("all")
    wait_until(lambda: running.sign("demo").status == 200, 15, running.logged)
    answer = http.post("/v1/keysets/demo/sign/jwt", {"claims": {"sub": marker}})
    assert answer.status == 200, answer.body + running.logged().encode()
    signed = answer.json()["token"]
    assert http.post("/v1/keysets/demo/sign/jwt", {"claims": {"iss": marker}}).status == 422
    assert running.stop() == 0
    written = running.logged() + "".join(map(Path.read_text, audit_files(running)))
    secrets = [marker, signed, signed.rsplit(".", 1)[1], token.pin_file.read_text().strip()]
    secrets += running.installation.tokens.values()
    assert [secret for secret in secrets if secret in written] == []


def audit_files(server: Server) -> list[Path]:
    files = sorted(server.installation.audit_directory.glob("*.jsonl"))
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    return files
