"""Client certificates before the real service: raw requests, and nginx as the documents have it.

Of one keyset that does not exist, the client "reader" learns so (404), the client "other" learns
nothing (403), and whoever is not recognised is asked who it is (401).
"""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmsjwks.config import load
from tests.support.certificates import Authority, Issued
from tests.support.http import Answer, read_response
from tests.support.proxy import Nginx, documented
from tests.support.service import Installation, Server
from tests.support.softhsm import provision

DOCUMENT = Path(__file__).parents[2] / "docs" / "access.md"
READER, OTHER, NOBODY = 404, 403, 401
HEAD = "GET /v1/keysets/none HTTP/1.1\r\n"
PROXY = "127.0.0.9"
CLIENTS = """
[clients.reader]
certificates = [{ spiffe = "spiffe://example.org/reader" }]
grants = [{ actions = ["read"], keysets = ["*"] }]
[clients.other]
certificates = [{ dns = "other.example" }]
"""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def reader(authority: Authority) -> Issued:
    return authority.issue(uris=["spiffe://example.org/reader"])


@pytest.fixture(scope="module")
def other(authority: Authority) -> Issued:
    return authority.issue(hosts=["other.example"])


Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Serve]:
    """Start a service with these tables."""
    token = provision(tmp_path_factory.mktemp("token"))
    running = []

    def start(mtls: str, **server: str) -> Server:
        directory = tmp_path_factory.mktemp("mtls")
        (directory / "client-ca.pem").write_bytes(authority.pem)
        installation = Installation(directory, token.options(), **server)
        with installation.config.open("a") as file:
            file.write(f"{mtls}\n{CLIENTS}")
        running.append(Server(installation, workers=1))
        running[-1].launch()
        return running[-1]

    yield start
    for one in running:
        one.kill_all()


def connect(server: Server, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10, (source, 0))


