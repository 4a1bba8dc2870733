"""From the tables about callers to their settings: clients, trusted issuers, trusted proxies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kmsjwks.config import caller_tables
from kmsjwks.config.identities import UNIX_SOCKET
from kmsjwks.config.schema import Document
from kmsjwks.config.settings import BearerToken, ClientSettings, MtlsSettings, OidcSettings
from kmsjwks.domain.access import Grant
from kmsjwks.domain.narrowing import NOT_NARROWED, Narrowing
from kmsjwks.domain.principals import CertificateIdentity, CertificateName, TokenIdentity


def client(name: str, table: caller_tables.Client) -> ClientSettings:
    return ClientSettings(
        name=name,
        tokens=(
            *(BearerToken(digest) for digest in table.token_sha256),
            *(
                BearerToken(token.sha256, token.expires.timestamp() if token.expires else None)
                for token in table.tokens
            ),
        ),
        oidc=tuple(
            TokenIdentity(one.issuer, one.subject, MappingProxyType(one.claims))
            for one in table.oidc
        ),
        certificates=tuple(_certificate(one) for one in table.certificates),
        grants=tuple(
            _grant(f"clients.{name}.grants[{index}]", grant)
            for index, grant in enumerate(table.grants)
        ),
    )


def _certificate(table: caller_tables.ClientCertificate) -> CertificateIdentity:
    if table.spiffe is not None:
        return CertificateIdentity(CertificateName.SPIFFE, table.spiffe)
    if table.dns is not None:
        return CertificateIdentity(CertificateName.DNS, table.dns)
    assert table.subject is not None
    return CertificateIdentity(CertificateName.SUBJECT, table.subject)


def _grant(rule: str, table: caller_tables.ClientGrant) -> Grant:
    narrowing = Narrowing(
        subjects=tuple(table.subjects or ()),
        audiences=tuple(table.audiences or ()),
        claims=MappingProxyType({name: _choices(value) for name, value in table.claims.items()}),
        max_lifetime=table.max_lifetime,
    )
    return Grant(
        actions=frozenset(table.actions),
        keysets=tuple(table.keysets),
        narrowing=narrowing if narrowing.described() else NOT_NARROWED,
        rule=rule,
    )


def _choices(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def oidc(table: caller_tables.Oidc, base_directory: Path) -> OidcSettings:
    return OidcSettings(
        issuer=table.issuer,
        enabled=table.enabled,
        audiences=tuple(table.audiences),
        jwks_uri=table.jwks_uri,
        algorithms=tuple(table.algorithms),
        leeway=table.leeway,
        ca_file=base_directory / table.ca_file if table.ca_file else None,
        token_file=base_directory / table.token_file if table.token_file else None,
        allow_loopback_http=table.allow_loopback_http,
    )


def mtls(table: caller_tables.Mtls, base_directory: Path) -> MtlsSettings | None:
    if not (table.enabled and table.source and table.trusted_proxies):
        return None
    return MtlsSettings(
        source=table.source,
        header=table.header_name,
        trusted_proxies=tuple(table.trusted_proxies),
        client_ca=base_directory / table.client_ca if table.client_ca else None,
    )


def warnings(document: Document, clients: Iterable[ClientSettings]) -> Iterator[str]:
    """What is allowed but doubtful."""
    proxies = mtls(document.mtls, Path())
    for one in clients:
        if not one.grants:
            yield f"clients.{one.name} has no grants: it may do nothing."
        if one.certificates and proxies is None:
            yield (
                f"clients.{one.name}.certificates has no effect: [mtls] needs source and "
                "trusted_proxies."
            )
    for proxy in proxies.trusted_proxies if proxies else ():
        # On a unix socket nobody has an address, elsewhere everybody.
        if (proxy == UNIX_SOCKET) is not bool(document.server.unix_socket):
            yield f'mtls.trusted_proxies: "{proxy}" has no effect with this server.unix_socket.'
    for table in document.oidc:
        if table.allow_loopback_http:
            yield (
                f"The keys of {table.issuer} may be fetched over http (allow_loopback_http), "
                "which is for development."
            )
