"""Single writes of a transaction. What the database refuses becomes the domain's error.

A transaction that changes keysets or keys begins with ``bump_revision``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from kmsjwks.domain.errors import Conflict, StoreUnavailable, TransitionRefused
from kmsjwks.domain.keys import Key, Keyset, KeyState
from kmsjwks.domain.ports import Change, LifecycleEvent
from kmsjwks.storage import rows, schema
from kmsjwks.storage.failures import refusal

_KEYSET_CHANGES = ("backend", "rules", "schedule", "standby")


def bump_revision(connection: Connection) -> None:
    """Count up, and hold that row until the end of the transaction: other writers wait here, so
    the order of revisions is that of commits, and no two writers deadlock."""
    table = schema.store_revision
    if connection.execute(update(table).values(value=table.c.value + 1)).rowcount != 1:
        raise revision_lost()


def revision_lost() -> StoreUnavailable:
    return StoreUnavailable("The database has lost its revision. Restore it from a backup.")


def record(connection: Connection, event: LifecycleEvent) -> None:
    connection.execute(insert(schema.lifecycle_events).values(rows.event_to_row(event)))


def add_keyset(connection: Connection, keyset: Keyset) -> None:
    """
    Raises:
        Conflict: the name is taken.
    """
    if _exists(connection, keyset.name):
        raise Conflict(f"The keyset {keyset.name} exists already. Choose another name.")
    connection.execute(insert(schema.keysets).values(rows.keyset_to_row(keyset)))


def add_key(connection: Connection, key: Key) -> None:
    """
    Raises:
        Conflict: the kid or the key in the backend is taken, there is no such keyset, or it would
            have two active keys.
    """
    # Asked first: writers come one at a time, and drivers name a broken constraint each in their
    # own words.
    if taken := _what_is_taken(connection, key):
        raise Conflict(taken)
    connection.execute(insert(schema.keys).values(rows.key_to_row(key)))


def change_keys(connection: Connection, changes: Sequence[Change]) -> None:
    """Whatever the order of ``changes``: a key becomes active after another ceased to be.

    Raises:
        Conflict: a ``before`` is no longer stored, or a keyset would have two active keys.
        TransitionRefused: a trigger refused it.
    """
    for change in sorted(changes, key=lambda change: change.after.state is KeyState.ACTIVE):
        _change_key(connection, change)


def finish_creation(connection: Connection, request_id: str, key: Key, now: int) -> None:
    """``now`` in seconds.

    Raises:
        Conflict: no creation of such a key is open under ``request_id``.
    """
    table = schema.intents
    finished = connection.execute(
        update(table)
        .where(
            table.c.request_id == request_id,
            table.c.keyset == key.keyset,
            table.c.backend == key.backend,
            table.c.algorithm == key.algorithm.id,
            table.c.finished_at.is_(None),
        )
        .values(finished_at=now)
    )
    if finished.rowcount != 1:
        raise Conflict(
            f"No creation for the keyset {key.keyset} is open under the request id {request_id}. "
            "Begin it first, with the same backend and algorithm."
        )


def replace_keyset(connection: Connection, before: Keyset, after: Keyset) -> None:
    """
    Raises:
        Conflict: ``before`` is no longer stored.
    """
    table = schema.keysets
    stored = connection.execute(select(table).where(table.c.name == before.name)).mappings().first()
    if stored is None or rows.keyset_from_row(stored) != before:
        raise _changed(f"keyset {before.name}")
    # Compared as text once more, so that this holds however the caller isolates transactions.
    unchanged = and_(
        table.c.name == before.name,
        *(table.c[column].is_not_distinct_from(stored[column]) for column in _KEYSET_CHANGES),
    )
    row = rows.keyset_to_row(after)
    values = {column: row[column] for column in _KEYSET_CHANGES}
    if connection.execute(update(table).where(unchanged).values(values)).rowcount != 1:
        raise _changed(f"keyset {before.name}")


def _change_key(connection: Connection, change: Change) -> None:
    before = change.before
    table = schema.keys
    values = rows.key_to_row(change.after) | {"version": before.version + 1}
    compare_and_swap = (
        update(table)
        .where(table.c.kid == before.kid, table.c.version == before.version)
        .values(values)
    )
    try:
        changed = connection.execute(compare_and_swap).rowcount
    except IntegrityError as error:
        why = refusal(error)
        if why is not None:
            raise TransitionRefused(
                f"Key {before.kid} stays {before.state.value}: {why}."
            ) from error
        raise _second_active(change.after) from error
    if changed != 1:
        raise _changed(f"key {before.kid}")


def _changed(what: str) -> Conflict:
    return Conflict(f"The {what} was changed by another process meanwhile. Look at it again.")


def _second_active(key: Key) -> Conflict:
    return Conflict(
        f"The keyset {key.keyset} has an active key; {key.kid} cannot become another. "
        "Deactivate that one in the same step."
    )


def _exists(connection: Connection, keyset: str) -> bool:
    name = schema.keysets.c.name
    return connection.scalar(select(name).where(name == keyset)) is not None


def _what_is_taken(connection: Connection, key: Key) -> str | None:
    keys = schema.keys.c
    if owner := connection.scalar(select(keys.keyset).where(keys.kid == key.kid)):
        return (
            f"The key {key.kid} belongs to the keyset {owner} already. A key serves one "
            "keyset: create another."
        )
    same = and_(keys.backend == key.backend, keys.ref == key.ref)
    if owner := connection.scalar(select(keys.keyset).where(same)):
        return (
            f"The backend {key.backend} holds the key {key.ref} for the keyset {owner} "
            "already. A key serves one keyset: create another."
        )
    if not _exists(connection, key.keyset):
        return f"The key {key.kid} fits no keyset: there is no {key.keyset}. Nothing was stored."
    active = and_(keys.keyset == key.keyset, keys.state == KeyState.ACTIVE.value)
    if key.state is KeyState.ACTIVE and connection.scalar(select(func.count()).where(active)):
        return str(_second_active(key))
    return None
