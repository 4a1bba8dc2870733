"""The gate before an activation, against real HTTP servers that behave and misbehave."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kmsjwks.domain.documents import Document
from kmsjwks.domain.keys import Keyset
from kmsjwks.publishing.visibility import PublicJwks
from tests.support.documents import key_in, keyset_of, rendered

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A web server on loopback that does what ``answer`` does, and keeps the requests."""

    def __init__(self) -> None:
        self.answer: Answer = reply(404, b"")
        self.requests: list[BaseHTTPRequestHandler] = []
        self.release = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self)
                site.answer(self)

            def log_message(self, *_: Any) -> None:
                """Nothing to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def reply(status: int, body: bytes, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


@pytest.fixture
def keyset(site: Site) -> Keyset:
    return keyset_of("one", issuer=f"{site.url}/team")


@pytest.fixture
def kid(keyset: Keyset) -> str:
    return key_in(keyset).kid


def jwks_of(keyset: Keyset) -> Document:
    return rendered(keyset)["/team/.well-known/jwks.json"]


def changed(keyset: Keyset, **members: Any) -> bytes:
    content = json.loads(jwks_of(keyset).body)
    content["keys"][0].update(members)
    return json.dumps(content).encode()


def reason(keyset: Keyset, kid: str) -> str:
    sighting = PublicJwks(timeout=1.0).look(keyset, kid)
    assert not sighting.visible
    return sighting.reason


def test_a_key_that_is_there_is_seen(site: Site, keyset: Keyset, kid: str) -> None:
    site.answer = reply(200, jwks_of(keyset).body)
    assert PublicJwks()(keyset, kid)
    [request] = site.requests
    assert request.path == "/team/.well-known/jwks.json"


def test_caches_are_not_told_to_revalidate(site: Site, keyset: Keyset, kid: str) -> None:
    site.answer = reply(200, jwks_of(keyset).body)
    PublicJwks()(keyset, kid)
    headers = {name.lower() for name in site.requests[0].headers}
    assert headers.isdisjoint({"cache-control", "pragma", "if-none-match", "if-modified-since"})


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "binary/octet-stream"])
def test_any_media_type_will_do(site: Site, keyset: Keyset, kid: str, media_type: str) -> None:
    site.answer = reply(200, jwks_of(keyset).body, Content_Type=media_type)
    assert PublicJwks()(keyset, kid)


def test_an_older_document_does_not_show_the_key(
    site: Site, keyset: Keyset, caplog: pytest.LogCaptureFixture
) -> None:
    site.answer = reply(200, jwks_of(keyset).body)
    spare = key_in(keyset, serial=1).kid
    assert not PublicJwks()(keyset, spare)
    [record] = caplog.records
    assert spare in record.getMessage()
    assert "A cache before the service" in record.getMessage()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(site: Site, keyset: Keyset, kid: str, status: int) -> None:
    site.answer = reply(status, jwks_of(keyset).body, Location=f"{site.url}/elsewhere")
    assert "redirect" in reason(keyset, kid)
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [204, 404, 500])
def test_only_200_counts(site: Site, keyset: Keyset, kid: str, status: int) -> None:
    site.answer = reply(status, jwks_of(keyset).body if status != 204 else b"")
    assert f"answers {status}" in reason(keyset, kid)


def test_another_key_under_the_kid_is_not_ours(site: Site, keyset: Keyset, kid: str) -> None:
    other = json.loads(jwks_of(keyset).body)["keys"][0]
    site.answer = reply(200, changed(keyset, x=other["y"]))
    assert "another key" in reason(keyset, kid)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"alg": "ES384"}, "alg"),
        ({"use": "enc"}, "signatures"),
        ({"d": "AQAB"}, "private"),
        ({"x": 5}, "another key"),
        ({"kty": "EC2"}, "another key"),
    ],
)
def test_a_key_that_was_changed_is_refused(
    site: Site, keyset: Keyset, kid: str, members: dict[str, Any], says: str
) -> None:
    site.answer = reply(200, changed(keyset, **members))
    assert says in reason(keyset, kid)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"keys": 1}', b'{"keys": [1]}', b"\xff"])
def test_what_is_no_jwks_shows_nothing(site: Site, keyset: Keyset, kid: str, body: bytes) -> None:
    site.answer = reply(200, body)
    assert "no JWKS" in reason(keyset, kid)


def test_a_kid_twice_is_refused(site: Site, keyset: Keyset, kid: str) -> None:
    key = json.loads(jwks_of(keyset).body)["keys"][0]
    site.answer = reply(200, json.dumps({"keys": [key, key]}).encode())
    assert "same kid" in reason(keyset, kid)


def test_a_huge_body_is_not_read_to_its_end(site: Site, keyset: Keyset, kid: str) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while not site.release.is_set():
            handler.wfile.write(b" " * 65536)
            sent += 65536

    site.answer = endless
    assert "256 KiB" in reason(keyset, kid)
    time.sleep(0.2)
    assert sent < 32 * 1024 * 1024


def test_a_compressed_body_is_not_unpacked(site: Site, keyset: Keyset, kid: str) -> None:
    packed = gzip.compress(jwks_of(keyset).body)
    site.answer = reply(200, packed, Content_Encoding="gzip")
    assert "compressed" in reason(keyset, kid)


def _hang(site: Site) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        site.release.wait(10)

    return answer


def _trickle(site: Site, *, headers: bool) -> Answer:
    """A byte now and then: no single read ever times out."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if headers else b"\r\n"))
        while not site.release.wait(0.05):
            handler.wfile.write(b"a")

    return answer


@pytest.mark.parametrize("kind", ["silent", "slow headers", "slow body"])
def test_a_server_that_hangs_costs_no_more_than_the_timeout(
    site: Site, keyset: Keyset, kid: str, kind: str
) -> None:
    site.answer = (
        _hang(site) if kind == "silent" else _trickle(site, headers=kind == "slow headers")
    )
    began = time.monotonic()
    reason(keyset, kid)
    assert time.monotonic() - began < 2


def test_attempts_that_hang_do_not_pile_up(site: Site, keyset: Keyset, kid: str) -> None:
    site.answer = _trickle(site, headers=True)
    gate = PublicJwks(timeout=0.3)
    reasons = [gate.look(keyset, kid).reason for _ in range(5)]
    assert len(site.requests) == 1
    assert "has not come back" in reasons[-1]
    site.release.set()
    site.answer = reply(200, jwks_of(keyset).body)
    deadline = time.monotonic() + 5
    while not gate(keyset, kid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nobody_listening_is_a_reason_not_an_error(kid: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        keyset = keyset_of("one", issuer=f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "cannot be fetched" in reason(keyset, kid)


def test_a_certificate_that_is_not_trusted_is_refused(site: Site, kid: str) -> None:
    keyset = keyset_of("one", issuer=site.url.replace("http://", "https://"))
    assert "cannot be fetched" in reason(keyset, kid)
