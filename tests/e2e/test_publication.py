"""JWKS and metadata over HTTP: caching, conditional requests, CORS, media types."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Keyset
from tests.support.http import Answer
from tests.support.service import Server

JWKS = "/.well-known/jwks.json"
DOCUMENTS = (
    JWKS,
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/es256k/.well-known/jwks.json",
    "/es256k/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server/es256k",
)


@pytest.fixture(scope="module", autouse=True)
def _keysets(keysets: dict[str, Keyset]) -> None:
    assert "ES256K" in keysets, "SoftHSM offers secp256k1; the documents here need it"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_documents_can_be_cached_and_read_by_browsers(server: Server, path: str) -> None:
    answer = server.http().get(path)
    kind = "application/jwk-set+json" if path.endswith("jwks.json") else "application/json"
    assert (answer.status, answer.header("Content-Type")) == (200, kind)
    caching = [one.strip() for one in answer.header("Cache-Control").split(",")]
    assert {"public", "max-age=300"} <= set(caching)
    assert any(one.startswith("stale-while-revalidate=") for one in caching)
    assert any(one.startswith("stale-if-error=") for one in caching)
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("ETag").startswith('"')  # strong
    assert int(answer.header("Content-Length")) == len(answer.body)
    json.loads(answer.body)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    get, head = server.http().get(path), server.http().request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert head.header(name) == get.header(name)


@pytest.mark.parametrize(
    "form",
    ["{etag}", "W/{etag}", '"other", {etag}', '"a" , W/"b" ,{etag}, "c"', "*"],
    ids=["itself", "weak", "list", "list with spaces", "any"],
)
def test_not_modified(server: Server, form: str) -> None:
    """RFC 9110 section 13.1.2: weak comparison."""
    http = server.http()
    first = http.get(JWKS)
    asked = {"If-None-Match": form.format(etag=first.header("ETag"))}
    for method in ("GET", "HEAD"):
        answer = http.request(method, JWKS, headers=asked)
        assert (answer.status, answer.body) == (304, b"")
        for name in ("ETag", "Cache-Control", "Access-Control-Allow-Origin"):
            assert answer.header(name) == first.header(name)


@pytest.mark.parametrize("form", ['"other"', 'W/"other"', "unquoted", "", '"a", "b"', '"*"'])
def test_modified(server: Server, form: str) -> None:
    assert server.http().get(JWKS, {"If-None-Match": form}).status == 200


def test_every_worker_serves_the_same_bytes(server: Server) -> None:
    seen = {(a.header("ETag"), a.body) for a in (server.http().get(JWKS) for _ in range(30))}
    assert len(seen) == 1


@pytest.mark.parametrize("path", DOCUMENTS)
def test_preflight(server: Server, path: str) -> None:
    answer = server.http().request(
        "OPTIONS",
        path,
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "if-none-match",
        },
    )
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert "GET" in answer.header("Access-Control-Allow-Methods")
    assert answer.header("Access-Control-Allow-Headers").lower() == "if-none-match"


@pytest.mark.parametrize("path", ["/v1/keysets/es256/sign/jwt", "/v1/keysets"])
def test_the_api_is_not_for_browsers(server: Server, path: str) -> None:
    answer = server.http("all").get(path, {"Origin": "https://app.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.header("Cache-Control") == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/nobody/.well-known/jwks.json",
        "/es256k//.well-known/jwks.json",
        "/es256k/../.well-known/jwks.json",
        "/.well-known/jwks.json/",
        "/.well-known/oauth-authorization-server/nobody",
        "/.well-known/oauth-authorization-server/",
        "/es256/.well-known/jwks.json",
        "/%2e/.well-known/jwks.json",
        "/%00/.well-known/jwks.json",
        "/" + "a" * 8000 + "/.well-known/jwks.json",
    ],
)
def test_no_issuer_there(server: Server, path: str) -> None:
    """Not found at once, and never a redirect, which four JWKS clients refuse."""
    answer = server.http().get(path)
    assert (answer.status, answer.header("Content-Type")) == (404, "application/problem+json")


def test_documents_need_no_credential_and_ignore_one(server: Server) -> None:
    bad = {"Authorization": "Bearer nobody"}
    answers: list[Answer] = [server.http().get(JWKS), server.http().get(JWKS, bad)]
    assert [answer.status for answer in answers] == [200, 200]


def test_a_new_keyset_is_published_and_signs_without_a_restart(server: Server) -> None:
    made = server.installation.create_keyset(
        "late", "ES256", "--issuer", f"{server.url}/late", "--max-lifetime", "10m"
    )
    signed = server.sign("late")
    assert signed.status == 200
    assert signed.json()["kid"] == made["keys"][0]["kid"]
