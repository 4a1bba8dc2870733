"""A real `kmsjwks serve` on the strict fake of AWS KMS, with a SoftHSM backend beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import jwt
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from joserfc.util import urlsafe_b64decode

from kmsjwks.bootstrap import Service, build
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.keys import KeyState
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.audit import verified_events
from tests.support.awskms import HOME, REPLICA
from tests.support.kms import FakeKms
from tests.support.load import Seen
from tests.support.service import Installation, Server, free_port
from tests.support.softhsm import Token

CONNECT_TIMEOUT, READ_TIMEOUT = 0.5, 1.8  # seconds
CALL_BOUND = 2 * (CONNECT_TIMEOUT + READ_TIMEOUT) + 1.0  # docs/aws-kms.md: two tries and a pause
MAX_CONCURRENCY = 10  # of a worker
WORKERS = 2
LIMIT = 20  # requests_per_second of the backend "small"
NO_LIMIT = 100_000  # requests_per_second of the others: the load may exceed the default

# Of each keyset the algorithm and the backend.
KEYSETS: Mapping[str, tuple[str, str]] = {
    "es": ("ES256", "kms"),
    "rs": ("RS256", "kms"),
    "ed": ("Ed25519", "kms"),
    "pq": ("ML-DSA-65", "kms"),
    "other": ("ES256", "kms"),
    "small": ("ES256", "small"),
    "wide": ("ES256", "wide"),
    "soft": ("ES256", "token"),
}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret"}


@dataclass(frozen=True)
class KmsService:
    """``server`` runs with the keysets of ``KEYSETS``; ``refs`` has the ARNs of their active keys;
    ``called_at_start`` is how often Sign was asked for until the server was ready."""

    kms: FakeKms
    installation: Installation
    server: Server
    metrics_port: int
    refs: Mapping[str, str]
    called_at_start: int

    def client(self, region: str = HOME) -> Any:
        """An administrator's, of the fake."""
        return boto3.client("kms", region_name=region, endpoint_url=self.kms.endpoint)

    def jwks(self, keyset: str) -> dict[str, Mapping[str, str]]:
        """The published keys of a keyset by kid, over HTTP."""
        path = "/pq" if keyset == "pq" else ""
        answer = self.server.http().get(f"{path}/.well-known/jwks.json")
        assert answer.status == 200
        return {key["kid"]: key for key in answer.json()["keys"]}

    def verify(self, keyset: str, tokens: Sequence[str]) -> set[str]:
        """The ``jti`` of each, every signature checked with the published key."""
        published = self.jwks(keyset)
        claims = [_verified(token, published) for token in tokens]
        return {claim["jti"] for claim in claims}

    def recorded(self) -> list[str]:
        """The ``jti`` of each audit record."""
        return [event["jti"] for event in verified_events(self.installation.audit_directory)]

    def url(self, keyset: str) -> str:
        return f"/v1/keysets/{keyset}/sign/jwt"


def install(kms: FakeKms, token: Token, directory: Path) -> tuple[Installation, int]:
    """The configuration and its keysets, no server yet; and the port of the metrics."""
    installation = Installation(directory, token.options(), max_concurrency=MAX_CONCURRENCY)
    metrics_port = free_port()
    installation.config.write_text(
        installation.config.read_text() + _tables(kms.endpoint, metrics_port)
    )
    # SoftHSM needs a process of its own; for the others one command each would take long.
    installation.create_keyset("soft", "ES256", "--backend", "token")
    with closing(_build(installation)) as service:
        for name in KEYSETS.keys() - {"soft"}:
            service.keysets.create(_spec(installation, name), Actor("tests"))
    return installation, metrics_port


def active_refs(installation: Installation) -> dict[str, str]:
    """References of the keys that sign, by keyset."""
    with closing(_build(installation)) as service:
        keys = list(service.store.keys())
    return {key.keyset: key.ref for key in keys if key.state is KeyState.ACTIVE}


def _build(installation: Installation) -> Service:
    return build(load(installation.config, environ={}), CREDENTIALS)


def _spec(installation: Installation, name: str) -> KeysetSpec:
    algorithm, backend = KEYSETS[name]
    issuer = installation.base_url + ("/pq" if name == "pq" else "")
    return KeysetSpec(
        name, find_algorithm(algorithm), backend, TokenRules(issuer), RotationSchedule()
    )


def percentile(seen: Sequence[Seen], share: float) -> float:
    """Seconds that this share of the requests took at most."""
    seconds = sorted(one.seconds for one in seen)
    return seconds[min(len(seconds) - 1, int(share * len(seconds)))]


def _verified(token: str, published: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    header = jwt.get_unverified_header(token)
    key = published[header["kid"]]
    assert key["alg"] == header["alg"]
    if header["alg"] == "ML-DSA-65":  # which PyJWT does not know: FIPS 204 with an empty context
        signed, _, signature = token.rpartition(".")
        public = MLDSA65PublicKey.from_public_bytes(urlsafe_b64decode(key["pub"].encode()))
        public.verify(urlsafe_b64decode(signature.encode()), signed.encode())
        claims: dict[str, Any] = json.loads(urlsafe_b64decode(signed.partition(".")[2].encode()))
        return claims
    return jwt.decode(token, jwt.PyJWK(dict(key)), algorithms=[header["alg"]])


def _tables(endpoint: str, metrics_port: int) -> str:
    common = f"""
endpoint = "{endpoint}"
region = "{HOME}"
connect_timeout = {CONNECT_TIMEOUT}
open_seconds = 1
"""
    return f"""
[metrics]
port = {metrics_port}
[backend_watch]
interval = 0.5
[backends.kms]
type = "awskms"
installation = "one"
read_timeout = {READ_TIMEOUT}
requests_per_second = {NO_LIMIT}
{common}
[backends.small]
type = "awskms"
installation = "small"
read_timeout = {READ_TIMEOUT}
requests_per_second = {LIMIT}
{common}
[backends.wide]
type = "awskms"
installation = "wide"
read_timeout = 1.5
requests_per_second = {NO_LIMIT}
multi_region = true
replica_regions = ["{REPLICA}"]
{common}
"""
