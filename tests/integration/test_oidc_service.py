"""The real service as relying party: of itself as the issuer, and of an identity provider that is
flooded, forged and taken down.

Of one keyset that does not exist, the client "workload" learns so (404); 401 is for nobody.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.http import Answer
from tests.support.idp import Idp, JsonServer, b64, compact, make_key
from tests.support.service import Installation, Server
from tests.support.softhsm import provision

PATH = "/v1/keysets/none"
KNOWN, NOBODY = 404, 401
WORKERS = 2
CLIENTS = """
[[oidc]]
issuer = "{own}"
discovery = true
audiences = ["kmsjwks"]
allow_loopback_http = true
[[oidc]]
issuer = "{idp}"
discovery = true
audiences = ["kmsjwks"]
allow_loopback_http = true
[clients.workload]
oidc = [{{ issuer = "{own}", subject = "workload" }}, {{ issuer = "{idp}", subject = "workload" }}]
grants = [{{ actions = ["read"], keysets = ["*"] }}]
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[JsonServer]:
    with JsonServer() as running:
        yield running


@pytest.fixture(scope="module")
def idp(provider: JsonServer) -> Idp:
    idp = Idp(provider.url)
    provider.publish(idp)
    return idp


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, provider: JsonServer, idp: Idp
) -> Iterator[Server]:
    token = provision(tmp_path_factory.mktemp("token"))
    installation = Installation(tmp_path_factory.mktemp("oidc"), token.options())
    with installation.config.open("a") as file:
        file.write(CLIENTS.format(own=installation.base_url, idp=idp.issuer))
    installation.create_keyset("demo", "RS256")
    running = Server(installation, workers=WORKERS)
    running.start()
    yield running
    running.kill_all()


def ask(server: Server, token: str) -> Answer:
    return server.http().get(PATH, {"Authorization": f"Bearer {token}"})


def claims(idp: Idp, **more: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {"sub": "workload", "aud": "kmsjwks", "iat": now, "exp": now + 300, **more}
    return idp.claims(**given)


def signed(idp: Idp, kid: str = "ec", **more: Any) -> str:
    return compact({"alg": "ES256", "kid": kid}, claims(idp, **more), idp.keys["ec"])


class TestOurselvesAsIssuer:
    def own(self, server: Server, **more: Any) -> str:
        answer = server.sign("demo", {"sub": "workload", "aud": "kmsjwks", **more})
        assert answer.status == 200
        return str(answer.json()["token"])

    def test_our_token_is_accepted(self, server: Server) -> None:
        assert ask(server, self.own(server)).status == KNOWN

    @pytest.mark.parametrize("more", [{"sub": "other"}, {"aud": "other"}, {"aud": ["x", "y"]}])
    def test_others_are_not(self, server: Server, more: dict[str, Any]) -> None:
        answer = ask(server, self.own(server, **more))
        assert answer.status == NOBODY
        assert answer.header("WWW-Authenticate") == 'Bearer realm="kmsjwks", error="invalid_token"'

    def test_forged(self, server: Server) -> None:
        head, payload, signature = self.own(server).split(".")
        kid = json.loads(_decoded(head))["kid"]
        none = b64(json.dumps({"alg": "none", "kid": kid}).encode())
        for token in (
            f"{none}.{payload}.",
            f"{none}.{payload}.{signature}",
            f"{head}.{payload}.",
            f"{head}.{payload}.{signature[:-8]}AAAAAAAA",
        ):
            assert ask(server, token).status == NOBODY


def _decoded(part: str) -> bytes:

    return base64.urlsafe_b64decode(part + "==")


def test_the_answer_to_each_forgery_is_the_same(server: Server, idp: Idp) -> None:
    own = make_key("P-256", "ec")
    past = int(time.time()) - 3600
    forged = [
        signed(idp, exp=past),
        signed(idp, nbf=past + 7200),
        signed(idp, aud="other"),
        signed(idp, sub="other"),
        signed(idp, iss="https://other.example"),
        compact({"alg": "ES256", "kid": "ec"}, claims(idp), own),
        compact({"alg": "ES256", "kid": "ec", "jku": idp.issuer}, claims(idp), own),
        "kmsjwks_nobody",
    ]
    assert ask(server, signed(idp)).status == KNOWN
    bodies = set()
    for token in forged:
        answer = ask(server, token)
        assert answer.status == NOBODY
        body = answer.json()
        del body["request_id"]
        bodies.add(json.dumps(body, sort_keys=True) + answer.header("WWW-Authenticate"))
    assert len(bodies) == 1
    logged = server.logged()
    assert "of no client" in logged
    assert not any(token in logged for token in forged)


def test_a_flood_of_unknown_kids(server: Server, provider: JsonServer, idp: Idp) -> None:
    """Each worker asks at most once in 30 seconds, however many tokens come."""

    def flood(part: int) -> set[int]:
        return {ask(server, signed(idp, f"kid-{part}-{n}")).status for n in range(50)}

    before = provider.asked.count("/keys")
    with ThreadPoolExecutor(8) as pool:
        assert set.union(*pool.map(flood, range(8))) <= {NOBODY, 503}
    assert provider.asked.count("/keys") - before <= WORKERS
    assert ask(server, signed(idp)).status == KNOWN


def test_keys_stay_while_the_issuer_is_down(server: Server, provider: JsonServer, idp: Idp) -> None:
    for _ in range(20):  # both workers know them
        assert ask(server, signed(idp)).status == KNOWN
    provider.answers.clear()
    for _ in range(20):
        assert ask(server, signed(idp)).status == KNOWN
        assert ask(server, signed(idp, "unknown")).status == NOBODY
