"""The unit of work: one connection, one transaction, typed failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from kmsjwks.storage.failures import typed_failures

WRITING = "kmsjwks_writing"  # execution option; the engine then takes the write lock at BEGIN


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database throughout.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    with typed_failures(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start; committed on the way out.

    Raises:
        StoreUnavailable: the database does not answer.
        IntegrityError: a constraint was broken; nothing was written.
    """
    with typed_failures(), engine.connect() as connection:
        connection.execution_options(**{WRITING: True})  # in place
        with connection.begin():
            yield connection