def connect_unix(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def ask(connection: socket.socket, *headers: str) -> Answer:
    lines = "".join(f"{header}\r\n" for header in ("Host: x", "Connection: close", *headers))
    with connection:
        connection.sendall(f"{HEAD}{lines}\r\n".encode())
        return read_response(connection)


def wait_until_it_answers(server: Server, connect: Callable[[], socket.socket]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            ask(connect())
        except OSError:
            assert server.process.poll() is None, server.logged()
            assert time.monotonic() < deadline, server.logged()
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="module")
def loopback(serve: Serve) -> Server:
    server = serve(
        f'[mtls]\nsource = "rfc9440"\nproxy_drops_underscores = true\n'
        f'trusted_proxies = ["{PROXY}"]\nclient_ca = "client-ca.pem"\n'
    )
    wait_until_it_answers(server, lambda: connect(server))
    return server


@pytest.fixture(scope="module")
def behind_socket(serve: Serve) -> Server:
    server = serve(
        '[mtls]\nsource = "nginx"\ntrusted_proxies = ["unix"]\nclient_ca = "client-ca.pem"\n',
        unix_socket="http.sock",
    )
    path = server.installation.directory / "http.sock"
    wait_until_it_answers(server, lambda: connect_unix(path))
    return server


@pytest.fixture(scope="module", params=["off", "on"])
def nginx(
    behind_socket: Server,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Nginx]:
    """Also one that passes on names with underscores: the header has no dash, so it may."""
    directory = tmp_path_factory.mktemp("nginx")
    identity = authority.issue("kmsjwks.example.com", server=True).write(directory, "server")
    installed = behind_socket.installation.directory
    nginx = Nginx(
        directory,
        documented(DOCUMENT, "nginx"),
        {
            "/etc/nginx/kmsjwks.pem": str(identity),
            "/etc/kmsjwks/client-ca.pem": str(installed / "client-ca.pem"),
            "/run/kmsjwks/http.sock": str(installed / "http.sock"),
            "    location": f"    underscores_in_headers {request.param};\n    location",
        },
    )
    nginx.start()
    yield nginx
    nginx.stop()


class TestLoopback:
    """The header of RFC 9440, believed of 127.0.0.9 only."""

    def header(self, issued: Issued, name: str = "Client-Cert") -> str:
        return f"{name}: :{base64.b64encode(issued.der).decode()}:"

    def test_the_proxy_is_believed(self, loopback: Server, reader: Issued, other: Issued) -> None:
        assert ask(connect(loopback, PROXY), self.header(reader)).status == READER
        assert ask(connect(loopback, PROXY), self.header(other)).status == OTHER
        assert ask(connect(loopback, PROXY)).status == NOBODY

    @pytest.mark.parametrize(
        "name", ["Client-Cert", "Client_Cert", "client-cert", "CLIENT_CERT", "X-Client-Cert"]
    )
    def test_nobody_else_is(self, loopback: Server, reader: Issued, name: str) -> None:
        answer = ask(connect(loopback), self.header(reader, name))
        assert answer.status == NOBODY
        assert answer.header("WWW-Authenticate") == 'Bearer realm="kmsjwks"'

    @pytest.mark.parametrize(
        "claim",
        ["X-Forwarded-For: 127.0.0.9", "Forwarded: for=127.0.0.9", "X-Real-IP: 127.0.0.9",
         "Remote-Addr: 127.0.0.9", "REMOTE_ADDR: 127.0.0.9"],
    )  # fmt: skip
    def test_no_header_makes_somebody_the_proxy(
        self, loopback: Server, reader: Issued, claim: str
    ) -> None:
        assert ask(connect(loopback), claim, self.header(reader)).status == NOBODY

    def test_another_authority(self, loopback: Server) -> None:
        forged = Authority().issue(uris=["spiffe://example.org/reader"])
        assert ask(connect(loopback, PROXY), self.header(forged)).status == NOBODY

    def test_a_header_sent_twice(self, loopback: Server, reader: Issued, other: Issued) -> None:
        """A proxy that appends where it should replace lets nobody choose."""
        twice = (self.header(reader), self.header(other))
        assert ask(connect(loopback, PROXY), *twice).status == NOBODY

    def test_a_bearer_token_beside_it(self, loopback: Server, reader: Issued) -> None:
        token = loopback.installation.tokens["team"]
        asked = f"Authorization: Bearer {token}", self.header(reader)
        assert ask(connect(loopback, PROXY), *asked).status == OTHER


class TestNginx:
    """Over a unix socket, in front of it nginx with the configuration of docs/access.md."""

    def test_who_presents_a_certificate_is_recognised(
        self, nginx: Nginx, reader: Issued, other: Issued, tmp_path: Path
    ) -> None:
        assert nginx.ask(HEAD, reader.write(tmp_path, "reader")).status == READER
        assert nginx.ask(HEAD, other.write(tmp_path, "other")).status == OTHER
        assert nginx.ask(HEAD).status == NOBODY

    @pytest.mark.parametrize(
        "name",
        ["ClientCert", "clientcert", "Client-Cert", "Client_Cert", "CLIENTCERT", "_ClientCert"],
    )
    def test_a_forged_header_is_nothing(
        self, nginx: Nginx, reader: Issued, other: Issued, tmp_path: Path, name: str
    ) -> None:
        forged = f"{HEAD}{name}: {reader.escaped}\r\n"
        assert nginx.ask(forged).status == NOBODY
        assert nginx.ask(forged, other.write(tmp_path, "other")).status == OTHER

    def test_another_authority(self, nginx: Nginx, tmp_path: Path) -> None:
        forged = Authority().issue(uris=["spiffe://example.org/reader"])
        assert nginx.ask(HEAD, forged.write(tmp_path, "forged")).status == 400

    def test_the_jwks_stays_public(self, nginx: Nginx) -> None:
        assert nginx.ask("GET /healthz HTTP/1.1\r\n").status == 200

    def test_the_socket_is_the_groups(self, behind_socket: Server) -> None:
        path = behind_socket.installation.directory / "http.sock"
        assert path.stat().st_mode & 0o777 == 0o660

    def test_a_second_service_is_refused(self, behind_socket: Server) -> None:
        done = behind_socket.installation.cli("serve")
        assert done.returncode == 1
        assert "Another service listens on" in done.stderr

    def test_what_a_killed_service_left_is_no_obstacle(self, serve: Serve) -> None:
        server = serve("", unix_socket="http.sock")
        path = server.installation.directory / "http.sock"
        wait_until_it_answers(server, lambda: connect_unix(path))
        server.kill_all()
        assert path.exists()
        server.launch()
        wait_until_it_answers(server, lambda: connect_unix(path))


@pytest.mark.parametrize(
    "block", re.findall(r"^```toml\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
)
def test_the_documented_configurations_are_valid(tmp_path: Path, block: str) -> None:
    path = tmp_path / "kmsjwks.toml"
    path.write_text(f'{block}\n[backends.x]\ntype = "pkcs11"\n')
    load(path, environ={})
