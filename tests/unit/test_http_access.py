"""Actions over HTTP: each act takes its own grant, and a refusal tells nothing of others."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from kmsjwks.bootstrap import build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.access import Action
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.services.acting import Actor
from kmsjwks.services.keysets import KeysetSpec
from tests.support.wiring import LastingBackend, install_backend_type, write_config

CLIENTS = "".join(
    f'[clients.{name}]\ntoken_sha256 = ["{sha256(name.encode()).hexdigest()}"]\n'
    f'grants = [{{ actions = ["{name}"], keysets = ["a*"] }}]\n'
    for name in (action.value for action in Action)
)
NARROWED = f"""
[clients.acme]
token_sha256 = ["{sha256(b"acme").hexdigest()}"]
[[clients.acme.grants]]
actions = ["sign"]
keysets = ["a*"]
subjects = ["acme:*"]
claims = {{ tenant = "acme" }}
max_lifetime = 60
"""

# What each act takes. On the keyset "kid", which there is, and of its active key.
ACTS: dict[tuple[str, str], Action] = {
    ("POST", "/v1/keysets/{name}/sign/jwt"): Action.SIGN,
    ("POST", "/v1/keysets/{name}/verify"): Action.VERIFY,
    ("GET", "/v1/keysets/{name}"): Action.READ,
    ("GET", "/v1/keysets/{name}/keys/{kid}/evidence"): Action.READ,
    ("PUT", "/v1/keysets/{name}"): Action.MANAGE,
    ("POST", "/v1/keysets/{name}/rotate"): Action.ROTATE,
    ("POST", "/v1/keysets/{name}/keys/{kid}/deactivate"): Action.ROTATE,
    ("POST", "/v1/keysets/{name}/keys/{kid}/hold"): Action.MANAGE,
    ("POST", "/v1/keysets/{name}/keys/{kid}/release"): Action.MANAGE,
    ("POST", "/v1/keysets/{name}/keys/{kid}/compromise"): Action.DESTROY,
    ("POST", "/v1/keysets/{name}/keys/{kid}/destroy"): Action.DESTROY,
    ("POST", "/v1/keysets/{name}/keys/{kid}/cancel-destroy"): Action.DESTROY,
    ("POST", "/v1/keysets/{name}/keys/{kid}/undo-compromise"): Action.DESTROY,
    ("POST", "/v1/keysets/{name}/keys/{kid}/approve"): Action.DESTROY,
    ("GET", "/v1/keysets/{name}/proposals"): Action.READ,
}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    install_backend_type(monkeypatch, LastingBackend())
    settings = load(write_config(tmp_path, CLIENTS + NARROWED), environ={})
    prepare_database(settings)
    service = build(settings, {})
    for name in ("a1", "b1"):
        rules = TokenRules(issuer="http://127.0.0.1:8080")
        spec = KeysetSpec(name, find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))
    return create_app(service).test_client()


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def active_kid(client: FlaskClient) -> str:
    body = client.get("/v1/keysets/a1", headers=bearer("read")).json
    assert body is not None
    return str(body["active_kid"])


def test_principals_actions_keysets(client: FlaskClient) -> None:
    """Whoever holds one action is refused all acts of the others, on every keyset."""
    kid = active_kid(client)
    for (method, path), needed in ACTS.items():
        for holder in Action:
            for name in ("a1", "a-none", "b1", "b-none"):
                answer = client.open(
                    path.format(name=name, kid=kid),
                    method=method,
                    json={"dry_run": True} if method == "POST" else {},
                    headers=bearer(holder.value),
                )
                allowed = holder is needed and name.startswith("a")
                told = (path, holder, name, answer.status_code, answer.text)
                assert (answer.status_code not in (401, 403)) is allowed, told


def test_a_refusal_is_the_same_whether_the_keyset_exists(client: FlaskClient) -> None:
    kid = active_kid(client)
    for (method, path), needed in ACTS.items():
        for who in ("nobody", "audit"):
            answers = set()
            for name in ("a1", "a-none", "b1", "b-none"):
                answer = client.open(
                    path.format(name=name, kid=kid), method=method, json={}, headers=bearer(who)
                )
                body = dict(answer.json or {})
                body.pop("request_id")
                challenge = answer.headers["WWW-Authenticate"]
                answers.add((answer.status_code, challenge, tuple(sorted(body.items()))))
            assert len(answers) == 1, (path, needed)
            ((status, challenge, _),) = answers
            expected = (401, "invalid_token") if who == "nobody" else (403, "insufficient_scope")
            assert (status, challenge) == (
                expected[0],
                f'Bearer realm="kmsjwks", error="{expected[1]}"',
            )


@pytest.mark.parametrize(
    ("claims", "ttl", "member"),
    [
        ({"sub": "acme:1", "tenant": "acme"}, 60, None),
        ({"sub": "acme:1", "tenant": "acme"}, 61, "ttl"),
        ({"sub": "acme:1", "tenant": "acme"}, None, "ttl"),
        ({"sub": "acme:1", "tenant": "other"}, 60, "tenant"),
        ({"sub": "acme:1"}, 60, "tenant"),
        ({"sub": "root", "tenant": "acme"}, 60, "sub"),
        ({"tenant": "acme"}, 60, "sub"),
    ],
)
def test_narrowing(
    client: FlaskClient, claims: dict[str, str], ttl: int | None, member: str | None
) -> None:
    body = {"claims": claims, **({"ttl": ttl} if ttl else {})}
    answer = client.post("/v1/keysets/a1/sign/jwt", json=body, headers=bearer("acme"))
    told = answer.json or {}
    if member is None:
        assert answer.status_code == 200
        return
    assert (answer.status_code, told["code"], told["member"]) == (403, "not-granted", member)
    assert "clients.acme.grants[0]" in told["detail"]
    assert "eyJ" not in answer.text


def test_what_narrowing_refuses_leaves_no_signature(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign(*_: object) -> bytes:
        raise AssertionError("the backend was asked")

    monkeypatch.setattr(LastingBackend, "sign", sign)
    body = {"claims": {"sub": "root", "tenant": "acme"}, "ttl": 60}
    answer = client.post("/v1/keysets/a1/sign/jwt", json=body, headers=bearer("acme"))
    assert answer.status_code == 403
