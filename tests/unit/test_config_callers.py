"""The tables about callers: clients, trusted issuers, trusted proxies."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from kmsjwks.config import Settings, load
from kmsjwks.domain.access import Action
from kmsjwks.domain.errors import ConfigurationError
from kmsjwks.domain.narrowing import NOT_NARROWED
from kmsjwks.domain.principals import CertificateIdentity, CertificateName, TokenIdentity

BACKEND = '[backends.softhsm]\ntype = "pkcs11"\n'
HASH = sha256(b"a").hexdigest()
OIDC = '[[oidc]]\nissuer = "https://idp"\naudiences = ["kmsjwks"]\ndiscovery = true\n'
TOKEN = f'[clients.a]\ntoken_sha256 = ["{HASH}"]\n'
GRANT = 'grants = [{{ actions = ["sign"], keysets = ["*"], {} }}]\n'


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


class Reader:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, text: str) -> Settings:
        path = self.directory / "kmsjwks.toml"
        path.write_text(BACKEND + text, encoding="utf-8")
        return load(path, environ={})

    def problems(self, text: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self(text)
        return [problem.split(": ", 1)[1] for problem in caught.value.problems]


def test_defaults(read: Reader) -> None:
    settings = read("")
    assert settings.bearer.enabled
    assert settings.mtls is None
    assert settings.oidc == ()
    assert settings.server.unix_socket is None


def test_no_client_is_named_as_the_service_itself(read: Reader) -> None:
    """Or its acts would stand in the trail as the scheduler's."""
    (problem,) = read.problems(f'[clients.scheduler]\ntoken_sha256 = ["{HASH}"]\n')
    assert problem.startswith("clients.scheduler: ")
    assert "audit trail" in problem


def test_everything_given(read: Reader) -> None:
    settings = read(
        f"""
        [server]
        unix_socket = "http.sock"
        [bearer]
        enabled = false
        [mtls]
        source = "nginx"
        trusted_proxies = ["unix", "10.0.0.0/8"]
        client_ca = "ca.pem"
        [[oidc]]
        issuer = "https://idp"
        audiences = ["kmsjwks"]
        jwks_uri = "https://idp/keys"
        algorithms = ["ES256"]
        leeway = 5
        ca_file = "idp.pem"
        [clients.a]
        tokens = [{{ sha256 = "{HASH}", expires = 2027-01-01T00:00:00Z }}]
        oidc = [{{ issuer = "https://idp", subject = "me", claims = {{ x = {{ y = 1 }} }} }}]
        certificates = [
            {{ spiffe = "spiffe://example.org/a" }}, {{ dns = "a.example" }},
            {{ subject = "CN=a,O=Example" }},
        ]
        [[clients.a.grants]]
        actions = ["sign"]
        keysets = ["x"]
        subjects = ["a*"]
        audiences = ["b"]
        claims = {{ tenant = "c", level = [1, 2] }}
        max_lifetime = 60
        """
    )
    assert settings.server.unix_socket == read.directory / "http.sock"
    assert not settings.bearer.enabled
    assert settings.mtls is not None
    assert settings.mtls.header == "ClientCert"
    assert settings.mtls.client_ca == read.directory / "ca.pem"
    (issuer,) = settings.oidc
    assert (issuer.algorithms, issuer.leeway) == (("ES256",), 5)
    assert issuer.ca_file == read.directory / "idp.pem"
    (client,) = settings.clients
    assert [(one.sha256, one.expires) for one in client.tokens] == [(HASH, 1798761600)]
    assert client.oidc == (TokenIdentity("https://idp", "me", {"x": {"y": 1}}),)
    assert client.certificates == (
        CertificateIdentity(CertificateName.SPIFFE, "spiffe://example.org/a"),
        CertificateIdentity(CertificateName.DNS, "a.example"),
        CertificateIdentity(CertificateName.SUBJECT, "CN=a,O=Example"),
    )
    (grant,) = client.grants
    assert grant.rule == "clients.a.grants[0]"
    assert grant.narrowing.claims == {"tenant": ("c",), "level": (1, 2)}
    assert grant.narrowing.max_lifetime == 60


