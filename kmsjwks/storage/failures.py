"""SQL and driver failures become the domain's typed errors; none leaves ``storage`` raw."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from kmsjwks.domain.errors import StoreUnavailable

_DAMAGED = "The database file is damaged or is not a database. Restore it from a backup."

# https://www.sqlite.org/rescode.html, primary result codes. The driver's own text stays in the
# log (the error's cause): StoreUnavailable is shown to callers.
_SQLITE_REMEDIES = {
    sqlite3.SQLITE_AUTH: "The database refused access. Check the owner and mode of its file.",
    sqlite3.SQLITE_BUSY: "The database is locked by another process. Try again.",
    sqlite3.SQLITE_CANTOPEN: (
        "The database file cannot be opened. Check that it exists and that the service's user "
        "may read and write it and its directory."
    ),
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: "The disk that holds the database is full. Free some space.",
    sqlite3.SQLITE_IOERR: "Reading or writing the database file failed. Check the disk.",
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_PERM: "The database refused access. Check the owner and mode of its file.",
    sqlite3.SQLITE_READONLY: (
        "The database is read-only. Give the service's user write access to its file and directory."
    ),
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html; the longest prefix counts.
_UNREACHABLE = (
    "The database server does not answer. Check that it runs and that the database URL, the "
    "network and the login are right; the service's log has the details."
)
_POSTGRESQL_REMEDIES = {
    "08": _UNREACHABLE,
    "25006": "The database is read-only. Point the database URL to the primary server.",
    "28": "The database server refused the login. Check the user and the password.",
    "3D000": "The database does not exist. Create it, owned by the service's user.",
    "3F000": "The database has no schema to write to. Create the one that search_path names.",
    "40": "The database was busy with other changes. Try again.",
    "42501": "The database refused access. Let the service's user own its tables.",
    "42P01": "The database lacks a table that this version needs. Migrate it.",
    "53": "The database server is out of disk, memory or connections. Check the server.",
    "55P03": "The database is locked by another process. Try again.",
    "57014": "The database took too long and was interrupted. Check the load of the server.",
    "57P": "The database server is starting, stopping, or ended the connection. Try again.",
}
# What the triggers of the migrations say begins so.
REFUSAL = "kmsjwks refuses: "

_OTHERWISE = (
    "The database does not answer as it should. Check that it is up and migrated; the service's "
    "log has the details."
)


def _remedy(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE_REMEDIES.get(code & 0xFF, _OTHERWISE)
    return _postgresql_remedy(getattr(cause, "sqlstate", None), error)


def _postgresql_remedy(sqlstate: str | None, error: SQLAlchemyError) -> str:
    """libpq gives no code where a connection failed or broke."""
    if sqlstate is None:
        return _UNREACHABLE if isinstance(error, OperationalError) else _OTHERWISE
    known = [prefix for prefix in _POSTGRESQL_REMEDIES if sqlstate.startswith(prefix)]
    return _POSTGRESQL_REMEDIES[max(known, key=len)] if known else _OTHERWISE


def refusal(error: IntegrityError) -> str | None:
    """What a trigger said that stopped a change; None when it was something else."""
    lines = str(error.orig).splitlines()
    if not lines or not lines[0].startswith(REFUSAL):
        return None
    return lines[0].removeprefix(REFUSAL)


@contextmanager
def typed_failures() -> Iterator[None]:
    """
    Raises:
        StoreUnavailable: for every SQL failure but those of constraints.
        IntegrityError: as it is; only the caller knows what its statement contradicts.
    """
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise StoreUnavailable(_remedy(error)) from error
