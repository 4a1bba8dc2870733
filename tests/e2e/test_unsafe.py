"""`rotation.development` shows: in every answer, every log line, and with every command."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.service import Installation, Server
from tests.support.softhsm import provision

HEADER = "X-Kmsjwks-Unsafe"
JWKS = "/.well-known/jwks.json"


@pytest.fixture(scope="module")
def unsafe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("unsafe")
    installation = Installation(directory / "service", provision(directory / "token").options())
    with installation.config.open("a") as config:
        config.write("\n[rotation]\ndevelopment = true\n")
    installation.create_keyset("es", "ES256", "--propagation", "1m")
    server = Server(installation)
    server.start()
    yield server
    server.kill_all()


def test_every_answer(unsafe: Server) -> None:
    http, signing = unsafe.http(), unsafe.http("all")
    etag = http.get(JWKS).header("ETag")
    answers = [
        http.get(JWKS),
        http.get(JWKS, {"If-None-Match": etag}),
        http.request("OPTIONS", JWKS),
        http.get("/healthz"),
        http.get("/nowhere"),
        http.request("DELETE", "/healthz"),
        http.post("/v1/keysets/es/sign/jwt", {"claims": {}}),
        signing.get("/v1/keysets"),
        signing.post("/v1/keysets/es/sign/jwt", {"claims": {"sub": "alice"}}),
    ]
    statuses = [answer.status for answer in answers]
    assert statuses == [200, 304, 204, 200, 404, 405, 401, 200, 200]
    assert [answer.header(HEADER) for answer in answers] == ["rotation.development"] * len(answers)


def test_every_log_line(unsafe: Server) -> None:
    lines = [json.loads(line) for line in unsafe.logged().splitlines() if line.startswith("{")]
    assert lines
    assert [line for line in lines if line.get("unsafe") is not True] == []
    others = [line for line in unsafe.logged().splitlines() if not line.startswith("{")]
    assert len(others) == 1
    assert others[0].startswith("warning: rotation.development")


@pytest.mark.parametrize(
    "words",
    [
        ("keysets", "list"),
        ("keysets", "show", "es"),
        ("keys", "list"),
        ("jwks", "get"),
        ("config", "check"),
        ("rotate", "--due"),
        ("sign", "es", "--claims", "{}"),
    ],
)
def test_every_command(unsafe: Server, words: tuple[str, ...]) -> None:
    done = unsafe.installation.cli(*words)
    assert done.returncode == 0, done.stderr
    assert "warning: rotation.development is set, which is UNSAFE" in done.stderr


def test_a_safe_service_has_no_such_mark(server: Server) -> None:
    assert server.http().get(JWKS).header(HEADER) == ""
    assert "unsafe" not in server.logged().lower()