def test_a_grant_without_conditions_is_not_narrowed(read: Reader) -> None:
    settings = read(TOKEN + GRANT.format("").replace(",  }", " }"))
    assert settings.clients[0].grants[0].narrowing is NOT_NARROWED
    assert settings.clients[0].grants[0].actions == {Action.SIGN}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (OIDC.replace("discovery = true", ""), "oidc[0]: needs either jwks_uri or discovery"),
        (OIDC + 'jwks_uri = "https://idp/k"', "oidc[0]: needs either jwks_uri or discovery"),
        (OIDC.replace("https", "http"), "oidc[0]: its keys must be fetched over https"),
        (
            OIDC.replace("https", "http") + "allow_loopback_http = true",
            "oidc[0]: its keys must be fetched over https",
        ),
        (OIDC + 'algorithms = ["HS256"]', "oidc[0].algorithms[0]: must be an asymmetric"),
        (OIDC + 'algorithms = ["none"]', "oidc[0].algorithms[0]: must be an asymmetric"),
        (OIDC + "leeway = 301", "oidc[0].leeway: must be between 0 and 300"),
        (OIDC.replace('["kmsjwks"]', "[]"), "oidc[0].audiences: must not be empty"),
        (OIDC + "jwks = 1", "oidc[0].jwks: unknown setting; did you mean oidc[0].jwks_uri?"),
        (OIDC + OIDC, "oidc[1].issuer: is the same issuer as oidc[0].issuer; give each its own"),
        ('[mtls]\ntrusted_proxies = ["127.0.0.1"]', "mtls: source is required"),
        (
            '[mtls]\nsource = "nginx"\ntrusted_proxies = ["0.0.0.0/0"]',
            "mtls.trusted_proxies[0]: must not be everybody",
        ),
        ('[mtls]\nsource = "rfc9440"', "mtls: a client could send the header Client-Cert as Cl"),
        ('[mtls]\nsource = "envoy"', "mtls: a client could send the header X-Forwarded-Client-C"),
        (
            '[mtls]\nsource = "nginx"\nheader = "X-Cert"',
            "mtls: a client could send the header X-Cert as X_Cert",
        ),
        ('[mtls]\nsource = "nginx"\nheader = "X_Cert"', "mtls.header: must be the name of a he"),
        (
            '[mtls]\nsource = "nginx"\nheader = "Authorization"',
            "mtls.header: must be a header that only the proxy sets",
        ),
        (
            '[clients.a]\noidc = [{ issuer = "https://other", subject = "x" }]\n' + OIDC,
            "clients.a.oidc[0].issuer: no [[oidc]] table has this issuer; you wrote",
        ),
        (
            OIDC + '[clients.a]\noidc = [{ issuer = "https://idp" }]\n',
            "clients.a.oidc[0]: needs subject, claims or both",
        ),
        (
            OIDC
            + "".join(
                f'[clients.{name}]\noidc = [{{ issuer = "https://idp", subject = "x" }}]\n'
                for name in "ab"
            ),
            "clients.b.oidc[0]: is the same identity as clients.a.oidc[0]; give each its own",
        ),
        (
            f'[clients.a]\ntoken_sha256 = ["{HASH}"]\ntokens = [{{ sha256 = "{HASH}" }}]\n',
            "clients.a.tokens[0].sha256: is the same token as clients.a.token_sha256[0]",
        ),
        (
            f'[clients.a]\ntokens = [{{ sha256 = "{HASH}", expires = 2027-01-01T00:00:00 }}]\n',
            "clients.a.tokens[0].expires: must say its time zone",
        ),
        (
            f'[clients.a]\ntokens = [{{ sha256 = "{HASH}", expires = 5 }}]\n',
            "clients.a.tokens[0].expires: must be a time",
        ),
        (
            '[clients.a]\ncertificates = [{ dns = "a", subject = "CN=a" }]\n',
            "clients.a.certificates[0]: must hold one of spiffe, dns and subject",
        ),
        (
            '[clients.a]\ncertificates = [{ spiffe = "https://a" }]\n',
            "clients.a.certificates[0].spiffe: must be a SPIFFE ID",
        ),
        (
            '[clients.a]\ncertificates = [{ subject = "a" }]\n',
            "clients.a.certificates[0].subject: must be a name of RFC 4514",
        ),
        (
            '[clients.a]\ncertificates = [{ dns = "*.example" }]\n',
            "clients.a.certificates[0].dns: must be a DNS name",
        ),
        (
            TOKEN + GRANT.format('claims = { sub = "x" }'),
            "clients.a.grants[0].claims: sub cannot be narrowed here: use subjects",
        ),
        (
            TOKEN + GRANT.format("claims = { x = [] }"),
            "clients.a.grants[0].claims: x must name at least one allowed value",
        ),
        (
            TOKEN + GRANT.format("claims = { x = 2027-01-01 }"),
            "clients.a.grants[0].claims: x must be values that JSON has",
        ),
        (
            TOKEN + GRANT.format("subjects = []"),
            "clients.a.grants[0].subjects: must not be empty",
        ),
        (
            TOKEN + GRANT.format("max_lifetime = 60").replace("sign", "read"),
            "clients.a.grants[0]: subjects, audiences, claims and max_lifetime narrow what is",
        ),
    ],
)
def test_mistakes(read: Reader, text: str, problem: str) -> None:
    (said,) = read.problems(text)
    assert said.startswith(problem)


def test_a_header_with_a_dash_needs_a_proxy_that_drops_underscores(read: Reader) -> None:
    stated = read(
        '[mtls]\nsource = "rfc9440"\nproxy_drops_underscores = true\n'
        'trusted_proxies = ["127.0.0.1"]\n'
    )
    assert stated.mtls is not None
    assert (stated.mtls.header, stated.mtls.trusted_proxies) == ("Client-Cert", ("127.0.0.1/32",))


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            '[clients.a]\ncertificates = [{ dns = "a" }]\n' + GRANT.format("max_lifetime = 1"),
            "clients.a.certificates has no effect",
        ),
        (
            '[mtls]\nsource = "nginx"\ntrusted_proxies = ["unix"]\n',
            'mtls.trusted_proxies: "unix" has no effect',
        ),
        (
            '[server]\nunix_socket = "s"\nbase_url = "https://x"\n'
            '[mtls]\nsource = "nginx"\ntrusted_proxies = ["10.0.0.1"]\n',
            'mtls.trusted_proxies: "10.0.0.1/32" has no effect',
        ),
        (
            OIDC.replace("https://idp", "http://localhost") + "allow_loopback_http = true\n",
            "The keys of http://localhost may be fetched over http",
        ),
    ],
)
def test_what_is_allowed_but_doubtful(read: Reader, text: str, warning: str) -> None:
    (said,) = read(text).warnings
    assert said.startswith(warning)


def test_turned_off(read: Reader) -> None:
    text = '[mtls]\nenabled = false\nsource = "nginx"\ntrusted_proxies = ["10.0.0.1"]\n'
    assert read(text).mtls is None


def test_hashes_stay_out_of_the_representation(read: Reader) -> None:
    assert HASH not in repr(read(TOKEN))
