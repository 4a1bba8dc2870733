"""The schema on both databases: migrations, constraints, triggers, rows of other versions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from kmsjwks.domain.errors import StoreUnavailable
from kmsjwks.domain.keys import KeyState, Standby
from kmsjwks.domain.ports import LifecycleEvent
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.storage import rows, schema
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import HEAD, alembic_config, migrate, schema_is_current
from kmsjwks.storage.transactions import reading, writing
from tests.contract.test_key_store import ES256, NOW, database_url, key_of, keyset_named

__all__ = ["database_url"]  # a fixture

DISABLE_TRIGGER = {
    "sqlite": "DROP TRIGGER keys_guard_update",
    "postgresql": "ALTER TABLE keys DISABLE TRIGGER keys_guard_update",
}


@pytest.fixture
def empty(database_url: str) -> Engine:
    """Not migrated."""
    return make_engine(database_url)


@pytest.fixture
def engine(empty: Engine) -> Engine:
    migrate(empty)
    return empty


@pytest.fixture
def store(engine: Engine) -> SqlKeyStore:
    return SqlKeyStore(engine)


def described(engine: Engine) -> dict[str, Any]:
    """All that the database knows of its tables."""
    found = inspect(engine)
    names = set(found.get_table_names()) - {"alembic_version"}
    return {
        name: (
            [{**column, "type": str(column["type"])} for column in found.get_columns(name)],
            found.get_pk_constraint(name)["constrained_columns"],
            found.get_foreign_keys(name),
            found.get_unique_constraints(name),
            [
                {**index, "dialect_options": list(map(str, index["dialect_options"].values()))}
                for index in found.get_indexes(name)
            ],
            found.get_check_constraints(name),
        )
        for name in names
    }


class TestMigration:
    def test_autogenerate_finds_nothing_to_do(self, engine: Engine) -> None:
        with reading(engine) as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, schema.metadata) == []

    def test_migrations_and_schema_give_the_same_tables(self, engine: Engine) -> None:
        """Autogenerate does not look at check constraints and conditions of indexes."""
        migrated = described(engine)
        with writing(engine) as connection:
            schema.metadata.drop_all(connection)
            schema.metadata.create_all(connection)
        assert described(engine) == migrated

    @pytest.mark.parametrize("release", ["0001", "0002", "0003"])
    def test_what_earlier_releases_stored_is_kept(self, empty: Engine, release: str) -> None:
        """Rows as the releases wrote them, with the defaults of then."""
        with writing(empty) as connection:
            command.upgrade(alembic_config(connection), release)
            keyset, key = keyset_named("demo"), key_of(keyset_named("demo"))
            for table, row in (
                (schema.keysets, rows.keyset_to_row(keyset)),
                (schema.keys, rows.key_to_row(key)),
            ):
                then = {column["name"] for column in inspect(connection).get_columns(table.name)}
                values = {name: value for name, value in row.items() if name in then}
                connection.execute(insert(table).values(values))
        assert not schema_is_current(empty)
        migrate(empty)
        store = SqlKeyStore(empty)
        store.check()
        assert list(store.keysets()) == [replace(keyset, schedule=RotationSchedule(), standby=None)]
        assert list(store.keys()) == [key]
        with pytest.raises(IntegrityError, match="cannot be active"), writing(empty) as connection:
            connection.execute(text("UPDATE keys SET private_destroyed_at = 1"))

    def test_a_date_that_meant_nothing_keeps_no_compromised_key(self, empty: Engine) -> None:
        with writing(empty) as connection:
            command.upgrade(alembic_config(connection), "0003")
            connection.execute(
                insert(schema.keysets).values(rows.keyset_to_row(keyset_named("demo")))
            )
            for kid, state in (("bad", "compromised"), ("spent", "deactivated")):
                row = rows.key_to_row(key_of(keyset_named("demo"), kid))
                connection.execute(
                    insert(schema.keys).values(row | {"state": state, "destroy_at": NOW})
                )
        migrate(empty)
        found = {key.kid: key.times.destroy_at for key in list(SqlKeyStore(empty).keys())}
        assert found == {"bad": None, "spent": NOW}

    def test_head_is_the_newest_packaged_revision(self, engine: Engine) -> None:
        with reading(engine) as connection:
            script = ScriptDirectory.from_config(alembic_config(connection))
        assert script.get_heads() == [HEAD]

    def test_a_new_database_is_not_current_until_migrated(self, empty: Engine) -> None:
        engine = empty
        assert not schema_is_current(engine)
        with pytest.raises(StoreUnavailable, match=f"needs .{HEAD}."):
            SqlKeyStore(engine).check()
        migrate(engine)
        assert schema_is_current(engine)
        migrate(engine)
        SqlKeyStore(engine).check()

    def test_eight_threads_migrate_at_once(self, empty: Engine) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(migrate, [empty] * 8))
        assert schema_is_current(empty)

    def test_a_failure_halfway_leaves_what_was_there(
        self, empty: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upgrade = command.upgrade

        def upgrade_and_fail(config: Config, revision: str) -> None:
            upgrade(config, revision)
            raise KeyboardInterrupt

        engine = empty
        with monkeypatch.context() as patch:
            patch.setattr(command, "upgrade", upgrade_and_fail)
            with pytest.raises(KeyboardInterrupt):
                migrate(engine)
        assert inspect(engine).get_table_names() == []
        migrate(engine)
        assert schema_is_current(engine)

    def test_a_newer_schema_is_refused_and_kept(self, engine: Engine) -> None:
        with writing(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreUnavailable, match="newer version"):
            migrate(engine)
        with pytest.raises(StoreUnavailable, match="run the version that migrated it"):
            SqlKeyStore(engine).check()
        assert "keysets" in inspect(engine).get_table_names()


class TestConstraints:
    def test_one_active_key_a_keyset(self, engine: Engine, store: SqlKeyStore) -> None:
        keyset = keyset_named("demo")
        store.add_keyset(keyset, key_of(keyset))
        second = rows.key_to_row(key_of(keyset, "second"))
        one_active = r"keys\.keyset|uq_keys_one_active"
        with pytest.raises(IntegrityError, match=one_active), writing(engine) as connection:
            connection.execute(insert(schema.keys).values(second))
        with writing(engine) as connection:
            connection.execute(insert(schema.keys).values(second | {"state": "pre-activation"}))
        with pytest.raises(IntegrityError, match=one_active), writing(engine) as connection:
            connection.execute(update(schema.keys).values(state="active"))
        assert {key.state for key in list(store.keys())} == {
            KeyState.ACTIVE,
            KeyState.PRE_ACTIVATION,
        }

    @pytest.mark.parametrize(
        ("change", "constraint"),
        [
            ("UPDATE keys SET state = 'retired'", "kmsjwks refuses: this change of its state"),
            ("UPDATE keys SET keyset = 'other'", "kmsjwks refuses: what a key is"),
            ("UPDATE keys SET spki = NULL", "kmsjwks refuses: what a key is"),
            ("UPDATE keys SET state = 'pre-activation'", "kmsjwks refuses: this change"),
            ("DELETE FROM keys", "kmsjwks refuses: keys are never deleted"),
            ("UPDATE keys SET hold = NULL", "hold"),
            ("UPDATE keys SET version = NULL", "version"),
            ("UPDATE keysets SET schedule = NULL", "schedule"),
            ("DELETE FROM keysets", "FOREIGN KEY|fk_keys_keyset"),
            ("INSERT INTO store_revision VALUES (2, 0)", "ck_store_revision_one_row"),
        ],
    )
    def test_the_database_refuses(
        self, engine: Engine, store: SqlKeyStore, change: str, constraint: str
    ) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        with pytest.raises(IntegrityError, match=constraint), writing(engine) as connection:
            connection.execute(text(change))

    def test_an_unknown_state_is_not_inserted(self, engine: Engine, store: SqlKeyStore) -> None:
        keyset = keyset_named("demo")
        store.add_keyset(keyset, key_of(keyset))
        retired = rows.key_to_row(key_of(keyset, "second")) | {"state": "retired"}
        with pytest.raises(IntegrityError, match="ck_keys_state"), writing(engine) as connection:
            connection.execute(insert(schema.keys).values(retired))


class TestRowsOfOtherVersions:
    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE keysets SET algorithm = 'XX999'",
            "UPDATE keysets SET rules = '{'",
            "UPDATE keysets SET rules = '[]'",
            "UPDATE keysets SET schedule = '{'",
            "UPDATE keysets SET schedule = '[]'",
            "UPDATE keysets SET standby = '{'",
            "UPDATE keysets SET standby = '[]'",
            "UPDATE keysets SET standby = '{}'",
            'UPDATE keysets SET standby = \'{"backend": "kms", "of_a_later_version": 1}\'',
            "UPDATE keysets SET schedule = '{\"of_a_later_version\": 1}'",
            'UPDATE keysets SET rules = \'{"issuer": "i", "of_a_later_version": 1}\'',
        ],
    )
    def test_a_keyset_of_a_later_version_is_not_half_understood(
        self, engine: Engine, store: SqlKeyStore, change: str
    ) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        with writing(engine) as connection:
            connection.exec_driver_sql(change)
        with pytest.raises(StoreUnavailable, match="cannot read the keyset demo"):
            store.keysets()

    def test_a_standby_of_a_later_version_is_not_written_over(
        self, engine: Engine, store: SqlKeyStore
    ) -> None:
        keyset = keyset_named("demo")
        store.add_keyset(keyset, key_of(keyset))
        later = '{"backend": "kms", "of_a_later_version": 1}'
        with writing(engine) as connection:
            connection.execute(update(schema.keysets).values(standby=later))
        after = replace(keyset, standby=Standby("kms"))
        with pytest.raises(StoreUnavailable, match="cannot read the keyset demo"):
            store.update_keyset(
                keyset, after, [], LifecycleEvent(NOW, "tester", "demo", None, "moved")
            )
        with reading(engine) as connection:
            assert connection.scalar(select(schema.keysets.c.standby)) == later

    def test_rules_that_were_not_written_have_their_defaults(
        self, engine: Engine, store: SqlKeyStore
    ) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        with writing(engine) as connection:
            connection.exec_driver_sql('UPDATE keysets SET rules = \'{"issuer": "https://i"}\'')
        assert store.keysets()[0].rules.typ == "JWT"

    @pytest.mark.parametrize("table", ["keys", "intents"])
    def test_an_unknown_algorithm_is_told(
        self, engine: Engine, store: SqlKeyStore, table: str
    ) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        store.begin_creation("r", "later", "hsm", ES256, NOW)
        with writing(engine) as connection:
            connection.execute(text(DISABLE_TRIGGER[engine.dialect.name]))
            connection.execute(text(f"UPDATE {table} SET algorithm = 'XX999'"))
        with pytest.raises(StoreUnavailable, match="cannot read"):
            list(store.keys() if table == "keys" else store.open_intents())

    def test_a_lost_revision_row_is_told(self, engine: Engine, store: SqlKeyStore) -> None:
        with writing(engine) as connection:
            connection.execute(text("DELETE FROM store_revision"))
        with pytest.raises(StoreUnavailable, match="lost its revision"):
            store.revision()
