"""Two replicas, three backends and three keysets: what the failover proof plays with."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof.failover_plan import (
    CLOUD,
    DEMO,
    HOMES,
    PLAIN,
    PRIMARY,
    REPLICAS,
    STANDBY,
    TOKEN,
    WORKERS,
    Break,
    FailoverPlan,
)
from proof.failover_record import Unmet
from proof.plan import CLIENT
from proof.replicas import KeyFacts, Replica, is_ready, key_facts, share_login_lock
from tests.support.moto import CorrectedMoto
from tests.support.p11kit import P11KitServer
from tests.support.postgres import PostgresServer
from tests.support.service import Server
from tests.support.softhsm import ROOT, Token

# moto takes any; without them boto3 looks for a machine's role.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret"}


@dataclass(frozen=True, slots=True)
class Event:
    """A lifecycle event; ``at`` in seconds since the epoch."""

    at: int
    actor: str
    keyset: str
    kid: str | None
    event: str
    detail: str


class Primary:
    """SoftHSM behind `p11-kit server`. What a SIGKILL in the midst of a login leaves of the token
    is mended before the next start, as its provisioning does."""

    def __init__(self, token: Token, directory: Path) -> None:
        self._token, self._server = token, P11KitServer(token, directory)

    @property
    def options(self) -> dict[str, Any]:
        return self._server.options()

    @property
    def token(self) -> Token:
        return self._token

    def start(self) -> None:
        subprocess.run(heal_command(self._token), check=True, capture_output=True)  # noqa: S603
        self._server.start()

    def kill(self) -> None:
        self._server.kill()


@dataclass(frozen=True, slots=True)
class Custody:
    """The processes that hold the keys."""

    primary: Primary
    standby: CorrectedMoto
    plain: Token


def heal_command(token: Token) -> list[str]:
    return [str(ROOT / "softhsm" / "provision.sh"), "--heal", str(token.directory)]


class FailoverCluster:
    """Replicas by name, and what an operator does to them."""

    def __init__(
        self,
        directory: Path,
        postgres: PostgresServer,
        custody: Custody,
        issuer: str,
        plan: FailoverPlan,
    ) -> None:
        self.bearer, self.issuer, self.plan = secrets.token_urlsafe(24), issuer, plan
        self._postgres, self._database = postgres, postgres.create_database()
        config = _config(postgres.url(self._database), custody, self)
        self.servers: dict[str, Server] = {}
        for name, workers in zip(REPLICAS, WORKERS, strict=True):
            replica = Replica(directory / name, self.bearer, config)
            share_login_lock(custody.primary.token, replica, PRIMARY)
            share_login_lock(custody.plain, replica, TOKEN)
            self.servers[name] = Server(replica, workers=workers)

    @property
    def ports(self) -> dict[str, int]:
        return {name: server.port for name, server in self.servers.items()}

    def start(self) -> None:
        first = self.servers[REPLICAS[0]]
        first.launch()  # migrates the database
        first.wait_ready()
        for keyset in (CLOUD, PLAIN):
            self._create(keyset)
        plan = self.plan
        after = "never" if plan.broken is Break.NO_FAILOVER else f"{plan.failover_after}s"
        self._create(
            DEMO, "--standby", STANDBY, "--failover-after", after,
            "--failback-after", f"{plan.failback_after}s",
        )  # fmt: skip
        for name in REPLICAS[1:]:
            self.servers[name].launch()
        for server in self.servers.values():
            server.wait_ready(60)

    def _create(self, keyset: str, *words: str) -> None:
        times = self.plan.times
        self.operate(
            "keysets", "create", keyset, "--algorithm", "ES256", "--issuer", self.issuer,
            "--backend", HOMES[keyset],
            "--max-lifetime", f"{times.lifetime}s", "--default-lifetime", f"{times.lifetime}s",
            "--propagation", f"{times.propagation}s", "--leeway", f"{times.leeway}s", *words,
        )  # fmt: skip

    def operate(self, *words: str) -> str:
        """The CLI, as on the first replica's machine; what it says on standard output and error.

        Raises:
            Unmet: it fails.
        """
        done = self.servers[REPLICAS[0]].installation.cli(*words)
        if done.returncode != 0:
            raise Unmet(f"kmsjwks {' '.join(words)}: exit {done.returncode}: {done.stderr}")
        said = done.stderr.splitlines()
        kept = [line for line in said if not line.startswith("warning: rotation.development")]
        return done.stdout + "\n".join(kept)

    def ready(self) -> list[str]:
        return [name for name, server in self.servers.items() if is_ready(server.port)]

    def key_facts(self) -> list[KeyFacts]:
        return key_facts(self._postgres, self._database)

    def events(self) -> list[Event]:
        rows: Any = self._postgres.execute(
            "SELECT time, actor, keyset, kid, event, detail FROM lifecycle_events ORDER BY id",
            self._database,
        )
        return [Event(*row) for row in rows]

    def audit_directories(self) -> list[Path]:
        return [server.installation.audit_directory for server in self.servers.values()]

    def close(self) -> None:
        for server in self.servers.values():
            server.kill_all()


def provide_credentials() -> None:
    """To the replicas and to the CLI, which inherit our environment."""
    os.environ.update(CREDENTIALS)


def _config(database_url: str, custody: Custody, cluster: FailoverCluster) -> str:
    plan, times = cluster.plan, cluster.plan.times
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
[backend_watch]
interval = {plan.watch_interval}
[backends.{PRIMARY}]
type = "pkcs11"
{_pkcs11(custody.primary.options, custody.primary.token)}
[backends.{TOKEN}]
type = "pkcs11"
{_pkcs11(custody.plain.options(), custody.plain)}
[backends.{STANDBY}]
type = "awskms"
region = "us-east-1"
endpoint = "{custody.standby.endpoint}"
installation = "proof"
[clients.{CLIENT}]
token_sha256 = ["{fingerprint}"]
grants = [{{ actions = ["sign", "read"], keysets = ["*"] }}]
"""


def _pkcs11(options: Mapping[str, Any], token: Token) -> str:
    table = {**options, "prepare_command": heal_command(token)}
    return "\n".join(f"{name} = {_value(value)}" for name, value in table.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(one)}" for name, one in value.items()) + " }"
    return json.dumps(value)
