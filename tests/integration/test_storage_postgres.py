"""PostgreSQL as the store: URLs, time limits, and what may happen to a server."""

from __future__ import annotations

import importlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, text

from kmsjwks.domain.errors import ConfigurationError, StoreUnavailable
from kmsjwks.domain.ports import LifecycleEvent
from kmsjwks.storage import postgresql, psycopg_connection, writes
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import ADVISORY_KEY, HEAD, alembic_config, migrate
from kmsjwks.storage.transactions import reading, writing
from tests.contract.test_key_store import ES256, NOW, key_of, keyset_named
from tests.support.postgres import PASSWORD, PostgresServer


@pytest.fixture
def engine(postgres_url: str) -> Engine:
    engine = make_engine(postgres_url)
    migrate(engine)
    return engine


@pytest.fixture
def store(engine: Engine) -> SqlKeyStore:
    return SqlKeyStore(engine)


def settings(engine: Engine, *names: str) -> list[str]:
    with reading(engine) as connection:
        return [str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in names]


def everything_said(error: BaseException) -> str:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return "".join(traceback.format_exception(error)) + repr(chain)


class TestEngine:
    @pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
    def test_both_names_of_the_driver(self, postgres_url: str, driver: str) -> None:
        engine = make_engine(postgres_url.replace("postgresql", driver))
        migrate(engine)
        SqlKeyStore(engine).check()

    def test_nothing_waits_for_ever(self, engine: Engine) -> None:
        assert settings(engine, "statement_timeout", "lock_timeout") == ["5s", "5s"]
        assert settings(engine, "idle_in_transaction_session_timeout") == ["10s"]

    def test_the_operator_has_the_last_word(self, postgres_url: str) -> None:
        url = f"{postgres_url}?application_name=mine&options=-c%20statement_timeout%3D9s"
        engine = make_engine(url)
        shown = settings(engine, "application_name", "statement_timeout", "lock_timeout")
        assert shown == ["mine", "9s", "5s"]

    def test_it_connects_when_it_is_used(self) -> None:
        make_engine("postgresql://nobody@192.0.2.1/nowhere")

    def test_no_connection_stays_open(
        self, postgres_server: PostgresServer, store: SqlKeyStore
    ) -> None:
        for _ in range(3):
            store.revision()
        with store.planner_lock():
            time.sleep(0.01)
        deadline = time.monotonic() + 5
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'kmsjwks'"
        while postgres_server.execute(query) != [(0,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_what_is_shown_holds_no_password(self, postgres_url: str) -> None:
        for url in (postgres_url, f"{postgres_url}?password={PASSWORD}&user={PASSWORD}"):
            engine = make_engine(url)
            assert PASSWORD not in f"{engine!r} {engine.url!r} {engine.url}"

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("postgresql://u:hunter2@host", "names no database"),
            ("postgresql://u:hunter2@host/", "names no database"),
            ("postgresql://u:hunter2@host/db?hunter=hunter2", "does not know: hunter"),
            ("postgresql://u:hunter2@host/db?autocommit=1&row_factory=1", "autocommit, row_fac"),
        ],
    )
    def test_a_bad_url_is_told_without_its_password(self, url: str, said: str) -> None:
        with pytest.raises(ConfigurationError, match=said) as caught:
            make_engine(url)
        assert "hunter2" not in everything_said(caught.value)

    def test_a_missing_driver_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_there(name: str) -> Any:
            raise ImportError(f"no module {name}")

        monkeypatch.setattr(postgresql, "import_module", not_there)
        with pytest.raises(ConfigurationError, match=r"kmsjwks\[postgresql\]"):
            make_engine("postgresql://u:hunter2@host/db")
        assert importlib.import_module("psycopg")


def calls(store: SqlKeyStore) -> Iterator[Callable[[], object]]:
    keyset = keyset_named("demo")
    yield store.check
    yield store.revision
    yield store.keysets
    yield store.keys
    yield store.open_intents
    yield lambda: store.begin_creation("r", "demo", "hsm", ES256, NOW)
    yield lambda: store.abandon_creation("r")
    yield lambda: store.add_keyset(keyset, key_of(keyset))
    yield lambda: store.apply([], LifecycleEvent(NOW, "a", "demo", None, "e"))
    yield lambda: store.events("demo")
    yield lambda: store.extend_lease("k", "h", NOW)
    yield lambda: store.finish_lease("k", "h", NOW)
    yield lambda: store.leases("k")
    yield lambda: store.planner_lock().__enter__()


@contextmanager
def unavailable(said: str) -> Iterator[None]:
    """StoreUnavailable that says ``said`` and gives no password away."""
    with pytest.raises(StoreUnavailable, match=said) as caught:
        yield
    assert PASSWORD not in everything_said(caught.value)
    assert "wrong-pass" not in everything_said(caught.value)


