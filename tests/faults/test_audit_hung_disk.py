"""A file system that takes no writes and refuses none: requests are answered, and it recovers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest

from kmsjwks.storage.audit_reader import AuditReader
from tests.support.audit import verified_events
from tests.support.load import wait_until
from tests.support.service import Installation, Server
from tests.support.softhsm import Token

_PATIENCE = 3.5  # seconds: the default of audit.write_timeout, and the time to notice

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="freezing a file system needs root")


class FreezingDisk:
    """An ext4 file system in a file, which can be frozen (fsfreeze(8)): then writes to it hang."""

    def __init__(self, image: Path, place: Path) -> None:
        self._place = place
        with image.open("wb") as file:
            file.truncate(8 * 1024 * 1024)
        _run("mkfs.ext4", "-q", str(image))
        _run("mount", "-o", "loop", str(image), str(place))
        place.chmod(0o700)
        self._frozen = False

    def freeze(self) -> None:
        _run("fsfreeze", "-f", str(self._place))
        self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            _run("fsfreeze", "-u", str(self._place))
            self._frozen = False

    def remove(self) -> None:
        self.thaw()
        _run("umount", "-l", str(self._place))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


@pytest.fixture
def server(own_token: Token, tmp_path: Path) -> Iterator[Server]:
    installation = Installation(tmp_path / "service", own_token.options())
    installation.create_keyset("demo", "ES256")
    for file in installation.audit_directory.iterdir():
        file.unlink()
    running = Server(installation)
    yield running
    running.kill_all()


@pytest.fixture
def disk(server: Server, tmp_path: Path) -> Iterator[FreezingDisk]:
    made = FreezingDisk(tmp_path / "image", server.installation.audit_directory)
    yield made
    made.thaw()
    server.kill_all()
    made.remove()


def test_a_disk_that_hangs(server: Server, disk: FreezingDisk) -> None:
    server.start()
    tokens = [server.sign("demo").json()["token"] for _ in range(20)]
    disk.freeze()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.sign("demo"), range(24)))
    assert {(one.status, one.json()["code"]) for one in answers} == {(503, "audit-unavailable")}
    assert max(one.seconds for one in answers) < _PATIENCE
    later = [server.sign("demo") for _ in range(12)]
    assert {one.status for one in later} == {503}
    assert max(one.seconds for one in later) < 0.5, "it is known to hang: nobody waits again"
    assert server.http().get("/.well-known/jwks.json").status == 200
    disk.thaw()

    def recovered() -> bool:
        found = [server.sign("demo") for _ in range(12)]
        tokens.extend(one.json()["token"] for one in found if one.status == 200)
        return {one.status for one in found} == {200}

    wait_until(recovered, 10, server.logged)
    assert server.stop() == 0
    released = {jwt.decode(one, options={"verify_signature": False})["jti"] for one in tokens}
    recorded = {one["jti"] for one in verified_events(server.installation.audit_directory)}
    assert released <= recorded
    assert len(recorded) <= len(released) + 2 * 8  # written late, for requests that were refused
    assert AuditReader(server.installation.audit_directory).verify().sound
