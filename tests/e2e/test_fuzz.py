"""schemathesis over the API's description: no 5xx, nothing undescribed, and no verifier loses."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
import requests
import schemathesis
from hypothesis import settings

from tests.support.http import Http
from tests.support.openapi import strict_description
from tests.support.service import Installation, Server
from tests.support.softhsm import provision

SOAK_FACTOR = int(os.environ.get("SOAK_FACTOR", "1"))
KEYSETS = ("alpha", "beta")
KIDS = ("key-0", "key-1", "key-2", "key-3")  # stand for keys that there are when the case is sent
ACTIONS = ("sign", "verify", "read", "rotate", "manage", "destroy", "audit")
# Of a request for a keyset: what makes one often enough. RSA keys would take seconds.
LIKELY: dict[str, tuple[object, ...]] = {
    "algorithm": ("ES256", "ES256", "EdDSA", "none"),
    "backend": ("token", "elsewhere"),
    "max_lifetime": (3600, 0),
    "default_lifetime": (60, 300),
    "propagation": (86400, -1),
    "leeway": (300,),
    "rotation_period": (2592000, 1),
    "destroy_after": (0, 86400),
    "destroy_window": (0, 604800),
    "standby": (None,),
}
CONFIG: dict[str, Any] = {
    "generation": {"deterministic": SOAK_FACTOR == 1},
    # Which claims, names and backends a keyset takes is not for a schema to say.
    "checks": {"positive_data_acceptance": {"enabled": False}},
    # A CORS preflight is answered whatever is there: no answer tells which issuers exist.
    "operations": [
        {"include-method": "OPTIONS", "checks": {"negative_data_rejection": {"enabled": False}}},
        # An item that is wrong is answered for itself, within a 200.
        {
            "include-path": "/v1/keysets/{name}/sign/jwt/batch",
            "checks": {"negative_data_rejection": {"enabled": False}},
        },
    ],
}


def api() -> Any:
    """What is described; half of all names are those of keysets and keys that there are."""
    description = strict_description()
    known = {"name": KEYSETS, "kid": KIDS, "issuer": ("keysets/alpha",)}
    for methods in description["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    names = {"enum": list(known[parameter["name"]])}
                    parameter["schema"] = {"anyOf": [names, parameter["schema"]]}
    members = description["components"]["schemas"]["KeysetRequest"]["properties"]
    for name, values in LIKELY.items():
        members[name] = {"enum": list(values)}
    return schemathesis.openapi.from_dict(description, config=schemathesis.Config.from_dict(CONFIG))


API = api()


@dataclass
class Fuzzed:
    """A service with a client that may do everything; ``tokens`` are all that it was given,
    ``compromised`` the kids that it declared so."""

    server: Server
    credential: str
    session: requests.Session = field(default_factory=requests.Session)
    tokens: list[str] = field(default_factory=list)
    compromised: set[str] = field(default_factory=set)

    def http(self) -> Http:
        return Http(self.server.port, self.credential)

    def send(self, case: Any, credential: str) -> Any:
        kid = (case.path_parameters or {}).get("kid")
        if kid in KIDS:
            case.path_parameters["kid"] = self.kid(case.path_parameters["name"], KIDS.index(kid))
        return case.call_and_validate(
            base_url=self.server.url, session=self.session,
            headers={"Authorization": f"Bearer {credential}"},
        )  # fmt: skip

    def sign(self, keyset: str) -> None:
        answer = self.http().post(f"/v1/keysets/{keyset}/sign/jwt", {"claims": {"sub": "alice"}})
        assert answer.status == 200, answer.body
        self.tokens.append(answer.json()["token"])

    def kid(self, keyset: object, index: int) -> str:
        keys = self.keys(keyset if keyset in KEYSETS else KEYSETS[0])
        return str(keys[index % len(keys)]["kid"])

    def keys(self, keyset: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http().get(f"/v1/keysets/{keyset}").json()["keys"]
        return found


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    directory = tmp_path_factory.mktemp("fuzz")
    installation = Installation(directory / "service", provision(directory / "token").options())
    credential = secrets.token_urlsafe(24)
    digest = hashlib.sha256(credential.encode()).hexdigest()
    with installation.config.open("a") as config:
        config.write(f'\n[clients.fuzz]\ntoken_sha256 = ["{digest}"]\n')
        config.write(f'grants = [{{ actions = {list(ACTIONS)}, keysets = ["*"] }}]\n')
        digest = hashlib.sha256(b"nobody").hexdigest()
        config.write(f'[clients.nobody]\ntoken_sha256 = ["{digest}"]\ngrants = []\n')
    for name in KEYSETS:
        installation.create_keyset(name, "ES256")
    server = Server(installation, workers=1)  # others learn of a compromise a moment later
    server.start()
    fuzzed = Fuzzed(server, credential)
    for name in 60 * KEYSETS:
        fuzzed.sign(name)
    yield fuzzed
    server.kill_all()


@API.parametrize()  # type: ignore[untyped-decorator]  # schemathesis does not say
@settings(max_examples=25 * SOAK_FACTOR, deadline=None, database=None)
def test_who_may_do_everything(case: Any, fuzzed: Fuzzed) -> None:
    if case.method in ("POST", "PUT") and (case.path_parameters or {}).get("name") in KEYSETS:
        fuzzed.sign(case.path_parameters["name"])
    response = fuzzed.send(case, fuzzed.credential)
    if (case.method, response.status_code) == ("POST", 200) and case.path.endswith("/sign/jwt"):
        fuzzed.tokens.append(response.json()["token"])
    if (case.method, response.status_code) == ("POST", 200) and case.path.endswith("/batch"):
        results = response.json()["results"]
        fuzzed.tokens += [one["token"] for one in results if "token" in one]
    if (case.method, response.status_code) == ("POST", 200) and case.path.endswith("/compromise"):
        fuzzed.compromised |= really_compromised(response.json())


@API.parametrize()  # type: ignore[untyped-decorator]  # schemathesis does not say
@settings(max_examples=3 * SOAK_FACTOR, deadline=None, database=None)
def test_who_may_do_nothing(case: Any, fuzzed: Fuzzed) -> None:
    response = fuzzed.send(case, "nobody")
    if "/v1/" in case.path and case.method != "OPTIONS":
        assert response.status_code >= 400 or response.json() == {"keysets": []}


def test_no_verifier_lost(fuzzed: Fuzzed) -> None:
    """What was signed meanwhile verifies still, unless its key was declared compromised."""
    http = fuzzed.http()
    assert len(fuzzed.tokens) > 100
    assert {kid_of(token) for token in fuzzed.tokens} - fuzzed.compromised
    for token in fuzzed.tokens:
        claims, kid = jwt.decode(token, options={"verify_signature": False}), kid_of(token)
        assert claims["iss"].startswith(fuzzed.server.installation.base_url)
        path = claims["iss"].removeprefix(fuzzed.server.installation.base_url)
        jwks = jwt.PyJWKSet.from_dict(http.get(f"{path}/.well-known/jwks.json").json())
        if kid not in fuzzed.compromised:
            jwt.decode(token, jwks[kid], options={"verify_exp": False, "verify_aud": False})


def really_compromised(act: Any) -> set[str]:
    ended = ("compromised", "destroyed")
    return {
        change["kid"] for change in act["changes"]
        if change["state"] in ended and not act["dry_run"]
    }  # fmt: skip


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])
