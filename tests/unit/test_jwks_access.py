"""Access to the JWKS: public or authenticated, per issuer, also from what is kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from kmsjwks.bootstrap import Service, build, prepare_database
from kmsjwks.config import load
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.domain.tokens import TokenRules
from kmsjwks.http.app import create_app
from kmsjwks.services.acting import Actor
from kmsjwks.services.exporting import Exporter
from kmsjwks.services.keysets import KeysetSpec
from kmsjwks.storage.lastgood import LastGoodDocuments
from tests.support.wiring import LastingBackend, install_backend_type, write_config

BASE = "http://127.0.0.1:8080"
BEARER = {"Authorization": "Bearer secret"}
CLIENT = f"""
[clients.reader]
token_sha256 = ["{hashlib.sha256(b"secret").hexdigest()}"]
"""
ALL_CLOSED = '[jwks]\naccess = "authenticated"\nmax_age = 120\n'
ONE_CLOSED = f"""
[jwks]
max_age = 120
[[jwks.issuers]]
issuer = "{BASE}/closed"
access = "authenticated"
"""
ONE_OPEN = f"""
[jwks]
access = "authenticated"
[[jwks.issuers]]
issuer = "{BASE}"
access = "public"
"""
OPEN_PATHS = (
    "/.well-known/jwks.json",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/keysets/open/.well-known/jwks.json",
)
CLOSED_PATHS = (
    "/closed/.well-known/jwks.json",
    "/closed/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server/closed",
    "/keysets/shut/.well-known/jwks.json",
)


def _service(directory: Path, patch: pytest.MonkeyPatch, more: str) -> Service:
    install_backend_type(patch, LastingBackend())
    settings = load(write_config(directory, CLIENT + more), environ={})
    prepare_database(settings)
    service = build(settings, {})
    for name, issuer in (("open", BASE), ("shut", f"{BASE}/closed")):
        rules = TokenRules(issuer=issuer)
        spec = KeysetSpec(name, find_algorithm("ES256"), "fake", rules, RotationSchedule())
        service.keysets.create(spec, Actor("test"))
    return service


def _client(directory: Path, patch: pytest.MonkeyPatch, more: str) -> FlaskClient:
    return create_app(_service(directory, patch, more)).test_client()


def _is_closed(client: FlaskClient, path: str, etag: str = "") -> bool:
    """Refused without a credential, and then nothing of the document is told."""
    answer = client.get(path, headers={"If-None-Match": etag or "*"})
    if answer.status_code != 401:
        return False
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kmsjwks"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert "ETag" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert b'"keys"' not in answer.data
    return True


def _is_public(answer: TestResponse) -> bool:
    return (
        answer.status_code == 200
        and answer.headers["Cache-Control"].startswith("public, max-age=")
        and answer.headers["Access-Control-Allow-Origin"] == "*"
    )


def test_public_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _client(tmp_path, monkeypatch, "")
    for path in (*OPEN_PATHS, *CLOSED_PATHS):
        assert _is_public(client.get(path)), path


@pytest.mark.parametrize("more", [ONE_CLOSED, ONE_OPEN])
def test_each_issuer_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    client = _client(tmp_path, monkeypatch, more)
    for path in OPEN_PATHS:
        assert _is_public(client.get(path)), path
    for path in CLOSED_PATHS:
        assert _is_closed(client, path), path
        assert client.get(path, headers=BEARER).status_code == 200


def test_an_authenticated_answer_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(tmp_path, monkeypatch, ALL_CLOSED)
    for path in (*OPEN_PATHS, *CLOSED_PATHS):
        answer = client.get(path, headers={**BEARER, "Origin": "https://elsewhere.example"})
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "private, max-age=120"
        assert "Authorization" in answer.headers["Vary"]
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
        etag = answer.headers["ETag"]
        assert _is_closed(client, path, etag), "a known ETag is no credential"
        again = client.get(path, headers={**BEARER, "If-None-Match": etag})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["Cache-Control"] == "private, max-age=120"


@pytest.mark.parametrize("path", CLOSED_PATHS)
def test_every_method_obeys_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    client = _client(tmp_path, monkeypatch, ONE_CLOSED)
    assert client.head(path).status_code == 401
    preflight = client.options(path, headers={"Origin": "https://elsewhere.example"})
    assert "Access-Control-Allow-Origin" not in preflight.headers
    wrong = client.get(path, headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401
    assert 'error="invalid_token"' in wrong.headers["WWW-Authenticate"]


def test_unknown_issuers_look_like_closed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(tmp_path, monkeypatch, ALL_CLOSED)
    unknown = "/nobody/.well-known/jwks.json"
    assert _is_closed(client, unknown)
    assert client.get(unknown, headers=BEARER).status_code == 404


def test_what_is_kept_on_disk_obeys_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _service(tmp_path, monkeypatch, ONE_CLOSED)
    snapshot = service.snapshots.current()
    kept = LastGoodDocuments(service.settings.state.directory / "documents.json")
    kept.save(snapshot.documents, revision=snapshot.revision, taken_at=snapshot.taken_at)
    Path(tmp_path / "var/kmsjwks.db").unlink()
    client = create_app(build(service.settings, {})).test_client()
    assert client.get("/readyz").status_code == 503, "the database is gone"
    for path in OPEN_PATHS:
        assert _is_public(client.get(path)), path
    for path in CLOSED_PATHS:
        assert _is_closed(client, path), path
        assert client.get(path, headers=BEARER).status_code == 200


def test_what_an_older_version_kept_is_public_only_where_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _service(tmp_path, monkeypatch, ONE_CLOSED)
    snapshot = service.snapshots.current()
    path = service.settings.state.directory / "documents.json"
    kept = LastGoodDocuments(path)
    kept.save(snapshot.documents, revision=snapshot.revision, taken_at=snapshot.taken_at)
    content = json.loads(path.read_text())
    for document in content["documents"].values():
        del document["issuer"]
    path.write_text(json.dumps(content))
    Path(tmp_path / "var/kmsjwks.db").unlink()
    client = create_app(build(service.settings, {})).test_client()
    for one in (*OPEN_PATHS, *CLOSED_PATHS):
        assert _is_closed(client, one), one


class _Target:
    def __init__(self) -> None:
        self.names: list[str] = []

    def publish(self, name: str, document: Document) -> bool:
        self.names.append(name)
        return True


def test_documents_that_are_not_public_are_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _service(tmp_path, monkeypatch, ONE_CLOSED)
    documents: Mapping[str, Document] = service.snapshots.documents()
    target = _Target()
    Exporter([target], service.settings.jwks.is_public).export(documents)
    assert sorted(target.names) == sorted(path.removeprefix("/") for path in OPEN_PATHS)


def test_contradictions_and_doubts_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(
            write_config(tmp_path, ONE_CLOSED + "[rotation]\ncheck_public_jwks = true\n"),
            environ={},
        )
    assert "rotation.check_public_jwks" in str(caught.value)
    more = ONE_CLOSED + '[publication]\ntargets = ["public/"]\n'
    settings = load(write_config(tmp_path, more), environ={})
    told = " ".join(settings.warnings)
    assert "are not published there" in told
    assert "there are no clients" in told
    twice = ONE_CLOSED + f'[[jwks.issuers]]\nissuer = "{BASE}/closed"\naccess = "public"\n'
    with pytest.raises(ConfigurationError, match="same issuer"):
        load(write_config(tmp_path, twice), environ={})


def test_security_headers_are_on_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(tmp_path, monkeypatch, ONE_CLOSED)
    answers = [
        *(client.get(path) for path in (*OPEN_PATHS, *CLOSED_PATHS)),
        *(client.get(path) for path in ("/healthz", "/readyz", "/nothing", "//x", "/v1/keysets")),
        client.get("/v1/keysets", headers=BEARER),
        client.post("/v1/keysets/open/sign/jwt", data=b"{", headers=BEARER),
        client.delete("/healthz"),
        client.options(OPEN_PATHS[0]),
    ]
    for answer in answers:
        about = answer.request.path
        assert answer.headers["X-Content-Type-Options"] == "nosniff", about
        assert answer.headers["Referrer-Policy"] == "no-referrer", about
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"], about
        assert "Cache-Control" in answer.headers, about
        if about.startswith("/v1"):
            assert answer.headers["Cache-Control"] == "no-store"
