"""`kmsjwks clients`: who there is, and why somebody may do something."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.cli.main import main
from kmsjwks.config import load
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import ClaimRejected, Forbidden, KeysetNotFound, NotGranted
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.services.signing import Caller, SignRequest
from tests.support.lifecycle import OPERATOR, spec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

HASH = sha256(b"a").hexdigest()
OTHER = sha256(b"b").hexdigest()
CONFIG = f"""
[backends.x]
type = "pkcs11"
[[oidc]]
issuer = "https://idp"
audiences = ["kmsjwks"]
discovery = true
[mtls]
source = "nginx"
trusted_proxies = ["127.0.0.1"]
[clients.acme]
token_sha256 = ["{HASH}"]
oidc = [{{ issuer = "https://idp", subject = "acme", claims = {{ x = 1 }} }}]
certificates = [{{ dns = "acme.example" }}]
[[clients.acme.tokens]]
sha256 = "{OTHER}"
expires = 2027-01-01T00:00:00Z
[[clients.acme.grants]]
actions = ["read"]
keysets = ["*"]
[[clients.acme.grants]]
actions = ["sign", "verify"]
keysets = ["acme-*"]
subjects = ["acme:*"]
claims = {{ tenant = "acme" }}
max_lifetime = 300
[clients.nobody]
certificates = [{{ spiffe = "spiffe://example.org/x" }}]
"""
CLAIMS = {"sub": "acme:1", "tenant": "acme"}
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = tmp_path / "kmsjwks.toml"
    config.write_text(CONFIG)

    def invoke(*words: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, ["--config", str(config), *words], input=stdin)

    return invoke


def explained(result: Result, code: int) -> dict[str, Any]:
    assert result.exit_code == code, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    assert value["allowed"] is (code == 0)
    return value


def test_list(run: Run) -> None:
    rows = json.loads(run("-o", "json", "clients", "list").stdout)
    assert [(row["client"], row["rule"]) for row in rows] == [
        ("acme", "clients.acme.grants[0]"),
        ("acme", "clients.acme.grants[1]"),
        ("nobody", None),
    ]
    assert rows[0]["authenticates"] == [
        f"token {HASH[:8]}",
        f"token {OTHER[:8]} until 2027-01-01T00:00:00Z",
        "oidc https://idp sub acme and x",
        "certificate dns acme.example",
    ]
    assert rows[1]["actions"] == ["sign", "verify"]
    assert rows[1]["keysets"] == ["acme-*"]
    assert rows[1]["tokens_must_have"] == [
        'sub "acme:*"',
        'tenant "acme"',
        "a lifetime of at most 300 s",
    ]
    assert rows[2]["actions"] == []


def test_list_as_a_table(run: Run) -> None:
    done = run("clients", "list")
    assert done.exit_code == 0
    assert "clients.acme.grants[1]" in done.stdout
    assert HASH not in done.output


@pytest.mark.parametrize(
    ("name", "action", "keyset", "rule"),
    [
        ("acme", "read", "anything", "clients.acme.grants[0]"),
        ("acme", "sign", "acme-eu", "clients.acme.grants[1]"),
        ("acme", "verify", "acme-eu", "clients.acme.grants[1]"),
        ("acme", "sign", "other", None),
        ("acme", "rotate", "acme-eu", None),
        ("acme", "destroy", "acme-eu", None),
        ("nobody", "read", "acme-eu", None),
    ],
)
def test_can(run: Run, name: str, action: str, keyset: str, rule: str | None) -> None:
    done = run("-o", "json", "clients", "can", name, action, keyset)
    assert explained(done, 0 if rule else 4)["rule"] == rule


@pytest.mark.parametrize(
    ("claims", "ttl", "member"),
    [
        (CLAIMS, "5m", None),
        (CLAIMS, "301", "ttl"),
        ({**CLAIMS, "tenant": "other"}, "60", "tenant"),
        ({"tenant": "acme"}, "60", "sub"),
    ],
)
def test_can_with_claims(
    run: Run, tmp_path: Path, claims: dict[str, Any], ttl: str, member: str | None
) -> None:
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    words = ("-o", "json", "clients", "can", "acme", "sign", "acme-eu", "--claims")
    from_file = run(*words, str(tmp_path / "claims.json"), "--ttl", ttl)
    told = explained(from_file, 4 if member else 0)
    assert (told["member"], told["rule"]) == (member, "clients.acme.grants[1]")
    assert run(*words, "-", "--ttl", ttl, stdin=json.dumps(claims)).stdout == from_file.stdout


def test_can_with_exp_or_no_lifetime(run: Run) -> None:
    words = ("-o", "json", "clients", "can", "acme", "sign", "acme-eu", "--claims", "-")
    too_late = {**CLAIMS, "exp": int(time.time()) + 3600}
    assert explained(run(*words, stdin=json.dumps(too_late)), 4)["member"] == "ttl"
    assert "lifetime was not judged" in explained(run(*words, stdin=json.dumps(CLAIMS)), 0)["why"]


RULES = TokenRules(
    issuer="https://issuer.example",
    audiences=("api",),
    max_lifetime=3600,
    default_lifetime=300,
    forbidden=("admin",),
    fixed={"tenant": "acme"},
)
NARROWED = f"""
[clients.short]
token_sha256 = ["{HASH}"]
grants = [{{ actions = ["sign"], keysets = ["*"], max_lifetime = 60 }}]
[clients.tenant]
token_sha256 = ["{OTHER}"]
grants = [{{ actions = ["sign"], keysets = ["*"], claims = {{ tenant = "acme" }} }}]
[clients.none]
certificates = [{{ dns = "none.example" }}]
grants = [{{ actions = ["read"], keysets = ["*"] }}]
"""


@pytest.mark.parametrize("client", ["short", "tenant", "none"])
@pytest.mark.parametrize("keyset", ["demo", "absent"])
@pytest.mark.parametrize(
    ("claims", "ttl"),
    [
        ({"aud": "api"}, None),
        ({"aud": "api"}, 60),
        ({"aud": "api"}, 3601),
        ({"aud": "other"}, 60),
        ({"aud": "api", "admin": True}, 60),
        ({"aud": "api", "tenant": "acme"}, 30),
        ({"aud": "api", "tenant": "other"}, 30),
    ],
)
def test_can_says_what_the_service_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    keyset: str,
    claims: dict[str, Any],
    ttl: int | None,
) -> None:
    """With the claims that the keyset adds and refuses, and the lifetime that it chooses."""
    install_backend_type(monkeypatch, LastingBackend())
    config = write_config(tmp_path, NARROWED)
    settings = load(config, environ={})
    prepare_database(settings)
    service = build(settings, {})
    service.keysets.create(replace(spec(), rules=RULES), OPERATOR)
    grants = next(one.grants for one in settings.clients if one.name == client)
    said: str | None = None
    try:
        service.signing.sign_jwt(
            Caller(Principal(client, grants), "r"), keyset, SignRequest(claims, ttl)
        )
    except KeysetNotFound:
        said = None  # which is not a matter of what the client may do
    except (Forbidden, NotGranted, ClaimRejected) as error:
        said = getattr(error, "member", "")
    service.close()
    lifetime = ("--ttl", str(ttl)) if ttl else ()
    words = ["--config", str(config), "-o", "json", "clients", "can", client, "sign", keyset]
    done = CliRunner().invoke(main, [*words, "--claims", "-", *lifetime], input=json.dumps(claims))
    if keyset == "demo":
        assert (explained(done, 0 if said is None else 4)["member"] or "") == (said or "")
        assert "only the grants" not in done.stderr
    else:
        assert "only the grants" in done.stderr or client == "none"


def test_can_names_the_keyset_whose_rules_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_backend_type(monkeypatch, LastingBackend())
    config = write_config(tmp_path, NARROWED)
    settings = load(config, environ={})
    prepare_database(settings)
    service = build(settings, {})
    service.keysets.create(replace(spec(), rules=RULES), OPERATOR)
    service.close()
    words = ["--config", str(config), "-o", "json", "clients", "can", "tenant", "sign", "demo"]
    told = CliRunner().invoke(main, [*words, "--claims", "-"], input='{"aud": "x"}')
    assert explained(told, 4)["rule"] == "token rules of the keyset demo"


def test_can_as_text(run: Run) -> None:
    done = run("clients", "can", "acme", "rotate", "acme-eu")
    assert done.exit_code == 4
    assert "acme has no grant to rotate with a keyset of this name." in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stranger", "sign", "x"), "There is no client 'stranger'"),
        (("acme", "fly", "x"), "'fly' is not one of"),
        (("acme", "read", "x", "--ttl", "5"), "are for the action sign"),
    ],
)
def test_can_is_asked_wrongly(run: Run, words: tuple[str, ...], said: str) -> None:
    done = run("clients", "can", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_claims_that_are_none(run: Run) -> None:
    done = run("clients", "can", "acme", "sign", "x", "--claims", "-", stdin="[]")
    assert done.exit_code == 2
    assert "must be a JSON object" in done.stderr


def test_config_check_reads_the_client_authorities(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "kmsjwks.toml"
    config.write_text(CONFIG.replace("[mtls]", '[mtls]\nclient_ca = "missing.pem"'))
    done = run("config", "check")
    assert done.exit_code == 5
    assert "mtls.client_ca: " in done.stderr
    assert "backends.x" in done.stderr  # every part has its say
