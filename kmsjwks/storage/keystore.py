"""The KeyStore port on SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from kmsjwks.domain.algorithms import Algorithm
from kmsjwks.domain.approvals import Approval
from kmsjwks.domain.errors import Conflict, StoreUnavailable
from kmsjwks.domain.keys import KEYSET_NAME, Key, Keyset
from kmsjwks.domain.ports import Change, Lease, LifecycleEvent
from kmsjwks.storage import approvals, leases, plannerlock, rows, schema, writes
from kmsjwks.storage.migration import HEAD, schema_is_current
from kmsjwks.storage.rows import CreationIntent
from kmsjwks.storage.transactions import reading, writing


class SqlKeyStore:
    """``KeyStore`` (which documents the methods) on SQLite and PostgreSQL.

    Thread-safe and fork-safe; one transaction a call. Every method raises StoreUnavailable when
    the database does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin_creation(
        self, request_id: str, keyset: str, backend: str, algorithm: Algorithm, created_at: int
    ) -> None:
        intent = CreationIntent(request_id, keyset, backend, algorithm, created_at)
        try:
            with writing(self._engine) as connection:
                connection.execute(insert(schema.intents).values(rows.intent_to_row(intent)))
        except IntegrityError as error:
            if not self._has_begun(intent):
                raise Conflict(
                    f"The request id {request_id} belongs to another key creation. Use a new one."
                ) from error

    def abandon_creation(self, request_id: str) -> None:
        table = schema.intents
        is_open = and_(table.c.request_id == request_id, table.c.finished_at.is_(None))
        # A store has no clock, and nobody asks when.
        abandoned = update(table).where(is_open).values(finished_at=table.c.created_at)
        with writing(self._engine) as connection:
            connection.execute(abandoned)

    def open_intents(self) -> Sequence[CreationIntent]:
        table = schema.intents
        query = select(table).where(table.c.finished_at.is_(None))
        with reading(self._engine) as connection:
            found = connection.execute(query).mappings().all()
        return sorted(
            map(rows.intent_from_row, found),
            key=lambda intent: (intent.created_at, intent.request_id),
        )

    def add_keyset(
        self,
        keyset: Keyset,
        first_key: Key,
        *,
        request_id: str | None = None,
        spare: tuple[Key, str] | None = None,
        event: LifecycleEvent | None = None,
    ) -> None:
        added = [(first_key, request_id)] + ([spare] if spare is not None else [])
        for key, _ in added:
            if key.keyset != keyset.name:
                raise Conflict(
                    f"The key {key.kid} does not fit the keyset {keyset.name}: it is one of "
                    f"{key.keyset}."
                )
        with self._changing() as connection:
            writes.add_keyset(connection, keyset)
            for key, creation in added:
                writes.add_key(connection, key)
                if creation is not None:
                    writes.finish_creation(connection, creation, key, keyset.created_at)
            if event is not None:
                writes.record(connection, event)

    def apply(
        self,
        changes: Sequence[Change],
        event: LifecycleEvent,
        *,
        added: Sequence[tuple[Key, str]] = (),
    ) -> None:
        with self._changing() as connection:
            writes.change_keys(connection, changes)
            for key, request_id in added:
                writes.add_key(connection, key)
                writes.finish_creation(connection, request_id, key, event.time)
            writes.record(connection, event)

    def update_keyset(
        self, before: Keyset, after: Keyset, changes: Sequence[Change], event: LifecycleEvent
    ) -> None:
        kept = ("name", "algorithm", "created_at")
        if any(getattr(before, field) != getattr(after, field) for field in kept):
            raise Conflict(
                f"The name, algorithm and creation time of the keyset {before.name} never change. "
                "Create another keyset."
            )
        with self._changing() as connection:
            writes.replace_keyset(connection, before, after)
            writes.change_keys(connection, changes)
            writes.record(connection, event)

    def propose(self, approval: Approval, event: LifecycleEvent) -> None:
        with self._changing() as connection:
            approvals.propose(connection, approval)
            writes.record(connection, event)

    def approve(
        self, approval: Approval, changes: Sequence[Change], events: Sequence[LifecycleEvent]
    ) -> None:
        with self._changing() as connection:
            approvals.end(connection, approval)
            writes.change_keys(connection, changes)
            for event in events:
                writes.record(connection, event)

    def withdraw(self, approval: Approval, event: LifecycleEvent) -> None:
        with self._changing() as connection:
            approvals.end(connection, approval)
            writes.record(connection, event)

    def approvals(self, keyset: str | None = None) -> Sequence[Approval]:
        with reading(self._engine) as connection:
            return approvals.of_keyset(connection, keyset)

    def events(self, keyset: str, limit: int = 100) -> Sequence[LifecycleEvent]:
        table = schema.lifecycle_events
        query = (
            select(table)
            .where(table.c.keyset == keyset)
            .order_by(table.c.id.desc())  # not by time: clocks differ
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return list(map(rows.event_from_row, connection.execute(query).mappings()))

    def planner_lock(self) -> AbstractContextManager[bool]:
        return plannerlock.planner_lock(self._engine)

    def extend_lease(self, kid: str, holder: str, max_exp: int) -> None:
        with writing(self._engine) as connection:
            if leases.extend(connection, [Lease(kid, holder, max_exp, final=False)]):
                raise Conflict(f"{holder} has finished signing with the key {kid}.")

    def extend_leases(self, wanted: Sequence[Lease]) -> Sequence[Lease]:
        with writing(self._engine) as connection:
            return leases.extend(connection, wanted)

    def finish_lease(self, kid: str, holder: str, max_exp: int) -> None:
        with writing(self._engine) as connection:
            leases.finish(connection, Lease(kid, holder, max_exp, final=True))

    def leases(self, kid: str) -> Sequence[Lease]:
        with reading(self._engine) as connection:
            return leases.of_key(connection, kid)

    def keysets(self) -> Sequence[Keyset]:
        with reading(self._engine) as connection:
            found = connection.execute(select(schema.keysets)).mappings().all()
        # Sorted here: the order of text in SQL depends on the database's collation.
        return sorted(map(rows.keyset_from_row, found), key=lambda keyset: keyset.name)

    def keys(self, keyset: str | None = None) -> Sequence[Key]:
        query = select(schema.keys)
        if keyset is not None:
            if not KEYSET_NAME.fullmatch(keyset):  # which PostgreSQL might not take as a text
                return []
            query = query.where(schema.keys.c.keyset == keyset)
        with reading(self._engine) as connection:
            found = connection.execute(query).mappings().all()
        return sorted(
            map(rows.key_from_row, found),
            # Within a second, a key that signs before the spare that was made with it.
            key=lambda key: (
                key.keyset,
                key.times.created_at,
                key.times.activate_at is None,
                key.kid,
            ),
        )

    def revision(self) -> int:
        with reading(self._engine) as connection:
            value: int | None = connection.scalar(select(schema.store_revision.c.value))
        if value is None:
            raise writes.revision_lost()
        return value

    def check(self) -> None:
        if not schema_is_current(self._engine):
            raise StoreUnavailable(
                f"The database schema is not the one that this version needs ({HEAD}). Migrate it, "
                "or run the version that migrated it."
            )

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """A transaction that changes keysets or keys; one at a time in the installation."""
        try:
            with writing(self._engine) as connection:
                writes.bump_revision(connection)
                yield connection
        except IntegrityError as error:
            raise Conflict("The change contradicts what is stored. Nothing was stored.") from error

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
