"""Token rules: validate a caller's claims and stamp iss, iat, exp, jti."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kmsjwks.domain.errors import ClaimRejected, InvalidRequest

LEEWAY = 300  # seconds of clock difference that verifiers and callers are allowed
ANY_AUDIENCE = "*"

# RFC 7515 section 4.1: what names or carries a key, or changes how the token is read, is ours.
_RESERVED_HEADERS = frozenset(
    {"alg", "kid", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "enc", "zip"}
)
_STAMPED_CLAIMS = frozenset({"iss", "iat"})


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a keyset's tokens must look like. Lifetimes in seconds."""

    issuer: str
    audiences: tuple[str, ...] = (ANY_AUDIENCE,)
    typ: str = "JWT"
    max_lifetime: int = 3600
    default_lifetime: int = 300
    required: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenContent:
    """A validated token, ready to be signed."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    exp: int
    jti: str


def check_rules(rules: TokenRules) -> TokenRules:
    """Validate rules when they are written.

    Raises:
        InvalidRequest: names the rule that is wrong.
    """
    if not _is_issuer(rules.issuer):
        raise InvalidRequest(
            f"The issuer {rules.issuer!r} is not an http(s) URL without query and fragment."
        )
    if rules.issuer.endswith("/"):
        raise InvalidRequest(
            f"The issuer {rules.issuer!r} ends in '/'; clients compare it exactly."
        )
    if not 1 <= rules.max_lifetime <= 366 * 24 * 3600:
        raise InvalidRequest("The maximum lifetime must be between one second and 366 days.")
    if not 1 <= rules.default_lifetime <= rules.max_lifetime:
        raise InvalidRequest(
            f"The default lifetime ({rules.default_lifetime} s) must be between one second and "
            f"the maximum lifetime ({rules.max_lifetime} s)."
        )
    if not rules.audiences:
        raise InvalidRequest("No audience is allowed; name at least one, or '*' for any.")
    if not (0 < len(rules.typ) <= 128 and rules.typ.isascii() and rules.typ.isprintable()):
        raise InvalidRequest("typ must be a media type name (RFC 7515 section 4.1.9).")
    clash = set(rules.required) & set(rules.forbidden)
    if clash:
        raise InvalidRequest(f"Claims both required and forbidden: {', '.join(sorted(clash))}.")
    return rules


def _is_issuer(text: str) -> bool:
    # Refused by character first: urlsplit drops tabs and newlines, and an empty query.
    if not text.isascii() or not text.isprintable() or any(mark in text for mark in " ?#"):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unbalanced brackets, or a port that is none
        return False


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
    for name in claims:
        if name in _STAMPED_CLAIMS:
            raise ClaimRejected(f"{name} is set by the service; leave it out.", member=name)
    _check_registered_types(claims)
    _check_audience(rules, claims.get("aud"))
    exp = _expiry(rules, claims, ttl, now)
    _check_not_before(claims, now, exp)
    stamped = {**claims, "iss": rules.issuer, "iat": now, "exp": exp}
    stamped.setdefault("jti", jti)
    _check_presence(rules, stamped, claims)
    return TokenContent(header=_header(rules, headers), claims=stamped, exp=exp, jti=stamped["jti"])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_registered_types(claims: Mapping[str, Any]) -> None:
    """RFC 7519 section 4.1."""
    for name in ("sub", "jti"):
        value = claims.get(name)
        if name in claims and not (isinstance(value, str) and 0 < len(value) <= 1024):
            raise ClaimRejected(
                f"{name} must be a string of 1 to 1024 characters (RFC 7519 section 4.1).",
                member=name,
            )
    for name in ("exp", "nbf"):
        if name in claims and not _is_int(claims[name]):
            raise ClaimRejected(
                f"{name} must be an integer, in seconds since the epoch.", member=name
            )
    if "aud" in claims:
        audience = claims["aud"]
        many = audience if isinstance(audience, list) else [audience]
        if not many or not all(isinstance(one, str) and one for one in many):
            raise ClaimRejected("aud must be a string or a list of strings.", member="aud")


def _check_audience(rules: TokenRules, audience: Any) -> None:
    if ANY_AUDIENCE in rules.audiences:
        return
    if audience is None:
        raise ClaimRejected(
            f"aud is required; allowed here: {', '.join(rules.audiences)}.", member="aud"
        )
    for one in audience if isinstance(audience, list) else [audience]:
        if one not in rules.audiences:
            raise ClaimRejected(
                f"The audience is not allowed; allowed here: {', '.join(rules.audiences)}.",
                member="aud",
            )


def _expiry(rules: TokenRules, claims: Mapping[str, Any], ttl: int | None, now: int) -> int:
    if ttl is not None and "exp" in claims:
        raise ClaimRejected("Send either ttl or exp, not both.", member="exp")
    if ttl is not None:
        if not _is_int(ttl) or ttl < 1:
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


def _check_presence(
    rules: TokenRules, stamped: Mapping[str, Any], claims: Mapping[str, Any]
) -> None:
    for name in rules.required:
        if stamped.get(name) in (None, "", [], {}):
            raise ClaimRejected(f"{name} is required by the keyset's rules.", member=name)
    for name in rules.forbidden:
        if name in claims:
            raise ClaimRejected(f"{name} is forbidden by the keyset's rules.", member=name)


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
