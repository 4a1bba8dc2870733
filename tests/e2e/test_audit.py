"""A real service with SoftHSM: killed, stopped, its trail proved, then tampered with."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import verified_records
from tests.support.service import Installation, Server
from tests.support.softhsm import provision


class Notarised(Installation):
    """With checkpoints every second, kept outside of the audit directory too."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, provision(directory / "token").options())
        text = self.config.read_text().replace(
            'directory = "audit"\n',
            'directory = "audit"\ncheckpoint_keyset = "notary"\ncheckpoint_interval = 1\n'
            'checkpoint_targets = ["outside"]\n',
        )
        self.config.write_text(text)
        self.outside = directory / "outside"

    def proved(self, code: int) -> dict[str, Any]:
        """By the program, without configuration."""
        done = self.cli(
            "-o", "json", "audit", "verify", str(self.audit_directory),
            "--checkpoints", str(self.outside), "--keys", str(self.directory / "keys.json"),
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def notarised(tmp_path: Path) -> Notarised:
    made = Notarised(tmp_path / "service")
    made.create_keyset("notary", "ES256")
    made.create_keyset("demo", "ES256")
    return made


@pytest.fixture
def server(notarised: Notarised) -> Iterator[Server]:
    made = Server(notarised)
    made.start()
    yield made
    made.kill_all()


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_life_with_a_kill_and_an_end(server: Server, notarised: Notarised) -> None:
    _sign(server, 20)
    _until(lambda: b"checkpoint.signed" in _trail(notarised))
    server.kill_worker()
    server.wait_ready()
    _sign(server, 20)
    assert server.stop() == 0
    keys = notarised.cli("audit", "keys")
    assert keys.returncode == 0
    (notarised.directory / "keys.json").write_text(keys.stdout)

    found = notarised.proved(0)
    records = verified_records(notarised.audit_directory)
    assert found["records"] == len(records)
    closed = [one for one in found["chains"] if one["status"] == "closed"]
    # Every chain of a process that ended in an orderly way is proved to its last record.
    assert len(closed) >= 2
    serving = [one for one in closed if _signs(records, one["chain"])]
    assert serving
    assert all(one["proved_to_seq"] == one["records"] - 1 for one in serving)

    _tamper(notarised, serving[0]["files"][-1])
    (problem,) = notarised.proved(5)["problems"]
    assert (problem["kind"], problem["file"]) == ("truncated", serving[0]["files"][-1])


def test_the_tail_of_a_killed_process_is_covered(server: Server, notarised: Notarised) -> None:
    """Whoever goes on has the end of its chain signed: the loss of its last records shows."""
    _sign(server, 20)
    _until(lambda: b"checkpoint.signed" in _trail(notarised))
    _sign(server, 20)
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    server.wait_ready()
    _sign(server, 20)
    (notarised.directory / "keys.json").write_text(notarised.cli("audit", "keys").stdout)
    left = [one for one in notarised.proved(0)["chains"] if one["status"] == "open"]

    def covered() -> list[str]:
        """Chains that were left open and are proved to their last record."""
        found = {one["chain"]: one for one in notarised.proved(0)["chains"]}
        return [
            str(one["files"][-1])
            for one in (found[one["chain"]] for one in left)
            if one["proved_to_seq"] == one["records"] - 1
        ]

    _until(lambda: bool(covered()))
    name = covered()[0]
    path = notarised.audit_directory / name
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (problem,) = notarised.proved(5)["problems"]
    assert (problem["kind"], problem["file"]) == ("truncated", name)


def _sign(server: Server, number: int) -> None:
    """A killed worker takes its connections along: those requests were answered by nobody."""
    done = 0
    while done < number:
        with suppress(ConnectionError):
            assert server.sign("demo").status == 200
            done += 1


def _signs(records: list[dict[str, Any]], chain: str) -> bool:
    return any(one["event"] == "jwt.signed" for one in records if one["chain"] == chain)


def _trail(notarised: Notarised) -> bytes:
    return b"".join(path.read_bytes() for path in notarised.audit_directory.glob("*.jsonl"))


def _tamper(notarised: Notarised, name: str) -> None:
    """Cut the tail off so that the chain seems to be one that was killed."""
    path = notarised.audit_directory / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
