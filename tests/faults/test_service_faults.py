"""Workers are killed, the audit trail cannot be written, the database is gone."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest

from kmsjwks.backends.pkcs11.library import Libraries
from tests.support.audit import verified_events
from tests.support.http import Answer
from tests.support.load import Load, wait_until
from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import Token, open_backend


@pytest.fixture
def installation(own_token: Token, tmp_path: Path) -> Installation:
    made = Installation(tmp_path / "service", own_token.options())
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    running = Server(installation)
    running.start()
    yield running
    running.kill_all()


def assert_recorded(installation: Installation, tokens: list[str]) -> None:
    """What was released is in the audit trail, whose chains hold."""
    recorded = {event["jti"] for event in verified_events(installation.audit_directory)}
    released = {jwt.decode(t, options={"verify_signature": False})["jti"] for t in tokens}
    assert len(released) == len(tokens)
    assert released <= recorded


def test_workers_killed_one_after_the_other(server: Server) -> None:
    with Load(server, "demo").running() as load:
        for _ in range(6):
            time.sleep(0.7)
            assert server.process.poll() is None
            server.kill_worker()
        wait_until(lambda: len(server.worker_pids()) == 2, 5, "new workers")
        time.sleep(0.5)
        settled = time.monotonic()
        time.sleep(1)
    assert set(load.statuses()) <= {0, 200}  # connection errors, but no other failure
    assert [one.status for one in load.seen if one.began > settled and one.status != 200] == []
    assert len(load.signing(settled)) > 100
    assert_recorded(server.installation, load.tokens())
    key = jwt.PyJWKSet.from_dict(server.http().get("/.well-known/jwks.json").json()).keys[0]
    assert all(jwt.decode(token, key, algorithms=["ES256"]) for token in load.tokens())
    assert server.stop() == 0
    assert server.worker_pids() == []


def audit_refused(answer: Answer) -> None:
    assert (answer.status, answer.header("Content-Type")) == (503, "application/problem+json")
    assert answer.json()["code"] == "audit-unavailable"
    assert int(answer.header("Retry-After")) >= 1
    assert b"eyJ" not in answer.body


def test_no_audit_directory_no_tokens(installation: Installation) -> None:
    """A file in its place: no new file can be made in it."""
    directory = installation.audit_directory
    shutil.rmtree(directory)  # the keyset's creation is in it
    directory.write_text("in the way")
    server = Server(installation)
    server.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            for answer in pool.map(lambda _: server.sign("demo"), range(40)):
                audit_refused(answer)
        assert server.http().get("/.well-known/jwks.json").status == 200
        directory.unlink()
        tokens = [server.sign("demo").json()["token"] for _ in range(10)]
        assert_recorded(installation, tokens)
    finally:
        server.kill_all()


def limit_files(server: Server, size: int) -> None:
    """No worker can write beyond ``size`` bytes of any file: a full disk that needs no root."""
    for pid in server.worker_pids():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_an_audit_disk_that_is_full(server: Server) -> None:
    before = [server.sign("demo").json()["token"] for _ in range(20)]
    limit_files(server, 100)  # less than one record: half lines are written
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda _: server.sign("demo"), range(60)):
            audit_refused(answer)
    assert server.http().get("/.well-known/jwks.json").status == 200
    limit_files(server, resource.RLIM_INFINITY)
    after = [server.sign("demo").json()["token"] for _ in range(20)]
    assert_recorded(server.installation, before + after)
    assert server.installation.audit_lines() == 40


def test_without_the_database(server: Server, tmp_path: Path) -> None:
    """Keys are known already: the JWKS and signing go on, and the file may come back."""
    assert server.sign("demo").status == 200
    document = server.http().get("/.well-known/jwks.json").body
    moved = tmp_path / "moved"
    moved.mkdir()
    files = sorted(server.installation.database.parent.glob("kmsjwks.db*"))
    for file in files:
        file.rename(moved / file.name)
    with Load(server, "demo", signers=2).running() as load:
        time.sleep(2)  # four refreshes
    assert set(load.statuses()) == {200}
    assert server.http().get("/.well-known/jwks.json").body == document
    assert server.sign("absent").status == 404
    for file in files:
        (moved / file.name).replace(file)
    server.installation.create_keyset("later", "ES256")
    wait_until(lambda: server.sign("later").status == 200, 3, "the new keyset")


def test_ten_services_start_at_once(installation: Installation) -> None:
    servers = [Server(installation, port=free_port(), workers=1) for _ in range(10)]
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready(30)
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda server: server.sign("demo"), servers))
        assert [answer.status for answer in answers] == [200] * 10
        assert len({answer.json()["kid"] for answer in answers}) == 1
        for server in servers:
            server.process.terminate()
        assert [server.process.wait(10) for server in servers] == [0] * 10
        assert_recorded(installation, [answer.json()["token"] for answer in answers])
    finally:
        for server in servers:
            server.kill_all()


def create_at_once(
    installation: Installation, names: list[str]
) -> list[subprocess.CompletedProcess[str]]:
    def create(name: str) -> subprocess.CompletedProcess[str]:
        return installation.cli("-o", "json", "keysets", "create", name, "--algorithm", "ES256")

    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(create, names))


def references(installation: Installation) -> set[str]:
    """Of the keys that the store knows."""
    rows = json.loads(installation.cli("-o", "json", "keys", "list").stdout)
    assert len({row["ref"] for row in rows}) == len(rows)
    return {row["ref"] for row in rows}


def refs_on_token(options: dict[str, Any], state: Path) -> set[str]:
    backend = open_backend(options, state, Libraries())
    return {key.ref for key in backend.list_keys()}


def held(token: Token, state: Path) -> set[str]:
    """References of the keys on the token; asked in a process of its own, because this one's
    SoftHSM has another token."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(refs_on_token, token.options(), state).result(30)


def test_ten_keysets_created_at_once(
    installation: Installation, own_token: Token, tmp_path: Path
) -> None:
    done = create_at_once(installation, [f"set-{number}" for number in range(10)])
    assert [one.returncode for one in done] == [0] * 10, [one.stderr for one in done]
    refs = references(installation)
    assert len(refs) == 2 * 11
    assert held(own_token, tmp_path) == refs


def test_one_keyset_created_ten_times_at_once(
    installation: Installation, own_token: Token, tmp_path: Path
) -> None:
    done = create_at_once(installation, ["same"] * 10)
    assert sorted(one.returncode for one in done) == [0] + [1] * 9
    for one in done:
        if one.returncode:
            assert "same exists already" in one.stderr
            assert "Traceback" not in one.stderr
    refs = references(installation)
    assert len(refs) == 2 * 2
    assert held(own_token, tmp_path) == refs  # no orphan
