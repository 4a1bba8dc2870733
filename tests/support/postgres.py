"""A real PostgreSQL server from the distribution's package, to be stopped, killed and frozen."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

HINT = "apt-get install postgresql"
ROLE, PASSWORD = "kmsjwks", "Sw0rdfish"  # an ordinary role, as in production
_ADMIN = "postgres"
_PLACES = (  # the same as in scripts/require.sh
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/lib/postgresql*/bin",
    "usr/libexec/postgresql*",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/bin",
)
# A commit survives the server's end, though not the machine's; waiting for disks is slow.
_OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=50")


class PostgresServer:
    """A cluster in a directory of its own, under ``/tmp`` so that its user may reach it.

    Loopback connections need the password of ``ROLE``; those through the socket need none.
    """

    def __init__(self) -> None:
        self._programs = programs()
        self._directory = Path(tempfile.mkdtemp(prefix="kmsjwks-postgres-", dir="/tmp"))
        self._user = _unprivileged()
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self.port = _free_port()
        self._initialise()

    def start(self) -> None:
        options = (f"port={self.port}", f"unix_socket_directories={self._directory}", *_OPTIONS)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._directory / "data",
                 *(argument for option in options for argument in ("-c", option))],
                cwd=self._directory,
                user=self._user,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._wait()

    def stop(self) -> None:
        """At once, as ``systemctl stop`` does: sessions are ended, everything is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Without cleaning up; recovers when it is started again."""
        self._end(signal.SIGQUIT)

    def freeze(self) -> None:
        """New connections get no answer; those that are open go on."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Stopped meanwhile, and started again."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def remove(self) -> None:
        if self._process is not None:
            self.thaw()
            self.kill()
        shutil.rmtree(self._directory)

    def create_database(self) -> str:
        """A new, empty one, owned by ``ROLE``; its name."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def create_schema(self, database: str) -> str:
        """The URL of a new, empty schema: forty times as fast to make as a database."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE SCHEMA {name} AUTHORIZATION {ROLE}", database)
        return f"{self.socket_url(database)}&options=-c%20search_path%3D{name}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """As the superuser."""
        with self._connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, password: str = PASSWORD) -> str:
        """Through loopback."""
        return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str) -> str:
        return f"postgresql://{ROLE}@/{database}?host={self._directory}&port={self.port}"

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._directory),
            port=self.port,
            user=_ADMIN,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def _initialise(self) -> None:
        done = subprocess.run(
            [self._programs / "initdb", "-D", self._directory / "data", "-U", _ADMIN, "-E", "UTF8",
             "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync",
             "--no-instructions"],
            cwd=self._directory,
            user=self._user,
            check=False,
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"initdb failed: {done.stderr}"
        self.start()
        self.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 15
        while True:
            try:
                self._connect("postgres").close()
            except psycopg.OperationalError as error:
                log = (self._directory / "log").read_text()
                assert self._process.poll() is None, f"postgres ended at once:\n{log}"
                assert time.monotonic() < deadline, f"postgres did not come up: {error}\n{log}"
                time.sleep(0.02)
            else:
                return

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        assert self._process is not None
        self._process.wait(timeout=15)
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is down"
        self._process.send_signal(number)


def programs() -> Path:
    """The directory of the newest ``initdb`` and ``postgres``."""
    found = [
        place
        for pattern in _PLACES
        for place in Path("/").glob(pattern)
        if (place / "initdb").exists() and (place / "postgres").exists()
    ]
    assert found, f"PostgreSQL's server is missing: {HINT}"
    return max(found, key=_version)


def _version(place: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(place))]


def _unprivileged() -> str | None:
    """Whom to become: PostgreSQL refuses to run as root. None where we are not root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
