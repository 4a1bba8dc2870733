"""One planner in the whole installation. The operating system, or the database server, frees the
lock of a process that dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.storage.failures import typed_failures

ADVISORY_KEY = 0x6B6D736A776B7301  # "kmsjwks", 1: PostgreSQL's advisory locks are bare numbers


@contextmanager
def planner_lock(engine: Engine) -> Iterator[bool]:
    """Whether we have the lock, until the end of the ``with``. Never waits for a holder. Two
    threads of one process exclude each other as two processes do.

    Raises:
        StoreUnavailable: nobody can tell who has it.
    """
    lock = _advisory_lock if engine.dialect.name == "postgresql" else _file_lock
    with lock(engine) as ours:
        yield ours


@contextmanager
def _advisory_lock(engine: Engine) -> Iterator[bool]:
    """Held by a connection of its own, outside of any transaction."""
    with typed_failures():
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with closing(connection):
        with typed_failures():
            ours = bool(connection.scalar(select(func.pg_try_advisory_lock(ADVISORY_KEY))))
        try:
            yield ours
        finally:
            if ours:
                _unlock(connection)


def _unlock(connection: Connection) -> None:
    # Closing frees it too, but only once the server notices. If the server is gone, so is the lock.
    with suppress(SQLAlchemyError):
        connection.scalar(select(func.pg_advisory_unlock(ADVISORY_KEY)))


@contextmanager
def _file_lock(engine: Engine) -> Iterator[bool]:
    path = f"{engine.url.database}.planner.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(
            f"The planner's lock file {path} cannot be opened: {error.strerror}. Check its "
            "directory and its owner."
        ) from error
    try:
        ours = _try_flock(descriptor)
        try:
            yield ours
        finally:
            if ours:  # explicitly: a child forked meanwhile has the file open too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreUnavailable(
            f"The planner's lock file cannot be locked: {error.strerror}. Put the database on a "
            "local file system."
        ) from error
    return True
