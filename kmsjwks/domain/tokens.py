"""Tokens by the rules: a caller's claims checked, and what only the service sets stamped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmsjwks.domain.claims import (
    check_access_token,
    check_registered,
    is_empty,
    is_int,
    is_same,
)
from kmsjwks.domain.errors import ClaimRejected
from kmsjwks.domain.tokenrules import (
    ANY_AUDIENCE,
    OWN_RULES,
    STAMPED,
    TokenRules,
    check_audience,
    check_rules,
)

__all__ = ["ANY_AUDIENCE", "LEEWAY", "TokenContent", "TokenRules", "build_token", "check_rules"]

LEEWAY = 300  # seconds of clock difference that verifiers and callers are allowed

# RFC 7515 section 4.1: what names or carries a key, or changes how the token is read, is ours.
_RESERVED_HEADERS = frozenset(
    {"alg", "kid", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "enc", "zip"}
)


@dataclass(frozen=True, slots=True)
class TokenContent:
    """A validated token, ready to be signed."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    exp: int
    jti: str


def build_token(
    rules: TokenRules,
    claims: Mapping[str, Any],
    *,
    ttl: int | None,
    headers: Mapping[str, Any],
    now: int,
    jti: str,
) -> TokenContent:
    """Check what the caller wants and add what only we may say.

    ``ttl`` is the wanted lifetime in seconds; ``now`` seconds since the epoch; ``jti`` is used
    where the caller sets none.

    Raises:
        ClaimRejected: names the claim or header parameter, and the rule.
    """
    _check_sent(rules, claims)
    check_registered(claims)
    wanted = {**claims, **rules.fixed} if rules.fixed else claims
    if rules.profile:
        check_access_token(wanted)
    check_audience(rules, wanted.get("aud"))
    exp = _expiry(rules, claims, ttl, now)
    _check_not_before(claims, now, exp)
    stamped = {**wanted, "iss": rules.issuer, "iat": now, "exp": exp}
    if rules.nbf == "stamped":
        stamped["nbf"] = now
    stamped.setdefault("jti", jti)
    _check_presence(rules, stamped)
    return TokenContent(header=_header(rules, headers), claims=stamped, exp=exp, jti=stamped["jti"])


def _check_sent(rules: TokenRules, claims: Mapping[str, Any]) -> None:
    """What the caller may not send, and what he must."""
    for name in claims:
        if name in STAMPED:
            raise ClaimRejected(f"{name} is set by the service; leave it out.", member=name)
        if name in rules.fixed and not is_same(claims[name], rules.fixed[name]):
            raise ClaimRejected(
                f"{name} is fixed by the keyset's rules; leave it out, or send that value.",
                member=name,
            )
        if rules.allowed and not _is_allowed(rules, name):
            raise ClaimRejected(
                f"{name[:64]} is not one of the claims that the keyset's rules allow.",
                member=name[:64],
            )
    for name in rules.forbidden:
        if name in claims:
            raise ClaimRejected(f"{name} is forbidden by the keyset's rules.", member=name)
    _check_policy("nbf", rules.nbf, claims)
    _check_policy("jti", rules.jti, claims)


def _is_allowed(rules: TokenRules, name: str) -> bool:
    return (
        name in rules.allowed or name in OWN_RULES or name in rules.required or name in rules.fixed
    )


def _check_policy(name: str, policy: str, claims: Mapping[str, Any]) -> None:
    if policy == "stamped" and name in claims:
        raise ClaimRejected(f"{name} is set by the service in this keyset.", member=name)
    if policy == "forbidden" and name in claims:
        raise ClaimRejected(f"{name} is forbidden by the keyset's rules.", member=name)
    if policy == "required" and name not in claims:
        raise ClaimRejected(f"{name} is required by the keyset's rules: send it.", member=name)


def _expiry(rules: TokenRules, claims: Mapping[str, Any], ttl: int | None, now: int) -> int:
    if ttl is not None and "exp" in claims:
        raise ClaimRejected("Send either ttl or exp, not both.", member="exp")
    if ttl is not None:
        if not is_int(ttl) or ttl < 1:
            raise ClaimRejected("ttl must be a positive integer, in seconds.", member="ttl")
        member, exp = "ttl", now + ttl
    elif "exp" in claims:
        member, exp = "exp", claims["exp"]
        if exp <= now:
            raise ClaimRejected("exp is in the past.", member="exp")
    else:
        return now + rules.default_lifetime
    if exp - now > rules.max_lifetime:
        raise ClaimRejected(
            f"The lifetime is above the keyset's maximum of {rules.max_lifetime} seconds.",
            member=member,
        )
    return int(exp)


def _check_not_before(claims: Mapping[str, Any], now: int, exp: int) -> None:
    nbf = claims.get("nbf")
    if nbf is None:
        return
    if not now - LEEWAY <= nbf < exp:
        raise ClaimRejected(
            f"nbf must lie between {LEEWAY} seconds ago and the token's exp.", member="nbf"
        )


def _check_presence(rules: TokenRules, stamped: Mapping[str, Any]) -> None:
    for name in rules.required:
        if is_empty(stamped.get(name)):
            raise ClaimRejected(f"{name} is required by the keyset's rules.", member=name)


def _header(rules: TokenRules, headers: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in headers.items():
        if name in _RESERVED_HEADERS:
            raise ClaimRejected(f"The header parameter {name} is set by the service.", member=name)
        if name == "typ" and value != rules.typ:
            raise ClaimRejected(f"typ is {rules.typ!r} in this keyset.", member=name)
        if name not in ("typ", "cty"):
            raise ClaimRejected(
                "Only the header parameters typ and cty may be sent; put data into claims.",
                member=name[:64],
            )
        if not isinstance(value, str) or not 0 < len(value) <= 128:
            raise ClaimRejected(f"{name} must be a string of 1 to 128 characters.", member=name)
    return {"typ": rules.typ, **headers}
