"""SQLite engines: one file, private to the service's user, in WAL mode.

No connection is ever shared across fork: the pool is a ``NullPool``, so a connection lives for
one transaction and none is open between two. An engine may be made before or after fork.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event

from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.storage.transactions import WRITING

FORM = "sqlite:////absolute/path/kmsjwks.db, or sqlite:///path relative to where you start"

# FULL: a commit survives a power failure, which SQLite's default in WAL mode does not promise.
_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_mode = WAL",
)


def sqlite_engine(url: URL, busy_timeout: float, *, create: bool) -> Engine:
    """With ``create``, makes the file (mode 0600) and its directory (0700).

    ``busy_timeout`` is in seconds. The file is not created again when it disappears later: that
    is a failure to report, not an empty database to go on with.

    Raises:
        ConfigurationError: the URL is not one of a file, or the file cannot be created.
    """
    path = _database_path(url)
    if create:
        _create(path)

    def connect() -> sqlite3.Connection:
        return _connect(path, busy_timeout)

    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return engine


def _database_path(url: URL) -> Path:
    if any((url.username, url.password, url.host, url.port, url.query)):
        raise ConfigurationError(
            [f"A SQLite URL has no user, password, host or parameters. Write {FORM}."]
        )
    if url.database is None or url.database in ("", ":memory:"):
        raise ConfigurationError(
            [
                "The database must be a file: one in memory would be lost and not shared. "
                f"Write {FORM}."
            ]
        )
    return Path(url.database).absolute()


def _create(path: Path) -> None:
    if path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create_in_wal_mode(path)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            [f"The database file {path} cannot be created: {reason}. Check its directory."]
        ) from error


def _create_in_wal_mode(path: Path) -> None:
    """Make the file elsewhere and link it into place.

    Processes that switch the same new file to WAL fail with "database is locked" in spite of the
    busy timeout (measured: 27 of 2,000 with ten processes). This file is in WAL mode from the
    instant it exists, and of several processes one wins.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()


def _connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=busy_timeout
    )
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    """IMMEDIATE for writers: a deferred transaction that reads, then writes, may fail or fork."""
    write = connection.get_execution_options().get(WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
