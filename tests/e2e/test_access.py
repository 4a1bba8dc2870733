"""401 and 403 over HTTP: the challenges of RFC 6750, and nothing told about keysets."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from tests.e2e.conftest import Keyset
from tests.support.http import JSON, Answer, Http
from tests.support.service import Server

BODY = b'{"claims": {"sub": "a"}}'


@pytest.fixture(scope="module", autouse=True)
def _team_keyset(server: Server) -> None:
    server.installation.create_keyset("team-a", "ES256")


def problem(answer: Answer, status: int) -> dict[str, Any]:
    assert (answer.status, answer.header("Content-Type")) == (status, "application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body.pop("request_id") == answer.header("X-Request-Id")
    return body


PATHS = [
    ("POST", "/v1/keysets/es256/sign/jwt"),
    ("POST", "/v1/keysets/nothing/sign/jwt"),
    ("POST", "/v1/keysets/es256/verify"),
    ("GET", "/v1/keysets"),
    ("GET", "/v1/keysets/es256"),
    ("GET", "/v1/keysets/nothing"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "sent", [None, "", "Basic YTpi", "Digest x", "Bearer", "nonsense"], ids=repr
)
def test_no_credential(server: Server, method: str, path: str, sent: str | None) -> None:
    headers = dict(JSON) if sent is None else {**JSON, "Authorization": sent}
    answer = server.http().request(method, path, BODY, headers)
    problem(answer, 401)
    challenge = answer.header("WWW-Authenticate")
    assert challenge.startswith('Bearer realm="kmsjwks"')
    if sent != "Bearer":  # that may count as an empty token
        assert "error" not in challenge


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_unknown_token(server: Server, method: str, path: str) -> None:
    known = server.installation.tokens["all"]
    bodies = []
    for token in ("nobody", "x" * 4000, known[:-1], f"{known}x", known.upper(), f"{known},{known}"):
        answer = server.http().request(
            method, path, BODY, {**JSON, "Authorization": f"Bearer {token}"}
        )
        bodies.append(problem(answer, 401))
        assert answer.header("WWW-Authenticate") == 'Bearer realm="kmsjwks", error="invalid_token"'
        assert token not in answer.body.decode()
    assert all(body == bodies[0] for body in bodies)


def test_unauthenticated_callers_learn_nothing_of_their_body(server: Server) -> None:
    for body in (b"", b"{", b"[]", b'{"claims": 1}'):
        problem(server.http().request("POST", PATHS[0][1], body, JSON), 401)
        problem(server.http("team").request("POST", PATHS[0][1], body, JSON), 403)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_no_case(server: Server, scheme: str) -> None:
    """RFC 9110 section 11.1."""
    token = server.installation.tokens["all"]
    asked = {"Authorization": f"{scheme} {token}"}
    assert server.http().get("/v1/keysets", asked).status == 200


ACTIONS = ["sign/jwt", "verify"]


@pytest.mark.parametrize("action", ACTIONS)
def test_no_grant_looks_the_same_whether_the_keyset_exists(server: Server, action: str) -> None:
    names = ("es256", "ed25519", "nothing", "team", "TEAM-A", "a" * 200)
    refused = []
    for name in names:
        answer = server.http("team").request("POST", f"/v1/keysets/{name}/{action}", BODY, JSON)
        refused.append(json.dumps(problem(answer, 403)))
        assert answer.header("WWW-Authenticate") == (
            'Bearer realm="kmsjwks", error="insufficient_scope"'
        )
    assert len(set(refused)) == 1, refused


def test_no_grant_to_read(server: Server) -> None:
    existing, missing = (server.http("team").get(f"/v1/keysets/{n}") for n in ("es256", "nothing"))
    assert problem(existing, 403) == problem(missing, 403)
    assert server.http("team").get("/v1/keysets").json() == {"keysets": []}


def test_no_grant_takes_the_same_time_whether_the_keyset_exists(server: Server) -> None:
    times: dict[str, list[float]] = {"es256": [], "absent": []}
    for _ in range(150):
        for name, seen in times.items():
            # A new connection each: one whose body was not read may be closed.
            answer = server.http("team").request("POST", f"/v1/keysets/{name}/sign/jwt", BODY, JSON)
            assert answer.status == 403
            seen.append(answer.seconds)
    # The lower quartile: what other programs on the machine take is not ours.
    existing, missing = (statistics.quantiles(seen, n=4)[0] for seen in times.values())
    assert abs(existing - missing) < 0.25 * max(existing, missing)


def test_grants_are_by_pattern(server: Server) -> None:
    http = server.http("team")
    assert http.request("POST", "/v1/keysets/team-a/sign/jwt", BODY, JSON).status == 200
    problem(http.request("POST", "/v1/keysets/team-b/sign/jwt", BODY, JSON), 404)
    problem(http.request("POST", "/v1/keysets/team-a/verify", b'{"token": "x"}', JSON), 403)


def test_readers_see_keysets_with_their_public_keys(
    server: Server, keysets: dict[str, Keyset]
) -> None:
    http: Http = server.http("all")
    listed = {one["name"]: one for one in http.get("/v1/keysets").json()["keysets"]}
    assert {keyset.name for keyset in keysets.values()} <= listed.keys()
    for algorithm, keyset in keysets.items():
        shown = http.get(f"/v1/keysets/{keyset.name}").json()
        keys = shown.pop("keys")
        assert shown == listed[keyset.name]
        assert (shown["algorithm"], shown["issuer"]) == (algorithm, keyset.issuer)
        assert keys[0]["kid"] == keyset.kid == shown["active_kid"]
        assert [key["state"] for key in keys] == ["active", "pre-activation"]
        assert "d" not in keys[0]["jwk"]
