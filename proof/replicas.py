"""Three replicas: a configuration, state and audit trail each; one database and one token."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmsjwks.backends.pkcs11.library import Libraries
from proof.plan import CLIENT, KEYSET, REPLICAS, Times
from tests.support.http import Http
from tests.support.postgres import PostgresServer
from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import ROOT, Token, open_backend

_WORKERS = (2, 1, 1)


class Replica(Installation):
    """What one machine has; ``bearer`` is the caller's token."""

    def __init__(self, directory: Path, bearer: str, config: str) -> None:
        directory.mkdir(parents=True)
        self.directory, self.port = directory, free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.config = directory / "kmsjwks.toml"
        self.config.write_text(config)
        self.config.chmod(0o600)  # it names the database with its password
        self.tokens = {CLIENT: bearer}


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What the database says of a key, in seconds since the epoch."""

    kid: str
    keyset: str
    backend: str
    ref: str
    state: str
    created_at: int
    published_at: int
    activate_at: int | None
    deactivated_at: int | None
    withdraw_at: int | None
    compromised_at: int | None


class Cluster:
    """Replicas by name, and what an operator does to them."""

    def __init__(
        self, directory: Path, postgres: PostgresServer, token: Token, issuer: str, times: Times
    ) -> None:
        self.bearer, self.issuer = secrets.token_urlsafe(24), issuer
        self._postgres, self._times = postgres, times
        self._directory, self._token = directory, token
        self._database = postgres.create_database()
        config = _config(postgres.url(self._database), token, self, times)
        self.servers: dict[str, Server] = {}
        for name, workers in zip(REPLICAS, _WORKERS, strict=True):
            replica = Replica(directory / name, self.bearer, config)
            share_login_lock(token, replica, "token")
            self.servers[name] = Server(replica, workers=workers)

    @property
    def ports(self) -> dict[str, int]:
        return {name: server.port for name, server in self.servers.items()}

    def start(self) -> None:
        first = self.servers[REPLICAS[0]]
        first.launch()  # migrates the database
        first.wait_ready()
        times = self._times
        self.operate(
            "keysets", "create", KEYSET, "--algorithm", "ES256", "--issuer", self.issuer,
            "--max-lifetime", f"{times.lifetime}s", "--default-lifetime", f"{times.lifetime}s",
            "--rotation-period", f"{times.period}s", "--propagation", f"{times.propagation}s",
            "--leeway", f"{times.leeway}s",
        )  # fmt: skip
        for name in REPLICAS[1:]:
            self.servers[name].launch()
        for server in self.servers.values():
            server.wait_ready(60)

    def operate(self, *words: str) -> str:
        """The CLI, as on the first replica's machine; what it says on standard error."""
        done = self.servers[REPLICAS[0]].installation.cli(*words)
        assert done.returncode == 0, f"kmsjwks {' '.join(words)}: {done.stderr}"
        return done.stderr

    def ready(self) -> list[str]:
        return [name for name, server in self.servers.items() if is_ready(server.port)]

    def jwks_kids(self, name: str) -> list[str]:
        """
        Raises:
            OSError: the replica is down.
        """
        http = Http(self.servers[name].port, timeout=1.0)
        try:
            answer = http.get("/.well-known/jwks.json")
        finally:
            http.close()
        return [key["kid"] for key in answer.json()["keys"]] if answer.status == 200 else []

    def key_facts(self) -> list[KeyFacts]:
        """In the order of their publication."""
        return key_facts(self._postgres, self._database)

    def refs_in_token(self) -> frozenset[str]:
        """What the token holds; when the replicas are down, since this logs in without their
        lock."""
        with closing(open_backend(self._token.options(), self._directory, Libraries())) as backend:
            return frozenset(key.ref for key in backend.list_keys())

    def close(self) -> None:
        for server in self.servers.values():
            server.kill_all()


def key_facts(postgres: PostgresServer, database: str) -> list[KeyFacts]:
    """Of every keyset, in the order of their publication."""
    rows: Sequence[tuple[Any, ...]] = postgres.execute(
        "SELECT kid, keyset, backend, ref, state, created_at, published_at, activate_at,"
        " deactivated_at, withdraw_at, compromised_at FROM keys"
        " ORDER BY published_at, activate_at NULLS LAST, kid",
        database,
    )
    return [KeyFacts(*row) for row in rows]


def is_ready(port: int) -> bool:
    http = Http(port, timeout=1.0)
    try:
        return http.get("/readyz").status == 200
    except OSError:
        return False
    finally:
        http.close()


def share_login_lock(token: Token, replica: Replica, backend: str) -> None:
    """SoftHSM's files bear one login at a time. Replicas on one machine share their state for
    that; these have their own, as on three machines, and share the lock alone."""
    lock = token.directory / "login.lock"
    lock.touch(0o600)
    state = replica.directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    os.link(lock, state / f"pkcs11-{backend}.lock")


def _config(database_url: str, token: Token, cluster: Cluster, times: Times) -> str:
    heal = json.dumps([str(ROOT / "softhsm" / "provision.sh"), "--heal", str(token.directory)])
    fingerprint = hashlib.sha256(cluster.bearer.encode()).hexdigest()
    return f"""
[server]
base_url = "{cluster.issuer}"
[database]
url = "{database_url}"
[state]
directory = "state"
[audit]
directory = "audit"
[jwks]
max_age = {times.max_age}
[snapshot]
refresh_interval = {times.refresh}
[rotation]
development = true
tick_interval = {times.tick}
grace = {times.grace}
skew = {times.skew}
[backends.token]
type = "pkcs11"
module_path = "{token.module}"
token_label = "{token.label}"
pin_file = "{token.pin_file}"
environment = {{ SOFTHSM2_CONF = "{token.conf}" }}
prepare_command = {heal}
[clients.{CLIENT}]
token_sha256 = ["{fingerprint}"]
grants = [{{ actions = ["sign", "read"], keysets = ["{KEYSET}"] }}]
"""
