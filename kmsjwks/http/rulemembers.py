"""Token rules as members of a request or an answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.tokenrules import TokenRules, complete

RULE_MEMBERS: Mapping[str, type] = MappingProxyType(
    {
        "issuer": str,
        "audiences": list,
        "profile": str,
        "typ": str,
        "max_lifetime": int,
        "default_lifetime": int,
        "required_claims": list,
        "forbidden_claims": list,
        "fixed_claims": dict,
        "allowed_claims": list,
        "nbf": str,
        "jti": str,
    }
)


def rules_of(body: Mapping[str, Any], default_issuer: str) -> TokenRules:
    """From a body that was checked against ``RULE_MEMBERS``.

    Raises:
        InvalidRequest
    """
    maximum = body.get("max_lifetime", 3600)
    return complete(
        TokenRules(
            issuer=body.get("issuer") or default_issuer,
            audiences=_strings(body, "audiences", ("*",)),
            typ=body.get("typ", ""),
            max_lifetime=maximum,
            default_lifetime=body.get("default_lifetime", min(300, maximum)),
            required=_strings(body, "required_claims", ()),
            forbidden=_strings(body, "forbidden_claims", ()),
            fixed=body.get("fixed_claims", {}),
            allowed=_strings(body, "allowed_claims", ()),
            nbf=body.get("nbf", "allowed"),
            jti=body.get("jti", "allowed"),
            profile=body.get("profile", ""),
        )
    )


def shown_rules(rules: TokenRules) -> dict[str, Any]:
    return {
        "issuer": rules.issuer,
        "audiences": list(rules.audiences),
        "profile": rules.profile,
        "typ": rules.typ,
        "max_lifetime": rules.max_lifetime,
        "default_lifetime": rules.default_lifetime,
        "required_claims": list(rules.required),
        "forbidden_claims": list(rules.forbidden),
        "fixed_claims": dict(rules.fixed),
        "allowed_claims": list(rules.allowed),
        "nbf": rules.nbf,
        "jti": rules.jti,
    }


def _strings(body: Mapping[str, Any], member: str, default: tuple[str, ...]) -> tuple[str, ...]:
    values = body.get(member)
    if values is None:
        return default
    if not all(isinstance(value, str) for value in values):
        raise InvalidRequest(f"The member {member!r} must be a list of strings.")
    return tuple(values)
