"""Bring a database to the schema of this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, column, func, inspect, select, table

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.storage.postgresql import be_patient
from kmsjwks.storage.transactions import reading, writing

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0004"  # the newest revision in migrations/versions

ADVISORY_KEY = 0x6B6D736A776B7302  # "kmsjwks", 2; the planner's lock is 1
_PATIENCE = 300  # seconds that an upgrade on PostgreSQL may wait or take
_VERSIONS = table("alembic_version", column("version_num"))


def migrate(engine: Engine) -> None:
    """Upgrade to ``HEAD``; nothing happens when it is there already.

    All processes may call this at once: the whole upgrade is one transaction that holds a lock
    from its start, so one does the work, the others wait and find it done, and a crash leaves
    what was there before.

    Raises:
        StoreUnavailable: the database does not answer, or a newer version has migrated it.
    """
    if schema_is_current(engine):
        return
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            _lock(connection)
        if _revisions(connection) != {HEAD}:
            _upgrade(connection)


def schema_is_current(engine: Engine) -> bool:
    """Whether the database is at ``HEAD``, no less and no more.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    with reading(engine) as connection:
        return _revisions(connection) == {HEAD}


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for the packaged revisions, to be run on ``connection``."""
    from alembic.config import Config  # noqa: PLC0415  # see _upgrade

    config = Config()
    config.set_main_option("script_location", "kmsjwks.storage:migrations")
    config.attributes["connection"] = connection
    return config


def _lock(connection: Connection) -> None:
    """What SQLite's BEGIN IMMEDIATE does. An upgrade may take longer than a statement may."""
    be_patient(connection, _PATIENCE)
    connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_KEY)))


def _revisions(connection: Connection) -> set[str]:
    """What Alembic wrote into its table, ``alembic_version``; none before the first upgrade."""
    if not inspect(connection).has_table(_VERSIONS.name):
        return set()
    return set(connection.scalars(select(_VERSIONS.c.version_num)))


def _upgrade(connection: Connection) -> None:
    # Here, because it takes 10 MB that no serving process has any use for.
    from alembic import command  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise StoreUnavailable(
            "A newer version of kmsjwks has migrated the database. Run that version, or restore "
            "the backup taken before the upgrade."
        ) from error