class TestFailures:
    def test_a_stopped_server_and_its_return(
        self, postgres_server: PostgresServer, store: SqlKeyStore
    ) -> None:
        with postgres_server.down():
            for call in calls(store):
                with unavailable("does not answer"):
                    call()
        store.check()

    def test_a_killed_server_and_its_return(
        self, postgres_server: PostgresServer, store: SqlKeyStore
    ) -> None:
        before = store.revision()
        store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))
        postgres_server.kill()
        with unavailable("does not answer"):
            store.revision()
        postgres_server.start()
        assert store.revision() == before + 1

    def test_a_server_that_hangs_at_the_door(
        self, postgres_server: PostgresServer, store: SqlKeyStore
    ) -> None:
        postgres_server.freeze()
        try:
            began = time.monotonic()
            with unavailable("does not answer"):
                store.revision()
            assert time.monotonic() - began < postgresql.CONNECT_TIMEOUT + 1.5
        finally:
            postgres_server.thaw()
        store.check()

    def test_a_server_that_hangs_in_the_middle(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server does not keep its own statement timeout."""
        monkeypatch.setattr(psycopg_connection.BoundedConnection, "patience", 0.5)
        began = time.monotonic()
        with unavailable("does not answer"), writing(engine) as connection:
            connection.execute(text("SELECT pg_sleep(4)"))
        assert time.monotonic() - began < 2

    def test_a_terminated_backend(
        self, postgres_server: PostgresServer, engine: Engine, store: SqlKeyStore
    ) -> None:
        with unavailable("ended the connection"), writing(engine) as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            connection.execute(text("SELECT 1"))
        store.check()

    def test_a_planner_that_loses_its_connection_ends_well(
        self, postgres_server: PostgresServer, store: SqlKeyStore
    ) -> None:
        with store.planner_lock() as ours:
            assert ours
            postgres_server.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
            )
            with store.planner_lock() as another:
                assert another

    def test_a_slow_statement(self, postgres_url: str) -> None:
        engine = make_engine(f"{postgres_url}?options=-c%20statement_timeout%3D100")
        with unavailable("took too long"), reading(engine) as connection:
            connection.execute(text("SELECT pg_sleep(3)"))

    def test_a_writer_that_does_not_end(self, postgres_url: str, engine: Engine) -> None:
        impatient = SqlKeyStore(make_engine(postgres_url, busy_timeout=0.1))
        with writing(engine) as connection:
            connection.execute(text("UPDATE store_revision SET value = value"))
            assert impatient.revision() == 0
            with unavailable("locked by another process"):
                impatient.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))

    def test_a_read_only_server(
        self, postgres_server: PostgresServer, engine: Engine, store: SqlKeyStore
    ) -> None:
        name = engine.url.database
        postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        store.revision()
        with unavailable("read-only"):
            store.add_keyset(keyset_named("demo"), key_of(keyset_named("demo")))

    def test_a_wrong_password(self, postgres_server: PostgresServer, engine: Engine) -> None:
        database = str(engine.url.database)
        store = SqlKeyStore(make_engine(postgres_server.url(database, "wrong-password")))
        with unavailable("login are right"):
            store.revision()

    def test_a_database_that_is_not_there(self, postgres_server: PostgresServer) -> None:
        with unavailable("does not answer"):
            migrate(make_engine(postgres_server.url("nowhere")))

    def test_a_database_of_another_owner(self, postgres_server: PostgresServer) -> None:
        with unavailable("refused access"):
            migrate(make_engine(postgres_server.url("template1")))

    def test_a_database_that_was_not_migrated(self, postgres_url: str) -> None:
        with unavailable("Migrate it"):
            SqlKeyStore(make_engine(postgres_url)).revision()


def test_a_migration_waits_for_another(postgres_url: str, engine: Engine) -> None:
    """For longer than a statement may take otherwise."""
    impatient = make_engine(postgres_url, busy_timeout=0.1)
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with writing(engine) as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_KEY})"))
        thread = threading.Thread(target=migrate, args=(impatient,))
        thread.start()
        time.sleep(0.6)
        assert thread.is_alive()
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))
    thread.join(10)
    SqlKeyStore(engine).check()


def test_a_migration_waits_for_a_change_of_keys(postgres_url: str) -> None:
    """One of the version before, that has written a key and goes on to its keyset."""
    engine = make_engine(postgres_url)
    with writing(engine) as connection:
        command.upgrade(alembic_config(connection), "0002")
    with writing(engine) as connection:
        writes.bump_revision(connection)
        connection.execute(text("UPDATE keys SET hold = true"))
        thread = threading.Thread(target=migrate, args=(make_engine(postgres_url),))
        thread.start()
        while thread.is_alive() and not waits_for_a_lock(engine):
            time.sleep(0.01)
        connection.execute(text("UPDATE keysets SET name = name"))
    thread.join(10)
    SqlKeyStore(engine).check()


def waits_for_a_lock(engine: Engine) -> bool:
    with reading(engine) as connection:
        found = connection.execute(
            text(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock'"
            )
        )
        return found.first() is not None


def test_truncate_is_refused(engine: Engine) -> None:
    with pytest.raises(Exception, match="kmsjwks refuses: keys are never"), writing(engine) as one:
        one.execute(text("TRUNCATE keys CASCADE"))
