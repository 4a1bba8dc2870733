"""Batches over a real service and SoftHSM: they verify, and what is released is recorded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Keyset
from tests.faults.test_audit_full_disk import SmallDisk
from tests.support.audit import verified_events
from tests.support.http import Answer
from tests.support.load import wait_until
from tests.support.service import Installation, Server
from tests.support.softhsm import provision

_ITEMS = 50


def ask(server: Server, keyset: str, items: list[dict[str, Any]]) -> Answer:
    path = f"/v1/keysets/{keyset}/sign/jwt/batch"
    return server.http("all").post(path, {"items": items})


def test_every_algorithm(server: Server, keysets: dict[str, Keyset]) -> None:
    for keyset in keysets.values():
        items: list[dict[str, Any]] = [
            {"reference": "a", "claims": {"sub": "a", "n": 2**100 + 1}},
            {"reference": "b", "claims": {"iss": "me"}},
            {"reference": "c", "claims": {"sub": "c"}},
        ]
        answer = ask(server, keyset.name, items)
        assert answer.status == 200, answer.body
        first, second, third = answer.json()["results"]
        assert (first["reference"], second["reference"], third["reference"]) == ("a", "b", "c")
        assert second["error"]["code"] == "claim-rejected"
        for one, sub in ((first, "a"), (third, "c")):
            path = f"/v1/keysets/{keyset.name}/verify"
            verified = server.http("all").post(path, {"token": one["token"]}).json()
            assert (verified["valid"], verified["claims"]["sub"]) == (True, sub), keyset


def test_any_verifier_takes_them(server: Server, keysets: dict[str, Keyset]) -> None:
    keyset = keysets["ES256"]
    items = [{"claims": {"sub": str(n)}} for n in range(1000)]
    results = ask(server, keyset.name, items).json()["results"]
    keys = jwt.PyJWKSet.from_dict(server.http().get("/.well-known/jwks.json").json())
    key = keys[keyset.kid].key
    claims = [jwt.decode(one["token"], key, ["ES256"], issuer=keyset.issuer) for one in results]
    assert [one["sub"] for one in claims] == [str(n) for n in range(1000)]


def test_one_byte_too_many(server: Server, keysets: dict[str, Keyset]) -> None:
    path = f"/v1/keysets/{keysets['ES256'].name}/sign/jwt/batch"
    body = json.dumps({"items": [{"claims": {}}] * 1000}).encode()
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        padded = body + b" " * (size - len(body))
        headers = {"Content-Type": "application/json"}
        assert server.http("all").request("POST", path, padded, headers).status == status


@pytest.fixture
def own(tmp_path: Path) -> Installation:
    made = Installation(tmp_path / "service", provision(tmp_path / "token").options())
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def own_server(own: Installation) -> Iterator[Server]:
    running = Server(own)
    yield running
    running.kill_all()


class Batches:
    """Client threads that ask for batches without pause. ``released``: the jti of every token."""

    def __init__(self, server: Server) -> None:
        self.released: list[str] = []
        self.statuses: list[int] = []
        self._server, self._over = server, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def __enter__(self) -> Batches:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for_more(self) -> None:
        enough = len(self.released) + 300
        wait_until(lambda: len(self.released) > enough, 20, "tokens")

    def _run(self) -> None:
        items = [{"claims": {"sub": str(n)}} for n in range(_ITEMS)]
        while not self._over.is_set():
            try:
                answer = ask(self._server, "demo", items)
            except OSError:
                time.sleep(0.02)
                continue
            self.statuses.append(answer.status)
            if answer.status == 200:
                tokens = [one["token"] for one in answer.json()["results"] if "token" in one]
                self.released += [
                    jwt.decode(token, options={"verify_signature": False})["jti"]
                    for token in tokens
                ]
            else:
                assert b"eyJ" not in answer.body


def recorded(installation: Installation) -> list[str]:
    return [one["jti"] for one in verified_events(installation.audit_directory)]


def test_killed_workers(own: Installation, own_server: Server) -> None:
    own_server.start()
    with Batches(own_server) as batches:
        for _ in range(4):
            batches.wait_for_more()
            own_server.kill_worker()
        wait_until(lambda: len(own_server.worker_pids()) == 2, 5, "new workers")
    assert set(batches.statuses) == {200}
    assert len(set(batches.released)) == len(batches.released)
    for torn in own.audit_directory.glob("*.jsonl"):  # whoever was killed while writing
        whole, _, _ = torn.read_bytes().rpartition(b"\n")
        torn.write_bytes(whole + b"\n" if whole else b"")
    assert set(batches.released) <= set(recorded(own))


def test_a_full_disk(own: Installation, own_server: Server) -> None:
    for file in own.audit_directory.iterdir():
        file.unlink()
    own.audit_directory.rmdir()
    disk = SmallDisk(own.audit_directory, own_server)
    disk.mount()
    try:
        own_server.start()
        with Batches(own_server) as batches:
            wait_until(lambda: 503 in batches.statuses or _nearly(own), 20, "a filling disk")
            if 503 not in batches.statuses:
                disk.fill()
            wait_until(lambda: batches.statuses.count(503) > 20, 10, "refusals")
        assert set(batches.statuses) == {200, 503}
        assert sorted(recorded(own)) == sorted(batches.released)
    finally:
        own_server.kill_all()
        disk.unmount()


def _nearly(installation: Installation) -> bool:
    return sum(file.stat().st_size for file in installation.audit_directory.iterdir()) > 100_000
