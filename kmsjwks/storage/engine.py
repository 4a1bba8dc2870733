"""Database engines, from a URL: SQLite for one machine, PostgreSQL for replicas."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.storage import postgresql, sqlite

BUSY_TIMEOUT = 5.0  # seconds that a transaction waits for another's lock

_FORMS = f"Write {sqlite.FORM}; or {postgresql.FORM}."


def make_engine(url: str, *, busy_timeout: float = BUSY_TIMEOUT, create: bool = True) -> Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE``.

    ``busy_timeout`` is in seconds; ``create`` makes an SQLite file where there is none. Safe
    to make before or after fork. Connects to no server yet;
    migrate before use.

    Raises:
        ConfigurationError: the URL is not one of a supported database, its file cannot be
            created, or its driver is not installed. Never repeats the URL, which may hold a
            password.
    """
    parsed = _parse(url)
    if parsed is None:
        raise ConfigurationError([f"The database URL cannot be understood. {_FORMS}"])
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return sqlite.sqlite_engine(parsed, busy_timeout, create=create)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return postgresql.postgresql_engine(parsed, busy_timeout)
    raise ConfigurationError(
        [f"The database driver {parsed.drivername!r} is not supported. {_FORMS}"]
    )


def _parse(url: str) -> URL | None:
    # ValueError is a port that is no number. Neither is chained: their texts quote the URL.
    with suppress(ArgumentError, ValueError):
        return make_url(url)
    return None
