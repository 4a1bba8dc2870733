"""Tokens verified by node's jose through createRemoteJWKSet. Run by `make interop`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Installation, Server
from tests.support.softhsm import provision

HERE = Path(__file__).parent
# jose 6 knows neither ES256K nor Ed448.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
              "EdDSA")  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("interop")
    installation = Installation(directory / "service", provision(directory / "token").options())
    for algorithm in ALGORITHMS:
        installation.create_keyset(algorithm.lower(), algorithm)
    running = Server(installation)
    running.start()
    yield running
    running.kill_all()


def verify(server: Server, token: str) -> dict[str, Any]:
    done = subprocess.run(
        ["node", "verify.mjs", f"{server.url}/.well-known/jwks.json", server.installation.base_url],
        input=token, capture_output=True, text=True, check=False, cwd=HERE, timeout=30,
    )  # fmt: skip
    assert done.stdout, f"run `make interop`, which installs jose: {done.stderr}"
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_verifies_from_the_jwks_url(server: Server, algorithm: str) -> None:
    signed = server.sign(algorithm.lower(), {"aud": "billing"}).json()
    verdict = verify(server, signed["token"])
    assert verdict["ok"], verdict
    assert (verdict["kid"], verdict["alg"]) == (signed["kid"], algorithm)
    assert (verdict["payload"]["jti"], verdict["payload"]["sub"]) == (signed["jti"], "alice")


def test_refuses_a_changed_token(server: Server) -> None:
    header, payload, signature = server.sign("es256").json()["token"].split(".")
    other = server.sign("es256", {"sub": "root"}).json()["token"].split(".")[1]
    assert verify(server, f"{header}.{payload}.{signature}")["ok"]
    verdict = verify(server, f"{header}.{other}.{signature}")
    assert verdict["code"] == "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"
