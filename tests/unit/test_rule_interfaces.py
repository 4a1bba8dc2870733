"""Token rules as they are written through the CLI and the API, and kept in the database."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.cli.main import main
from kmsjwks.config import load
from kmsjwks.http.app import create_app
from tests.support.wiring import LastingBackend, install_backend_type, write_config

BEARER = {"Authorization": "Bearer secret"}
CLIENT = f"""
[clients.all]
token_sha256 = ["{hashlib.sha256(b"secret").hexdigest()}"]
grants = [{{ actions = ["sign", "verify", "read", "rotate", "manage"], keysets = ["*"] }}]
"""
PUT = {"algorithm": "ES256", "backend": "fake"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_backend_type(monkeypatch, LastingBackend())
    path = write_config(tmp_path, CLIENT)
    prepare_database(load(path, environ={}))
    return path


@pytest.fixture
def client(config: Path) -> FlaskClient:
    return create_app(build(load(config, environ={}), {})).test_client()


def _put(client: FlaskClient, **members: Any) -> tuple[int, dict[str, Any]]:
    answer = client.put("/v1/keysets/demo", json={**PUT, **members}, headers=BEARER)
    assert answer.json is not None
    return answer.status_code, answer.json


def _sign(client: FlaskClient, **claims: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post("/v1/keysets/demo/sign/jwt", json={"claims": claims}, headers=BEARER)
    assert answer.json is not None
    if answer.status_code != 200:
        return answer.status_code, answer.json
    header, payload = (
        json.loads(base64.urlsafe_b64decode(part + "=="))
        for part in answer.json["token"].split(".")[:2]
    )
    return 200, {**payload, "typ": header["typ"]}


def _cli(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "-o", "json", *words])


def test_the_access_token_profile_over_http(client: FlaskClient) -> None:
    assert _put(client, profile="at+jwt", audiences=["https://api"])[0] == 200
    shown = client.get("/v1/keysets/demo", headers=BEARER).json
    assert shown is not None
    assert (shown["profile"], shown["typ"]) == ("at+jwt", "at+jwt")
    assert {"sub", "client_id", "aud", "jti"} <= set(shown["required_claims"])
    status, problem = _sign(client, sub="alice", aud="https://api")
    assert (status, problem["member"]) == (422, "client_id")
    status, token = _sign(client, sub="alice", aud="https://api", client_id="app")
    assert (status, token["typ"]) == (200, "at+jwt")


def test_fixed_claims_and_policies_over_http(client: FlaskClient) -> None:
    rules = {"fixed_claims": {"tenant": "acme", "n": 1}, "nbf": "stamped", "jti": "stamped"}
    assert _put(client, **rules, allowed_claims=["sub"])[0] == 200
    status, token = _sign(client, sub="alice")
    assert (status, token["tenant"], token["n"]) == (200, "acme", 1)
    assert token["nbf"] == token["iat"]
    for claims, member in (
        ({"tenant": "evil"}, "tenant"),
        ({"n": True}, "n"),
        ({"nbf": token["iat"]}, "nbf"),
        ({"jti": "mine"}, "jti"),
        ({"admin": True}, "admin"),
    ):
        status, problem = _sign(client, **claims)
        assert (status, problem["code"], problem["member"]) == (422, "claim-rejected", member)


def test_a_fixed_claim_that_only_changes_its_type_is_a_change(client: FlaskClient) -> None:
    _put(client, fixed_claims={"n": 1})
    assert _put(client, fixed_claims={"n": True})[0] == 200
    client.get("/v1/keysets/demo", headers=BEARER)
    assert _sign(client)[1]["n"] is True


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"profile": "at+jwt", "typ": "JWT"}, "RFC 9068 section 2.1"),
        ({"profile": "saml"}, "no profile"),
        ({"fixed_claims": {"iss": "x"}}, "iss cannot be fixed"),
        ({"nbf": "sometimes"}, "nbf policy"),
        ({"fixed_claims": []}, "fixed_claims"),
        ({"allowed_claims": [1]}, "allowed_claims"),
    ],
)
def test_contradictions_are_refused_over_http(
    client: FlaskClient, members: dict[str, Any], says: str
) -> None:
    status, problem = _put(client, **members)
    assert status == 400
    assert says in problem["detail"]
    assert client.get("/v1/keysets/demo", headers=BEARER).status_code == 404


def test_the_same_rules_through_the_cli(config: Path) -> None:
    made = _cli(
        config, "keysets", "create", "demo", "--algorithm", "ES256", "--profile", "at+jwt",
        "--fix", "tenant=acme", "--fix", "level=3", "--fix", 'roles=["a"]',
        "--allow", "scope", "--nbf", "forbidden", "--jti", "required",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    shown = json.loads(_cli(config, "keysets", "show", "demo").stdout)
    assert shown["fixed_claims"] == {"tenant": "acme", "level": 3, "roles": ["a"]}
    assert shown["allowed_claims"] == ["scope"]
    assert (shown["nbf"], shown["jti"], shown["profile"]) == ("forbidden", "required", "at+jwt")
    assert shown["typ"] == "at+jwt"


def test_what_the_cli_refuses(config: Path) -> None:
    create = ("keysets", "create", "demo", "--algorithm", "ES256")
    for words, says in (
        (("--fix", "tenant"), "CLAIM=VALUE"),
        (("--fix", "a=1", "--fix", "a=2"), "each claim once"),
        (("--fix", "a=1", "--forbid", "a"), "both fixed and forbidden: a"),
        (("--profile", "at+jwt", "--forbid", "client_id"), "client_id"),
        (("--profile", "other"), "at+jwt"),
    ):
        done = _cli(config, *create, *words)
        assert done.exit_code != 0
        assert says in done.output
