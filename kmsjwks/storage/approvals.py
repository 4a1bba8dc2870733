"""Proposals of acts that take a second person, within a transaction of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, insert, select, update

from kmsjwks.domain.approvals import Approval, ApprovalState, ProtectedAct
from kmsjwks.domain.errors import Conflict, StoreUnavailable
from kmsjwks.storage import schema

_TABLE = schema.approvals
_OPEN = _TABLE.c.state == ApprovalState.PROPOSED.value


def propose(connection: Connection, approval: Approval) -> None:
    """Add it; end those that expired by then, and those that it replaces.

    Raises:
        Conflict: the key is not the one that it is about.
    """
    keys = schema.keys.c
    version = connection.scalar(select(keys.version).where(keys.kid == approval.kid))
    if version != approval.key_version:
        raise Conflict(
            f"The key {approval.kid} was changed by another process meanwhile. Look at it again."
        )
    replaced = and_(_TABLE.c.kid == approval.kid, _TABLE.c.act == approval.act.value)
    for which, state in (
        (_TABLE.c.expires_at <= approval.proposed_at, ApprovalState.EXPIRED),
        (replaced, ApprovalState.SUPERSEDED),
    ):
        connection.execute(update(_TABLE).where(_OPEN, which).values(state=state.value))
    connection.execute(insert(_TABLE).values(_to_row(approval)))


def end(connection: Connection, approval: Approval) -> None:
    """Write down how an open proposal ended.

    Raises:
        Conflict: it is not open.
    """
    ended = connection.execute(
        update(_TABLE)
        .where(_OPEN, _TABLE.c.id == approval.id)
        .values(
            state=approval.state.value,
            approved_by=approval.approved_by,
            approved_at=approval.approved_at,
        )
    )
    if ended.rowcount != 1:
        raise Conflict(f"The proposal {approval.id} is not open any more. Look at it again.")


def of_keyset(connection: Connection, keyset: str | None) -> Sequence[Approval]:
    query = select(_TABLE)
    if keyset is not None:
        query = query.where(_TABLE.c.keyset == keyset)
    found = map(_from_row, connection.execute(query).mappings())
    return sorted(found, key=lambda one: (-one.proposed_at, one.id))


def _to_row(approval: Approval) -> dict[str, Any]:
    return {**asdict(approval), "act": approval.act.value, "state": approval.state.value}


def _from_row(row: RowMapping) -> Approval:
    """
    Raises:
        StoreUnavailable: the row is not one that this version can read.
    """
    try:
        known = {"act": ProtectedAct(row["act"]), "state": ApprovalState(row["state"])}
    except ValueError as error:
        raise StoreUnavailable(
            f"This version of kmsjwks cannot read the proposal {row['id']} in the database. Run "
            "the version that wrote it, or restore a backup."
        ) from error
    return Approval(**{**row, **known})
