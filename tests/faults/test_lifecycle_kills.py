"""SIGKILL at every fault point of every lifecycle operation; another process goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.killing import OPERATIONS, kill_at_every_point, tick_at_once
from tests.support.postgres import PostgresServer
from tests.support.processes import run_apart
from tests.support.service import Installation
from tests.support.softhsm import Token

ENOUGH = 20  # databases; more than any operation has fault points


@pytest.fixture
def config(own_token: Token, tmp_path: Path) -> Path:
    return Installation(tmp_path / "service", own_token.options()).config


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_on_sqlite(operation: str, config: Path, tmp_path: Path) -> None:
    databases = [f"sqlite:///{tmp_path / f'{number}.db'}" for number in range(ENOUGH)]
    run_apart(kill_at_every_point, operation, config, databases)


def test_killed_on_postgresql(
    config: Path, postgres_server: PostgresServer, postgres_database: str
) -> None:
    """The server frees the planner's lock of a process that is gone."""
    databases = [postgres_server.create_schema(postgres_database) for _ in range(ENOUGH)]
    run_apart(kill_at_every_point, "compromise", config, databases)


def test_ten_tick_at_once_on_sqlite(config: Path, tmp_path: Path) -> None:
    run_apart(tick_at_once, config, f"sqlite:///{tmp_path / 'shared.db'}")


def test_ten_tick_at_once_on_postgresql(config: Path, postgres_url: str) -> None:
    run_apart(tick_at_once, config, postgres_url)
