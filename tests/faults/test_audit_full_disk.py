"""A file system that is really full, under load: no token without its record, and no restart."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from kmsjwks.domain.audittrail import Status
from kmsjwks.storage.audit_reader import AuditReader
from tests.support.audit import verified_events
from tests.support.load import Load, Seen, wait_until
from tests.support.service import Installation, Server
from tests.support.softhsm import Token


class SmallDisk:
    """A file system of 256 KiB where mounting is allowed; elsewhere a limit on the size of files,
    which fails with half lines in the same way (EFBIG in the place of ENOSPC)."""

    def __init__(self, directory: Path, server: Server) -> None:
        self._directory, self._server = directory, server
        self._ballast = directory / "ballast"
        self.mounted = False

    def mount(self) -> None:
        self._directory.mkdir(mode=0o700)
        options = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]
        done = subprocess.run([*options, str(self._directory)], capture_output=True, check=False)
        self.mounted = done.returncode == 0

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self._directory)], check=True)

    def fill(self) -> None:
        if self.mounted:
            with pytest.raises(OSError, match="No space left"), self._ballast.open("ab", 0) as file:
                while True:
                    file.write(b"\0" * 1024)
        else:
            self._limit(100)

    def free(self) -> None:
        if self.mounted:
            self._ballast.unlink()
        else:
            self._limit(-1)

    def read_only(self, on: bool) -> None:
        """Where nothing can be mounted, a file in the place of the directory is as bad."""
        if self.mounted:
            how = f"remount,{'ro' if on else 'rw'}"
            subprocess.run(["mount", "-o", how, str(self._directory)], check=True)
        elif on:
            self._directory.rmdir()
            self._directory.touch()
        else:
            self._directory.unlink()

    def _limit(self, size: int) -> None:
        resource = pytest.importorskip("resource")
        for pid in self._server.worker_pids():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def installation(own_token: Token, tmp_path: Path) -> Installation:
    made = Installation(tmp_path / "service", own_token.options())
    made.create_keyset("demo", "ES256")
    for file in made.audit_directory.iterdir():
        file.unlink()
    made.audit_directory.rmdir()
    return made


@pytest.fixture
def server(installation: Installation) -> Iterator[Server]:
    running = Server(installation)
    yield running
    running.kill_all()


@pytest.fixture
def disk(installation: Installation, server: Server) -> Iterator[SmallDisk]:
    made = SmallDisk(installation.audit_directory, server)
    made.mount()
    yield made
    server.kill_all()
    made.unmount()


def is_refused(one: Seen) -> bool:
    answer = one.answer
    assert answer is not None
    if one.status == 200:
        return False
    assert (one.status, answer.json()["code"]) == (503, "audit-unavailable"), answer.body
    assert int(answer.header("Retry-After")) >= 1
    assert b"eyJ" not in answer.body
    return True


def settled(server: Server, refused: bool) -> None:
    """Both workers are so, as many answers in a row show."""

    def so() -> bool:
        return {server.sign("demo").status for _ in range(12)} == {503 if refused else 200}

    wait_until(so, 10, server.logged)


def kept_lines(installation: Installation) -> int:
    """Without those that are being written and taken back at this moment."""
    return min(installation.audit_lines() for _ in range(10))


def test_a_full_disk_under_load(server: Server, disk: SmallDisk) -> None:
    server.start()
    installation = server.installation
    tokens = [server.sign("demo").json()["token"] for _ in range(10)]
    with Load(server, "demo").running() as load:
        wait_until(lambda: len(load.tokens()) > 30, 10, "tokens")
        disk.fill()
        wait_until(lambda: any(one.status == 503 for one in load.signing()), 10, "refusals")
        time.sleep(0.3)  # what was begun before is over
        full_since = time.monotonic()
        before = kept_lines(installation)
        wait_until(lambda: len(load.signing(full_since)) > 50, 10, "refusals")
        while_full = load.signing(full_since)
        assert [one for one in while_full if not is_refused(one)] == []
        assert kept_lines(installation) == before
        reading = load.reading()
        freed = time.monotonic()
        disk.free()
        wait_until(lambda: any(one.status == 200 for one in load.signing(freed)), 10, "tokens")
        time.sleep(0.3)
    assert {one.status for one in reading} == {200}
    assert {one.status for one in load.signing()} == {200, 503}
    tokens += load.tokens()
    assert server.stop() == 0
    released = [jwt.decode(token, options={"verify_signature": False})["jti"] for token in tokens]
    recorded = [one["jti"] for one in verified_events(installation.audit_directory)]
    assert sorted(recorded) == sorted(released)
    assert AuditReader(installation.audit_directory).verify().sound


def test_half_a_line_fits(server: Server, disk: SmallDisk) -> None:
    """The last free bytes are fewer than a record, so that some writes are cut short."""
    server.start()
    settled(server, refused=False)
    disk.fill()
    statuses = [server.sign("demo").status for _ in range(60)]
    assert 503 in statuses
    disk.free()
    settled(server, refused=False)
    assert server.stop() == 0
    report = AuditReader(server.installation.audit_directory).verify()
    assert report.sound, report.problems
    assert {chain.status for chain in report.chains} == {Status.CLOSED}


def test_a_read_only_file_system(server: Server, disk: SmallDisk) -> None:
    disk.read_only(True)
    server.start()
    settled(server, refused=True)
    assert server.http().get("/.well-known/jwks.json").status == 200
    assert server.installation.audit_lines() == 0
    disk.read_only(False)
    settled(server, refused=False)
    assert server.stop() == 0
    report = AuditReader(server.installation.audit_directory).verify()
    assert (report.sound, {chain.status for chain in report.chains}) == (True, {Status.CLOSED})
