"""From the tables about quotas, approvals and access to the JWKS to their settings."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from kmsjwks.config import schema
from kmsjwks.config.places import Location
from kmsjwks.config.settings import JwksSettings
from kmsjwks.domain.approvals import ApprovalPolicy, ProtectedAct
from kmsjwks.domain.quotas import QuotaPlan, QuotaRule, parse_quota


def jwks(table: schema.Jwks) -> JwksSettings:
    return JwksSettings(
        max_age=table.max_age,
        access=table.access,
        issuers=MappingProxyType({one.issuer: one.access for one in table.issuers}),
    )


def quotas(table: schema.Quotas) -> QuotaPlan:
    return QuotaPlan(
        use=parse_quota(table.default),
        management=parse_quota(table.management),
        rules=tuple(
            QuotaRule(
                clients=tuple(rule.clients),
                keysets=tuple(rule.keysets),
                quota=parse_quota(rule.limit, rule.burst),
                name=f"quotas.rules[{index}]",
            )
            for index, rule in enumerate(table.rules)
        ),
    )


def approvals(table: schema.Approvals) -> ApprovalPolicy:
    return ApprovalPolicy(
        required_for=frozenset(map(ProtectedAct, table.required_for)),
        window=table.window,
        same_person=tuple(map(frozenset, table.same_person)),
    )


def contradictions(document: schema.Document) -> Iterator[tuple[Location, str]]:
    """Settings that cannot hold together: where, and why."""
    if document.rotation.check_public_jwks and not jwks(document.jwks).all_public:
        yield (
            ("rotation", "check_public_jwks"),
            "looks at the JWKS without a credential, so with jwks access set to "
            '"authenticated" no key would ever be activated; set one of the two otherwise',
        )


def warnings(document: schema.Document) -> Iterator[str]:
    """What is allowed but doubtful."""
    access = jwks(document.jwks)
    if document.publication.targets and not access.all_public:
        yield (
            "publication.targets: documents of issuers with jwks access "
            '"authenticated" are not published there, because whoever reads a target is not asked '
            "who he is. Remove by hand what was published before."
        )
    if not access.all_public and not document.clients:
        yield 'jwks access is "authenticated", but there are no clients: nobody gets the keys.'
