"""SQLite as the store: files, journal, locks, and what may happen to a file."""

from __future__ import annotations

import os
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from kmsjwks.domain.errors import ConfigurationError, StoreUnavailable
from kmsjwks.domain.ports import LifecycleEvent
from kmsjwks.storage.engine import make_engine
from kmsjwks.storage.keystore import SqlKeyStore
from kmsjwks.storage.migration import migrate, schema_is_current
from kmsjwks.storage.transactions import writing
from tests.contract.test_key_store import ES256, NOW, key_of, keyset_named


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
            "postgresql+asyncpg://u:hunter2@host/db",
            "postgres://u:hunter2@host/db",
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
        lambda store: store.apply([], LifecycleEvent(NOW, "a", "demo", None, "e")),
        lambda store: store.events("demo"),
        lambda store: store.extend_lease("k", "h", NOW),
        lambda store: store.finish_lease("k", "h", NOW),
        lambda store: store.leases("k"),
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

    def test_a_planner_lock_that_cannot_be_made_is_store_unavailable(
        self, store: SqlKeyStore, path: Path
    ) -> None:
        Path(f"{path}.planner.lock").mkdir()
        with pytest.raises(StoreUnavailable, match="lock file"), store.planner_lock():
            pytest.fail("nobody can have it")

    def test_the_planner_lock_is_private(self, store: SqlKeyStore, path: Path) -> None:
        with store.planner_lock():
            assert stat.S_IMODE(Path(f"{path}.planner.lock").stat().st_mode) == 0o600
