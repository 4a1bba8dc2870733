"""What each process has signed, or reserved to sign, with a key. Read once a key is deactivated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, case, select
from sqlalchemy.dialects import sqlite

from kmsjwks.domain.ports import Lease
from kmsjwks.storage import rows
from kmsjwks.storage.schema import signing_leases

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql


def extend(connection: Connection, wanted: Sequence[Lease]) -> list[Lease]:
    """Raise ``max_exp`` to what is ``wanted`` where it is lower. Returns those that are final in
    the database, which stay so."""
    insert = _insert(connection)
    stored, offered = signing_leases.c.max_exp, insert.excluded.max_exp
    change = insert.on_conflict_do_update(
        index_elements=["kid", "holder"],
        set_={"max_exp": case((stored < offered, offered), else_=stored)},
        where=signing_leases.c.final.is_(False),
    )
    # Not by rowcount, which SQLAlchemy does not keep for INSERT.
    returning = change.returning(signing_leases.c.kid, signing_leases.c.holder)
    done = connection.execute(returning, [rows.lease_to_row(lease) for lease in wanted])
    extended = {(row.kid, row.holder) for row in done}
    return [lease for lease in wanted if (lease.kid, lease.holder) not in extended]


def finish(connection: Connection, lease: Lease) -> None:
    """Store ``lease`` in place of what is there."""
    insert = _insert(connection).values(rows.lease_to_row(lease))
    change = insert.on_conflict_do_update(
        index_elements=["kid", "holder"],
        set_={"max_exp": insert.excluded.max_exp, "final": insert.excluded.final},
    )
    connection.execute(change)


def of_key(connection: Connection, kid: str) -> Sequence[Lease]:
    query = select(signing_leases).where(signing_leases.c.kid == kid)
    found = connection.execute(query).mappings().all()
    return sorted(map(rows.lease_from_row, found), key=lambda lease: lease.holder)


def _insert(connection: Connection) -> sqlite.Insert | postgresql.Insert:
    """The two databases have the same ON CONFLICT; SQLAlchemy has one for each."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(signing_leases)
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415  # 2 MB that SQLite does not need

    return postgresql.insert(signing_leases)
