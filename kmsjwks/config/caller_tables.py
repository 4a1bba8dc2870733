"""The shape of the tables about callers: clients, trusted issuers, trusted proxies."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kmsjwks.config import identities, values
from kmsjwks.config.table import Table
from kmsjwks.domain.access import Action

TokenHash = Annotated[str, AfterValidator(values.token_hash)]
KeysetPattern = Annotated[str, AfterValidator(values.keyset_pattern)]
LeewaySeconds = Annotated[int, AfterValidator(values.between(0, 300))]
LifetimeSeconds = Annotated[int, AfterValidator(values.between(1, 366 * 86400))]
Text = Annotated[str, AfterValidator(identities.text)]
JwsAlgorithm = Annotated[str, AfterValidator(identities.jws_algorithm)]
TrustedUrl = Annotated[str, AfterValidator(identities.trusted_url)]
TrustedProxy = Annotated[str, AfterValidator(identities.trusted_proxy)]
HeaderName = Annotated[str, AfterValidator(identities.header_name)]
Expiry = Annotated[
    datetime, BeforeValidator(identities.written_moment), AfterValidator(identities.moment)
]
NarrowedClaims = Annotated[dict[str, Any], AfterValidator(identities.narrowed_claims)]
# Strict mode takes enum members only, and TOML has none.
ActionName = Annotated[Action, Field(strict=False)]


class ClientGrant(Table):
    actions: Annotated[list[ActionName], Field(min_length=1)]
    keysets: Annotated[list[KeysetPattern], Field(min_length=1)]
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    audiences: Annotated[list[Text], Field(min_length=1)] | None = None
    claims: NarrowedClaims = Field(default_factory=dict)
    max_lifetime: LifetimeSeconds | None = None

    @model_validator(mode="after")
    def _narrows_what_it_signs(self) -> Self:
        narrows = self.subjects or self.audiences or self.claims or self.max_lifetime
        if narrows and Action.SIGN not in self.actions:
            raise ValueError(
                'subjects, audiences, claims and max_lifetime narrow what is signed; add "sign" '
                "to actions, or leave them out"
            )
        return self


class ClientToken(Table):
    sha256: TokenHash
    expires: Expiry | None = None


class ClientOidc(Table):
    issuer: Text
    subject: Text | None = None
    claims: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.subject is None and not self.claims:
            raise ValueError("needs subject, claims or both: an issuer alone is everybody")
        return self


class ClientCertificate(Table):
    spiffe: Annotated[str, AfterValidator(identities.spiffe_id)] | None = None
    dns: Annotated[str, AfterValidator(identities.dns_name)] | None = None
    subject: Annotated[str, AfterValidator(identities.distinguished_name)] | None = None

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(value is not None for value in (self.spiffe, self.dns, self.subject)) != 1:
            raise ValueError("must hold one of spiffe, dns and subject")
        return self


class Client(Table):
    token_sha256: list[TokenHash] = Field(default_factory=list)
    tokens: list[ClientToken] = Field(default_factory=list)
    oidc: list[ClientOidc] = Field(default_factory=list)
    certificates: list[ClientCertificate] = Field(default_factory=list)
    grants: list[ClientGrant] = Field(default_factory=list)

    @model_validator(mode="after")
    def _can_authenticate(self) -> Self:
        if not (self.token_sha256 or self.tokens or self.oidc or self.certificates):
            raise ValueError(
                "has no way to authenticate; add token_sha256, tokens, oidc or certificates"
            )
        return self


class Bearer(Table):
    enabled: bool = True


class Oidc(Table):
    """One trusted issuer."""

    issuer: TrustedUrl
    enabled: bool = True
    audiences: Annotated[list[Text], Field(min_length=1)]
    jwks_uri: TrustedUrl | None = None
    discovery: bool = False
    algorithms: Annotated[list[JwsAlgorithm], Field(min_length=1)] = Field(
        default_factory=lambda: list(identities.DEFAULT_ALGORITHMS)
    )
    leeway: LeewaySeconds = 60
    ca_file: Text | None = None
    token_file: Text | None = None
    allow_loopback_http: bool = False

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if (self.jwks_uri is not None) is self.discovery:
            raise ValueError("needs either jwks_uri or discovery = true")
        fetched = self.jwks_uri or self.issuer
        identities.check_fetched_url(fetched, self.allow_loopback_http)
        return self


class Mtls(Table):
    enabled: bool = True
    source: Literal["", "rfc9440", "nginx", "envoy"] = ""
    header: HeaderName = ""
    proxy_drops_underscores: bool = False
    trusted_proxies: list[TrustedProxy] = Field(default_factory=list)
    client_ca: str = ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.trusted_proxies and not self.source:
            raise ValueError('source is required: "rfc9440", "nginx" or "envoy"')
        if self.source:
            identities.check_header(self.header_name, self.proxy_drops_underscores)
        return self

    @property
    def header_name(self) -> str:
        return self.header or identities.DEFAULT_HEADERS.get(self.source, "")
