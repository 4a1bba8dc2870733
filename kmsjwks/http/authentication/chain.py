"""The authenticators in their order, as the configuration turns them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kmsjwks.config import OidcSettings, Settings
from kmsjwks.domain.access import Principal
from kmsjwks.domain.errors import Unauthenticated
from kmsjwks.domain.ports import Clock
from kmsjwks.domain.principals import TokenIdentity
from kmsjwks.http.authentication.bearer import BearerKind, BearerScheme, OpaqueTokens
from kmsjwks.http.authentication.mtls import ClientCertificates


class Authenticator(Protocol):
    def authenticate(self, environ: Mapping[str, Any]) -> Principal | None:
        """The caller, by the WSGI environ of a request; None where it carries no credential of this
        kind.

        Raises:
            Unauthenticated: it carries one that is not valid.
            Unavailable: it cannot be told now.
        """


def authenticate(chain: Sequence[Authenticator], environ: Mapping[str, Any]) -> Principal:
    """
    Raises:
        Unauthenticated: no authenticator recognises the caller.
        Unavailable: it cannot be told now.
    """
    for authenticator in chain:
        principal = authenticator.authenticate(environ)
        if principal is not None:
            return principal
    raise Unauthenticated(
        "Send the client's token as 'Authorization: Bearer ...'.", presented=False
    )


def build_chain(settings: Settings, clock: Clock) -> tuple[Authenticator, ...]:
    """A bearer token counts before a certificate: one that is not valid is not made good by it.

    Raises:
        ConfigurationError: the client authorities cannot be read.
    """
    owners = [(client, Principal(client.name, client.grants)) for client in settings.clients]
    kinds: list[BearerKind] = []
    if settings.bearer.enabled:
        tokens = [(token, owner) for client, owner in owners for token in client.tokens]
        kinds.append(OpaqueTokens(tokens, clock))
    issuers = [issuer for issuer in settings.oidc if issuer.enabled]
    if issuers:
        identities = [(one, owner) for client, owner in owners for one in client.oidc]
        kinds.append(_oidc(issuers, identities, clock))
    chain: list[Authenticator] = [BearerScheme(kinds)]
    if settings.mtls is not None:
        certificates = [(one, owner) for client, owner in owners for one in client.certificates]
        chain.append(ClientCertificates(settings.mtls, certificates, clock))
    return tuple(chain)


def _oidc(
    issuers: Sequence[OidcSettings],
    identities: Sequence[tuple[TokenIdentity, Principal]],
    clock: Clock,
) -> BearerKind:
    from kmsjwks.http.authentication.oidc import OidcTokens, TrustedIssuer  # noqa: PLC0415  # 4 MB with urllib3, for those who use it

    return OidcTokens([TrustedIssuer.of(issuer) for issuer in issuers], identities, clock)
