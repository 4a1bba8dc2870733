"""Client certificates in headers: from whom, in which form, of whom."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from kmsjwks.config import MtlsSettings
from kmsjwks.config.settings import CertificateSource
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import ConfigurationError, Unauthenticated
from kmsjwks.domain.principals import CertificateIdentity, CertificateName
from kmsjwks.http.authentication.mtls import ClientCertificates
from tests.support.certificates import Authority, Issued

SPIFFE = "spiffe://example.org/ns/prod/sa/api"
API = Principal("api")
IDENTITIES = [
    (CertificateIdentity(CertificateName.SPIFFE, SPIFFE), API),
    (CertificateIdentity(CertificateName.DNS, "api.example"), API),
    (CertificateIdentity(CertificateName.SUBJECT, "CN=by-subject,O=Example"), API),
    (CertificateIdentity(CertificateName.SPIFFE, "spiffe://example.org/other"), Principal("o")),
]


class SystemClock:
    def now(self) -> float:
        return time.time()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(uris=[SPIFFE])


def certificates(**more: Any) -> ClientCertificates:
    given: dict[str, Any] = {
        "source": "nginx",
        "header": "ClientCert",
        "trusted_proxies": ("127.0.0.1/32", "10.1.0.0/16"),
        "client_ca": None,
        **more,
    }
    return ClientCertificates(MtlsSettings(**given), IDENTITIES, SystemClock())


def request(headers: Mapping[str, str], peer: str = "127.0.0.1") -> dict[str, Any]:
    environ = EnvironBuilder(headers=Headers(dict(headers))).get_environ()
    return {**environ, "REMOTE_ADDR": peer}


def test_no_header(issued: Issued) -> None:
    assert certificates().authenticate(request({})) is None
    assert certificates().authenticate(request({"ClientCert": ""})) is None
    assert certificates().authenticate(request({"Client-Cert": issued.escaped})) is None


FORMS: list[tuple[CertificateSource, Callable[[Issued], str]]] = [
    ("nginx", lambda one: one.escaped),
    ("rfc9440", lambda one: f":{base64.b64encode(one.der).decode()}:"),
    ("envoy", lambda one: f'Hash=ab;Cert="{one.escaped}"'),
    (
        "envoy",
        lambda one: f'By=spiffe://x;Subject="CN=a,O=\\"x;y\\"";URI=u;Cert="{one.escaped}";DNS=d',
    ),
]


@pytest.mark.parametrize(("source", "written"), FORMS)
def test_forms(issued: Issued, source: CertificateSource, written: Callable[..., str]) -> None:
    asked = request({"ClientCert": written(issued)})
    assert certificates(source=source).authenticate(asked) == API


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("nginx", lambda one: one.escaped + "," + one.escaped),
        ("nginx", lambda one: one.escaped + one.escaped),
        ("nginx", lambda one: "(null)"),
        ("nginx", lambda one: "-"),
        ("nginx", lambda one: one.escaped[:-200]),
        ("nginx", lambda one: "x" * 40_000),
        ("rfc9440", lambda one: one.escaped),
        ("rfc9440", lambda one: base64.b64encode(one.der).decode()),
        ("rfc9440", lambda one: f":{base64.b64encode(one.der).decode()}:, ::"),
        ("rfc9440", lambda one: f":{base64.b64encode(one.der).decode()}:;a=1"),
        ("rfc9440", lambda one: "::"),
        ("rfc9440", lambda one: f":{base64.b64encode(one.der + b'x').decode()}:"),
        ("envoy", lambda one: f"Hash=ab;URI={SPIFFE}"),
        ("envoy", lambda one: f'Cert="{one.escaped}",Cert="{one.escaped}"'),
        ("envoy", lambda one: f'Hash=a,Cert="{one.escaped}"'),
        ("envoy", lambda one: f'Cert="{one.escaped}";Cert="{one.escaped}"'),
        ("envoy", lambda one: f'Cert="{one.escaped}'),
        ("envoy", lambda one: one.escaped),
    ],
)
def test_what_is_not_one_certificate_is_refused(
    issued: Issued, source: CertificateSource, written: Callable[[Issued], str]
) -> None:
    with pytest.raises(Unauthenticated):
        certificates(source=source).authenticate(request({"ClientCert": written(issued)}))


@pytest.mark.parametrize(
    ("peer", "is_trusted"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.2.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_from_whom(issued: Issued, peer: str, is_trusted: bool) -> None:
    """The header of somebody else is dropped, as if it were not there."""
    found = certificates().authenticate(request({"ClientCert": issued.escaped}, peer))
    assert found == (API if is_trusted else None)


def test_the_unix_socket(issued: Issued) -> None:
    over_unix = certificates(trusted_proxies=("unix",))
    headers = {"ClientCert": issued.escaped}
    assert over_unix.authenticate(request(headers, "")) == API
    assert over_unix.authenticate(request(headers, "127.0.0.1")) is None


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ({"uris": [SPIFFE]}, True),
        ({"hosts": ["api.example"]}, True),
        ({"hosts": ["API.example", "second.example"]}, True),
        ({"common_name": "by-subject"}, True),
        ({"uris": [SPIFFE, "spiffe://example.org/second"]}, False),
        ({"uris": [SPIFFE + "/"]}, False),
        ({"uris": [SPIFFE.upper()]}, False),
        ({"hosts": [SPIFFE[9:]]}, False),
        ({"hosts": ["x.api.example"]}, False),
        ({"common_name": "By-subject"}, False),
        ({"common_name": "api.example"}, False),
        ({"uris": ["spiffe://example.org/other"], "hosts": ["api.example"]}, False),
    ],
)
def test_of_whom(authority: Authority, names: dict[str, Any], known: bool) -> None:
    asked = request({"ClientCert": authority.issue(**names).escaped})
    if known:
        assert certificates().authenticate(asked) == API
    else:
        with pytest.raises(Unauthenticated):
            certificates().authenticate(asked)


@pytest.mark.parametrize(("begins", "ends"), [(-2, -1), (1, 2)])
def test_validity(authority: Authority, begins: int, ends: int) -> None:
    now = datetime.now(UTC)
    valid = (now + timedelta(hours=begins), now + timedelta(hours=ends))
    asked = request({"ClientCert": authority.issue(uris=[SPIFFE], valid=valid).escaped})
    with pytest.raises(Unauthenticated):
        certificates().authenticate(asked)


class TestOwnAuthority:
    @pytest.fixture
    def verifying(self, authority: Authority, tmp_path: Path) -> ClientCertificates:
        path = tmp_path / "ca.pem"
        path.write_bytes(Authority("unused").pem + authority.pem)
        return certificates(client_ca=path)

    @pytest.mark.parametrize("names", [{"uris": [SPIFFE]}, {"common_name": "by-subject"}])
    def test_its_certificates(
        self, verifying: ClientCertificates, authority: Authority, names: dict[str, Any]
    ) -> None:
        asked = request({"ClientCert": authority.issue(**names).escaped})
        assert verifying.authenticate(asked) == API

    def test_one_of_the_same_name_is_not_enough(self, verifying: ClientCertificates) -> None:
        """A proxy that passes on what it did not verify lets nobody in."""
        asked = request({"ClientCert": Authority().issue(uris=[SPIFFE]).escaped})
        with pytest.raises(Unauthenticated):
            verifying.authenticate(asked)
        assert certificates().authenticate(asked) == API

    def test_a_server_is_no_client(
        self, verifying: ClientCertificates, authority: Authority
    ) -> None:
        asked = request({"ClientCert": authority.issue(uris=[SPIFFE], server=True).escaped})
        with pytest.raises(Unauthenticated):
            verifying.authenticate(asked)

    @pytest.mark.parametrize("content", [None, b"", b"nothing"])
    def test_a_file_that_is_none(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "ca.pem").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"mtls\.client_ca"):
            certificates(client_ca=tmp_path / "ca.pem")
