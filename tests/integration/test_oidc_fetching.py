"""Keys of a trusted issuer over real connections: what is fetched, and what is not followed."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kmsjwks.config import OidcSettings
from kmsjwks.config.identities import DEFAULT_ALGORITHMS
from kmsjwks.http.authentication.fetching import FetchFailed, JwksFetcher
from tests.support.idp import Idp, JsonServer

DISCOVERY = "/.well-known/openid-configuration"


@pytest.fixture
def server() -> Iterator[JsonServer]:
    with JsonServer() as running:
        running.publish(Idp(running.url))
        yield running


def fetcher(server: JsonServer, timeout: float = 3.0, **more: Any) -> JwksFetcher:
    given: dict[str, Any] = {
        "issuer": server.url,
        "enabled": True,
        "audiences": ("x",),
        "jwks_uri": None,
        "algorithms": DEFAULT_ALGORITHMS,
        "leeway": 60,
        "ca_file": None,
        "token_file": None,
        "allow_loopback_http": True,
        **more,
    }
    return JwksFetcher(OidcSettings(**given), timeout)


def test_discovery(server: JsonServer) -> None:
    assert {key["kid"] for key in fetcher(server)()} == {"ec", "rsa"}
    assert server.asked == [DISCOVERY, "/keys"]


def test_jwks_uri(server: JsonServer) -> None:
    assert len(fetcher(server, jwks_uri=f"{server.url}/keys")()) == 2
    assert server.asked == ["/keys"]


def test_token_file(server: JsonServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    fetcher(server, token_file=tmp_path / "token")()
    assert [headers["Authorization"] for headers in server.sent_headers] == ["Bearer abc"] * 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("path", [DISCOVERY, "/keys"])
def test_redirects_are_not_followed(server: JsonServer, status: int, path: str) -> None:
    server.answer(path, b"", status, Location=f"{server.url}/other")
    server.answer("/other", {"keys": [{"kty": "EC"}]})
    with pytest.raises(FetchFailed, match=f"the answer is {status}"):
        fetcher(server)()
    assert "/other" not in server.asked


@pytest.mark.parametrize(
    "uri", ["http://idp.example/keys", "http://10.0.0.1/keys", "file:///etc/passwd", "ftp://x/y"]
)
def test_metadata_cannot_lead_elsewhere(server: JsonServer, uri: str) -> None:
    server.answer(DISCOVERY, {"issuer": server.url, "jwks_uri": uri})
    with pytest.raises(FetchFailed, match="not https"):
        fetcher(server)()


def test_http_takes_the_development_flag(server: JsonServer) -> None:
    with pytest.raises(FetchFailed, match="not https"):
        fetcher(server, allow_loopback_http=False)()
    assert not server.asked


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (DISCOVERY, {"issuer": "https://other", "jwks_uri": "https://other/k"}, "another issuer"),
        (DISCOVERY, {"jwks_uri": "https://other/k"}, "another issuer"),
        (DISCOVERY, [], "no JSON object"),
        (DISCOVERY, b"<html>", "not JSON"),
        ("/keys", {"keys": []}, "no JWK Set"),
        ("/keys", {"keys": {}}, "no JWK Set"),
        ("/keys", b'{"keys": ["' + b"x" * 300_000 + b'"]}', "more than 256 KiB"),
    ],
    ids=range(7),
)
def test_documents_that_are_none(server: JsonServer, path: str, body: Any, reason: str) -> None:
    server.answer(path, body)
    with pytest.raises(FetchFailed, match=reason):
        fetcher(server)()


def test_metadata_without_jwks_uri(server: JsonServer) -> None:
    server.answer(DISCOVERY, {"issuer": server.url})
    with pytest.raises(FetchFailed, match="names no jwks_uri"):
        fetcher(server)()


def test_nobody_there(server: JsonServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        with pytest.raises(FetchFailed, match="cannot be fetched"):
            fetcher(server, jwks_uri=uri)()


def test_an_issuer_that_sends_a_byte_now_and_then(server: JsonServer) -> None:
    """Each byte is in time, the document never is."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def dribble() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=dribble, daemon=True)
        thread.start()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with pytest.raises(FetchFailed, match="too slowly"):
            fetcher(server, 0.3, jwks_uri=uri)()
        stop.set()
        thread.join(5)


def _self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "idp.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_https(server: JsonServer, tmp_path: Path) -> None:
    path, context = _self_signed(tmp_path)
    server.wrap(context)
    url = server.url.replace("http:", "https:")
    server.answer(DISCOVERY, {"issuer": url, "jwks_uri": f"{url}/keys"})
    given: dict[str, Any] = {"issuer": url, "allow_loopback_http": False}
    assert len(fetcher(server, ca_file=path, **given)()) == 2
    with pytest.raises(FetchFailed, match="cannot be fetched"):
        fetcher(server, **given)()  # the system does not know this authority
