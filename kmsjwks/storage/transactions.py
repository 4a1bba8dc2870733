"""The unit of work: one connection, one transaction, typed failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from kmsjwks.storage.failures import typed_failures

WRITING = "kmsjwks_writing"  # execution option; SQLite then takes the write lock at BEGIN


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes nothing.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    with typed_failures(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction, committed on the way out.

    On SQLite it holds the write lock from its start. On PostgreSQL (READ COMMITTED) a change of
    keysets or keys locks the row of ``store_revision`` first, which comes to the same.

    Raises:
        StoreUnavailable: the database does not answer.
        IntegrityError: a constraint was broken; nothing was written.
    """
    with typed_failures(), engine.connect() as connection:
        connection.execution_options(**{WRITING: True})  # in place
        with connection.begin():
            yield connection
