"""The KeyStore port on SQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.errors import Conflict, KeysetNotFound, StoreUnavailable
from kmsjwks.domain.keys import Key, Keyset
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.storage import rows, schema
from kmsjwks.storage.migration import HEAD, schema_is_current
from kmsjwks.storage.rows import CreationIntent
from kmsjwks.storage.transactions import reading, writing


class SqlKeyStore:
    """Keysets, keys and creation intents. Thread-safe and fork-safe; one transaction a call.

    Every method raises StoreUnavailable when the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin_creation(
        self, request_id: str, keyset: str, backend: str, algorithm: Algorithm, created_at: int
    ) -> None:
        """Record durably that a key is about to be created; see ``KeyStore.begin_creation``.

        Raises:
            Conflict: the request id is that of another creation.
        """
        intent = CreationIntent(request_id, keyset, backend, algorithm, created_at)
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(schema.intents).values(rows.intent_to_row(intent)))
        except IntegrityError as error:
            if not self._has_begun(intent):
                raise Conflict(
                    f"The request id {request_id} belongs to another key creation. Use a new one."
                ) from error

    def open_intents(self) -> Sequence[CreationIntent]:
        """Creations begun and not finished, oldest first."""
        table = schema.intents
        query = select(table).where(table.c.finished_at.is_(None))
        with reading(self._engine) as connection:
            found = connection.execute(query).mappings().all()
        return sorted(
            map(rows.intent_from_row, found),
            key=lambda intent: (intent.created_at, intent.request_id),
        )

    def add_keyset(self, keyset: Keyset, first_key: Key, *, request_id: str | None = None) -> None:
        """Add both, and finish the intent ``request_id``, in one transaction.

        Raises:
            Conflict: the name, the kid or the backend reference is taken, or no such intent is
                open. Nothing is changed.
        """
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(schema.keysets).values(rows.keyset_to_row(keyset)))
                connection.execute(insert(schema.keys).values(rows.key_to_row(first_key)))
                if request_id is not None:
                    _finish_intent(connection, request_id, keyset)
                _bump_revision(connection)
        except IntegrityError as error:
            raise Conflict(self._what_is_taken(keyset, first_key)) from error

    def update_rules(self, keyset: str, rules: TokenRules) -> None:
        """
        Raises:
            KeysetNotFound
        """
        table = schema.keysets
        change = update(table).where(table.c.name == keyset).values(rules=rows.rules_to_text(rules))
        with writing(self._engine) as connection:
            if connection.execute(change).rowcount != 1:
                raise KeysetNotFound(f"There is no keyset {keyset}.")
            _bump_revision(connection)

    def keysets(self) -> Sequence[Keyset]:
        """By name."""
        with reading(self._engine) as connection:
            found = connection.execute(select(schema.keysets)).mappings().all()
        # Sorted here: the order of text in SQL depends on the database's collation.
        return sorted(map(rows.keyset_from_row, found), key=lambda keyset: keyset.name)

    def keys(self, keyset: str | None = None) -> Sequence[Key]:
        """By keyset and creation time; only those of ``keyset`` when it is given."""
        query = select(schema.keys)
        if keyset is not None:
            query = query.where(schema.keys.c.keyset == keyset)
        with reading(self._engine) as connection:
            found = connection.execute(query).mappings().all()
        return sorted(
            map(rows.key_from_row, found),
            key=lambda key: (key.keyset, key.times.created_at, key.kid),
        )

    def revision(self) -> int:
        """Grows with every change of keysets or keys; one row read."""
        with reading(self._engine) as connection:
            value: int | None = connection.scalar(select(schema.store_revision.c.value))
        if value is None:
            raise StoreUnavailable("The database has lost its revision. Restore it from a backup.")
        return value

    def check(self) -> None:
        """
        Raises:
            StoreUnavailable: also when the schema is not that of this version.
        """
        if not schema_is_current(self._engine):
            raise StoreUnavailable(
                f"The database schema is not the one that this version needs ({HEAD}). Migrate it, "
                "or run the version that migrated it."
            )

    def _has_begun(self, intent: CreationIntent) -> bool:
        table = schema.intents
        query = select(table.c.request_id).where(
            table.c.request_id == intent.request_id,
            table.c.keyset == intent.keyset,
            table.c.backend == intent.backend,
            table.c.algorithm == intent.algorithm.id,
        )
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def _what_is_taken(self, keyset: Keyset, key: Key) -> str:
        """Asked afterwards, because drivers name a broken constraint each in their own words."""
        keys = schema.keys.c
        with reading(self._engine) as connection:
            name = select(schema.keysets.c.name).where(schema.keysets.c.name == keyset.name)
            if connection.scalar(name) is not None:
                return f"The keyset {keyset.name} exists already. Choose another name."
            holder = select(keys.keyset).where(keys.kid == key.kid)
            if owner := connection.scalar(holder):
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
        return f"The key {key.kid} does not fit the keyset {keyset.name}. Nothing was stored."


def _finish_intent(connection: Connection, request_id: str, keyset: Keyset) -> None:
    table = schema.intents
    finished = connection.execute(
        update(table)
        .where(
            table.c.request_id == request_id,
            table.c.keyset == keyset.name,
            table.c.backend == keyset.backend,
            table.c.algorithm == keyset.algorithm.id,
            table.c.finished_at.is_(None),
        )
        .values(finished_at=keyset.created_at)
    )
    if finished.rowcount != 1:
        raise Conflict(
            f"No creation of the keyset {keyset.name} is open under the request id {request_id}. "
            "Begin it first, with the same backend and algorithm."
        )


def _bump_revision(connection: Connection) -> None:
    table = schema.store_revision
    connection.execute(update(table).values(value=table.c.value + 1))
