"""One real service for the whole directory, with a keyset for each algorithm of its token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from kmsjwks.domain.algorithms import find_algorithm
from tests.support.service import Installation, Server
from tests.support.softhsm import provision


@dataclass(frozen=True)
class Keyset:
    """``algorithm`` is an id such as ES256, RS256 (2048 bits) or Ed448."""

    name: str
    algorithm: str
    issuer: str
    kid: str


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    directory = tmp_path_factory.mktemp("e2e")
    token = provision(directory / "token")
    return Installation(directory / "service", token.options())


@pytest.fixture(scope="session")
def keysets(installation: Installation) -> dict[str, Keyset]:
    """By algorithm; created by the command line."""

    def create(algorithm: str) -> Keyset:
        made = installation.create_keyset(algorithm.lower(), algorithm)
        return Keyset(made["name"], made["algorithm"], made["issuer"], made["keys"][0]["kid"])

    with ThreadPoolExecutor(2) as pool:
        return {one.algorithm: one for one in pool.map(create, offered(installation))}


def offered(installation: Installation) -> list[str]:
    """What the token offers, larger RSA moduli left out because they only cost time."""
    done = installation.cli("-o", "json", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    said = next(row["said"] for row in json.loads(done.stdout) if row["check"] == "algorithms")
    names = str(said).split(", ")
    return [name for name in names if find_algorithm(name).key_bits not in (3072, 4096)]


@pytest.fixture(scope="session")
def server(installation: Installation, keysets: dict[str, Keyset]) -> Iterator[Server]:
    running = Server(installation)
    running.start()
    yield running
    running.kill_all()
