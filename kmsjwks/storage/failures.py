"""SQL and driver failures become the domain's typed errors; none leaves ``storage`` raw."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

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
_OTHERWISE = (
    "The database does not answer as it should. Check that it is up and migrated; the service's "
    "log has the details."
)


def _remedy(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return _OTHERWISE
    return _SQLITE_REMEDIES.get(code & 0xFF, _OTHERWISE)


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
