"""The SQL store on real SQLite files: schema, migrations, processes, failures."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, inspect, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from kmsjwks.domain.errors import ConfigurationError, Conflict, KmsJwksError, StoreUnavailable
from kmsjwks.domain.keys import KeyState
from kmsjwks.storage import rows, schema
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import HEAD, alembic_config, migrate, schema_is_current
from kmsjwks.storage.transactions import reading, writing
from tests.contract.test_key_store import ES256, NOW, key_of, keyset_named

PROCESSES = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.db"


@pytest.fixture
def engine(path: Path) -> Engine:
    engine = make_engine(f"sqlite:///{path}")
    migrate(engine)
    return engine


@pytest.fixture
def store(engine: Engine) -> SqlKeyStore:
    return SqlKeyStore(engine)


def beside(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir())


def objects(engine: Engine) -> dict[str, str]:
    query = text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    with reading(engine) as connection:
        return {name: sql for name, sql in connection.execute(query) if name != "alembic_version"}


class TestMigration:
    def test_autogenerate_finds_nothing_to_do(self, engine: Engine) -> None:
        with reading(engine) as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, schema.metadata) == []

    def test_migrations_and_schema_give_the_same_sql(self, engine: Engine, tmp_path: Path) -> None:
        """Autogenerate does not look at check constraints and conditions of indexes."""
        declared = make_engine(f"sqlite:///{tmp_path}/declared.db")
        with writing(declared) as connection:
            schema.metadata.create_all(connection)
        assert objects(engine) == objects(declared)

    def test_the_schema_is_also_postgresql(self) -> None:
        dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
        for table in schema.metadata.sorted_tables:
            assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
            for index in table.indexes:
                assert "WHERE state = 'active'" in str(CreateIndex(index).compile(dialect=dialect))

    def test_head_is_the_newest_packaged_revision(self, engine: Engine) -> None:
        with reading(engine) as connection:
            script = ScriptDirectory.from_config(alembic_config(connection))
        assert script.get_heads() == [HEAD]

    def test_a_new_file_is_not_current_until_migrated(self, path: Path) -> None:
        engine = make_engine(f"sqlite:///{path}")
        assert not schema_is_current(engine)
        with pytest.raises(StoreUnavailable, match=f"needs .{HEAD}."):
            SqlKeyStore(engine).check()
        migrate(engine)
        assert schema_is_current(engine)
        migrate(engine)
        SqlKeyStore(engine).check()

    def test_eight_threads_migrate_at_once(self, path: Path) -> None:
        engine = make_engine(f"sqlite:///{path}")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(migrate, [engine] * 8))
        assert schema_is_current(engine)

    def test_a_failure_halfway_leaves_what_was_there(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upgrade = command.upgrade

        def upgrade_and_fail(config: Config, revision: str) -> None:
            upgrade(config, revision)
            raise KeyboardInterrupt

        engine = make_engine(f"sqlite:///{path}")
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
        with pytest.raises(IntegrityError, match=r"keys\.keyset"), writing(engine) as connection:
            connection.execute(
                insert(schema.keys).values(rows.key_to_row(key_of(keyset, "second")))
            )
        spare = rows.key_to_row(key_of(keyset, "second")) | {"state": "pre-activation"}
        with writing(engine) as connection:
            connection.execute(insert(schema.keys).values(spare))
        with pytest.raises(IntegrityError, match=r"keys\.keyset"), writing(engine) as connection:
            connection.execute(update(schema.keys).values(state="active"))
        assert [key.state for key in list(store.keys())] == [
            KeyState.ACTIVE,
            KeyState.PRE_ACTIVATION,
        ]

    @pytest.mark.parametrize(
        ("change", "constraint"),
        [
            ("UPDATE keys SET state = 'retired'", "ck_keys_state"),
            ("UPDATE keys SET keyset = 'other'", "FOREIGN KEY"),
            ("UPDATE keys SET hold = NULL", "keys.hold"),
            ("DELETE FROM keysets", "FOREIGN KEY"),
            ("INSERT INTO store_revision VALUES (2, 0)", "ck_store_revision_one_row"),
        ],
    )
    def test_the_database_refuses(
        self, engine: Engine, store: SqlKeyStore, change: str, constraint: str
    ) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        with pytest.raises(IntegrityError, match=constraint), writing(engine) as connection:
            connection.execute(text(change))

    def test_a_new_key_is_not_on_hold(self, engine: Engine, store: SqlKeyStore) -> None:
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        with reading(engine) as connection:
            assert (
                connection.scalar(schema.keys.select().with_only_columns(schema.keys.c.hold))
                is False
            )


class TestEngine:
    def test_pragmas(self, engine: Engine) -> None:
        with engine.connect() as connection:
            values = {
                name: connection.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        full = 2
        assert values == {
            "journal_mode": "wal",
            "synchronous": full,
            "foreign_keys": 1,
            "busy_timeout": 5000,
        }

    def test_files_are_private(self, path: Path) -> None:
        before = os.umask(0)
        try:
            engine = make_engine(f"sqlite:///{path}")
            migrate(engine)
            with writing(engine) as connection:
                connection.execute(text("UPDATE store_revision SET value = 1"))
                modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in beside(path)}
        finally:
            os.umask(before)
        assert modes == {"keys.db": 0o600, "keys.db-shm": 0o600, "keys.db-wal": 0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_a_relative_path_does_not_follow_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        engine = make_engine("sqlite:///var/a b#c.db")
        migrate(engine)
        monkeypatch.chdir("/")
        assert schema_is_current(engine)
        assert (tmp_path / "var" / "a b#c.db").exists()

    def test_a_file_in_another_journal_mode_is_switched(self, path: Path) -> None:
        path.parent.mkdir()
        path.touch(mode=0o600)
        migrate(make_engine(f"sqlite:///{path}"))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_writers_hold_the_lock_from_the_start(self, engine: Engine, path: Path) -> None:
        impatient = make_engine(f"sqlite:///{path}", busy_timeout=0.05)
        with writing(engine):
            assert SqlKeyStore(impatient).revision() == 0
            with pytest.raises(StoreUnavailable, match="locked"), writing(impatient):
                pytest.fail("two writers at once")

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+psycopg://u:hunter2@host/db",
            "mysql://u:hunter2@host/db",
            "sqlite+hunter://u:hunter2@host/db",
            "sqlite://u:hunter2@host/db",
            "sqlite:////tmp/x.db?password=hunter2",
            "postgresql://u:hunter2@host:hunter2/db",
            "hunter2",
            "://u:hunter2@",
            "sqlite://",
            "sqlite:///:memory:",
            "",
        ],
    )
    def test_a_bad_url_is_told_without_its_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="sqlite:////absolute/path") as caught:
            make_engine(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in repr(caught.value.__context__)

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match="cannot be created: "):
            make_engine(f"sqlite:///{tmp_path}/file/keys.db")
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@contextmanager
def no_longer_root() -> Iterator[None]:
    """Root reads everything; file modes are for the others."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


