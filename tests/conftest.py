"""Fixtures that give every test the real parts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from kmsjwks.backends.pkcs11.backend import Pkcs11Backend
from kmsjwks.backends.pkcs11.library import Libraries
from tests.support.p11kit import P11KitServer
from tests.support.postgres import PostgresServer
from tests.support.softhsm import Token, open_backend, provision


@pytest.fixture(scope="session")
def libraries() -> Libraries:
    """PKCS#11 modules are global to a process, and so is this."""
    return Libraries()


@pytest.fixture(scope="session")
def softhsm_token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    """The token of this process: SoftHSM reads SOFTHSM2_CONF once, when it is initialised."""
    return provision(tmp_path_factory.mktemp("softhsm") / "token")


@pytest.fixture(scope="session")
def softhsm(
    softhsm_token: Token, libraries: Libraries, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pkcs11Backend]:
    """The backend on that token, calls bounded by threads of their own."""
    state = tmp_path_factory.mktemp("state")
    backend = open_backend(softhsm_token.options(), state, libraries)
    yield backend
    backend.close()


@pytest.fixture
def own_token(tmp_path: Path) -> Token:
    """A token that a test may damage; for other processes, because this one has its own."""
    return provision(tmp_path / "token")


@pytest.fixture
def p11kit(own_token: Token, tmp_path: Path) -> Iterator[P11KitServer]:
    """A token process, running."""
    server = P11KitServer(own_token, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Running. A test that stops it starts it again (``with postgres_server.down():``)."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_database(postgres_server: PostgresServer) -> str:
    """The name of one that tests share, each with a schema of its own."""
    return postgres_server.create_database()


@pytest.fixture
def postgres_schema_url(postgres_server: PostgresServer, postgres_database: str) -> str:
    """Of a new, empty schema, which is all that most tests need. Advisory locks, such as the
    planner's, are the database's."""
    return postgres_server.create_schema(postgres_database)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Of a new, empty database."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests print may hold lone surrogates, which xdist cannot send between processes."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
