"""What each process has signed, or reserved to sign, with a key. Read once a key is deactivated."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, case, select
from sqlalchemy.dialects import postgresql, sqlite

from kmsjwks.domain.ports import Lease
from kmsjwks.storage import rows
from kmsjwks.storage.schema import signing_leases


def extend(connection: Connection, lease: Lease) -> bool:
    """Raise ``max_exp`` to that of ``lease`` where it is lower; False where the lease is final."""
    insert = _insert(connection).values(rows.lease_to_row(lease))
    stored, offered = signing_leases.c.max_exp, insert.excluded.max_exp
    change = insert.on_conflict_do_update(
        index_elements=["kid", "holder"],
        set_={"max_exp": case((stored < offered, offered), else_=stored)},
        where=signing_leases.c.final.is_(False),
    )
    # Not by rowcount, which SQLAlchemy does not keep for INSERT.
    return connection.scalar(change.returning(signing_leases.c.kid)) is not None


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
    return postgresql.insert(signing_leases)