class TestFailures:
    CALLS: tuple[Callable[[SqlKeyStore], object], ...] = (
        SqlKeyStore.check,
        SqlKeyStore.revision,
        SqlKeyStore.keysets,
        SqlKeyStore.keys,
        SqlKeyStore.open_intents,
        lambda store: store.begin_creation("r", "demo", "hsm", ES256, NOW),
        lambda store: store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo"))),
    )

    @pytest.mark.parametrize("spoil", [remove, replace_by_directory, overwrite, empty])
    def test_a_spoilt_file_is_store_unavailable(
        self, store: SqlKeyStore, path: Path, spoil: Callable[[Path], None]
    ) -> None:
        spoil(path)
        for call in self.CALLS:
            with pytest.raises(StoreUnavailable):
                call(store)
        assert spoil is not remove or not path.exists()

    def test_an_unreadable_file_is_store_unavailable(self, store: SqlKeyStore, path: Path) -> None:
        path.chmod(0)
        for call in self.CALLS:
            with no_longer_root(), pytest.raises(StoreUnavailable, match="cannot be opened"):
                call(store)

    def test_it_recovers_by_itself(self, store: SqlKeyStore, path: Path) -> None:
        aside = path.rename(path.with_suffix(".aside"))
        with pytest.raises(StoreUnavailable):
            store.check()
        aside.rename(path)
        store.check()

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE keysets SET algorithm = 'XX999'",
            "UPDATE keysets SET rules = '{'",
            "UPDATE keysets SET rules = '[]'",
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
            connection.execute(text(f"UPDATE {table} SET algorithm = 'XX999'"))
        with pytest.raises(StoreUnavailable, match="cannot read"):
            list(store.keys() if table == "keys" else store.open_intents())

    def test_a_lost_revision_row_is_told(self, engine: Engine, store: SqlKeyStore) -> None:
        with writing(engine) as connection:
            connection.execute(text("DELETE FROM store_revision"))
        with pytest.raises(StoreUnavailable, match="lost its revision"):
            store.revision()


def start_and_write(url: str, number: int, barrier: Barrier, results: Any) -> None:
    """What a replica does at its start, all at once with nine others."""
    barrier.wait()
    try:
        engine = make_engine(url)
        migrate(engine)
        store = SqlKeyStore(engine)
        store.check()
        own = keyset_named(f"own-{number}")
        store.begin_creation(f"own-{number}", own.name, own.backend, ES256, NOW)
        store.add_keyset(own, key_of(own), request_id=f"own-{number}")
        shared = keyset_named("shared")
        store.begin_creation("shared", shared.name, shared.backend, ES256, NOW + number)
        store.add_keyset(shared, key_of(shared), request_id="shared")
    except Conflict:
        results.put("lost")
    except KmsJwksError as error:
        results.put(f"{error} {error.__cause__}")
    else:
        results.put("won")


class TestProcesses:
    def test_ten_processes_migrate_and_write_at_once(self, path: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        barrier, results = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
        processes = [
            spawn.Process(
                target=start_and_write, args=(f"sqlite:///{path}", number, barrier, results)
            )
            for number in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=60)
        assert [process.exitcode for process in processes] == [0] * PROCESSES
        outcomes = sorted(results.get() for _ in processes)
        assert outcomes == ["lost"] * (PROCESSES - 1) + ["won"]

        store = SqlKeyStore(make_engine(f"sqlite:///{path}"))
        assert len(store.keysets()) == len(store.keys()) == PROCESSES + 1
        assert store.revision() == PROCESSES + 1
        assert list(store.open_intents()) == []
        assert beside(path) == [path]

    def test_an_engine_survives_fork(self, store: SqlKeyStore) -> None:
        store.add_keyset(keyset_named("parent"), key_of(keyset_named("parent")))
        child = multiprocessing.get_context("fork").Process(
            target=store.add_keyset, args=(keyset_named("child"), key_of(keyset_named("child")))
        )
        child.start()
        store.add_keyset(keyset_named("again"), key_of(keyset_named("again")))
        child.join(timeout=30)
        assert child.exitcode == 0
        assert [keyset.name for keyset in store.keysets()] == ["again", "child", "parent"]
