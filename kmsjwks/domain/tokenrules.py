"""Token rules: what a keyset's tokens must look like, and which rules contradict each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from kmsjwks.domain import strictjson
from kmsjwks.domain.claims import check_access_token, check_registered, is_empty
from kmsjwks.domain.errors import ClaimRejected, InvalidRequest, MalformedJson

ANY_AUDIENCE = "*"
STAMPED = frozenset({"iss", "iat"})
"""Claims that only the service sets."""

ALWAYS_PRESENT = frozenset({"iss", "iat", "exp", "jti"})
OWN_RULES = frozenset({"aud", "exp", "nbf", "jti"})
"""Claims that ``allowed`` does not concern: each has a rule of its own."""

NBF_POLICIES = ("allowed", "stamped", "required", "forbidden")
JTI_POLICIES = ("allowed", "stamped", "required")
_LONGEST_NAME, _MOST_NAMES = 128, 128
_NOT_IN_ISSUERS = frozenset(' ?#"<>\\^`{|}')  # the last ones are in no URL (RFC 3986 section 2)
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_RESTRICTED_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*"  # RFC 6838 section 4.2
_MEDIA_TYPE = re.compile(rf"{_RESTRICTED_NAME}(?:/{_RESTRICTED_NAME})?(?:;[ -~]+)?")


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a keyset's tokens must look like. Lifetimes in seconds.

    ``fixed`` claims are set by the service; the caller may leave them out or send the same value.
    ``allowed``, unless empty, are the only other claims that may be sent. ``nbf`` and ``jti`` say
    who sets the claim: ``allowed`` the caller may (a ``jti`` is made where he does not),
    ``stamped`` only the service does, ``required`` the caller must, ``forbidden`` nobody does.
    ``profile`` names a preset (see ``complete``) that goes on being enforced.
    """

    issuer: str
    audiences: tuple[str, ...] = (ANY_AUDIENCE,)
    typ: str = "JWT"
    max_lifetime: int = 3600
    default_lifetime: int = 300
    required: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    allowed: tuple[str, ...] = ()
    nbf: str = "allowed"
    jti: str = "allowed"
    profile: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """``source`` is where it is specified."""

    typ: str
    required: tuple[str, ...]
    source: str


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "at+jwt": Profile(
            typ="at+jwt",
            required=("iss", "exp", "aud", "sub", "client_id", "iat", "jti"),
            source="RFC 9068 section 2.2",
        )
    }
)
"""Presets by name; JWT access tokens (RFC 9068)."""


def complete(rules: TokenRules) -> TokenRules:
    """The rules with what their profile adds; an empty ``typ`` becomes the profile's, or JWT.

    Raises:
        InvalidRequest: there is no such profile.
    """
    if not rules.profile:
        return replace(rules, typ=rules.typ or "JWT")
    profile = _profile(rules)
    required = dict.fromkeys((*profile.required, *rules.required))
    return replace(rules, typ=rules.typ or profile.typ, required=tuple(required))


def _profile(rules: TokenRules) -> Profile:
    if rules.profile not in PROFILES:
        raise InvalidRequest(
            f"There is no profile {rules.profile[:64]!r}; known: {', '.join(PROFILES)}."
        )
    return PROFILES[rules.profile]


def check_rules(rules: TokenRules) -> TokenRules:
    """Validate rules when they are written.

    Raises:
        InvalidRequest: names the rule that is wrong, or the two that contradict each other.
    """
    _check_issuer(rules.issuer)
    _check_lifetimes(rules)
    if not rules.audiences:
        raise InvalidRequest("No audience is allowed; name at least one, or '*' for any.")
    if not all(rules.audiences):
        raise InvalidRequest("An allowed audience is empty; name it, or '*' for any.")
    if len(rules.typ) > 128 or not _MEDIA_TYPE.fullmatch(rules.typ):
        raise InvalidRequest("typ must be a media type name (RFC 7515 section 4.1.9).")
    for name, policy, known in (("nbf", rules.nbf, NBF_POLICIES), ("jti", rules.jti, JTI_POLICIES)):
        if policy not in known:
            raise InvalidRequest(f"The {name} policy must be one of {', '.join(known)}.")
    _check_names(rules)
    for contradiction in _contradictions(rules):
        raise InvalidRequest(contradiction)
    _check_fixed(rules)
    return rules


def _check_issuer(issuer: str) -> None:
    if not _is_issuer(issuer):
        raise InvalidRequest(
            f"The issuer {issuer!r} is not an http(s) URL without user name, query, fragment and "
            "dot segments."
        )
    if issuer.endswith("/"):
        raise InvalidRequest(f"The issuer {issuer!r} ends in '/'; clients compare it exactly.")


def _is_issuer(text: str) -> bool:
    # Refused by character first: urlsplit drops tabs and newlines, and an empty query.
    if not text.isascii() or not text.isprintable() or set(text) & _NOT_IN_ISSUERS:
        return False
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unbalanced brackets, or a port that is none
        return False
    # All see it, and clients resolve dot segments (RFC 3986 section 5.2.4) before they ask.
    return sound and "@" not in parts.netloc and not _DOT_SEGMENT.search(parts.path)


def _check_lifetimes(rules: TokenRules) -> None:
    if not 1 <= rules.max_lifetime <= 366 * 24 * 3600:
        raise InvalidRequest("The maximum lifetime must be between one second and 366 days.")
    if not 1 <= rules.default_lifetime <= rules.max_lifetime:
        raise InvalidRequest(
            f"The default lifetime ({rules.default_lifetime} s) must be between one second and "
            f"the maximum lifetime ({rules.max_lifetime} s)."
        )


def _check_names(rules: TokenRules) -> None:
    lists = {
        "required": rules.required,
        "forbidden": rules.forbidden,
        "fixed": tuple(rules.fixed),
        "allowed": rules.allowed,
    }
    for rule, names in lists.items():
        if len(names) > _MOST_NAMES:
            raise InvalidRequest(f"More than {_MOST_NAMES} {rule} claims.")
        if not all(0 < len(name) <= _LONGEST_NAME for name in names):
            raise InvalidRequest(
                f"The name of a claim that is {rule} must have 1 to {_LONGEST_NAME} characters."
            )


def _contradictions(rules: TokenRules) -> Iterator[str]:
    required, forbidden, fixed = set(rules.required), set(rules.forbidden), set(rules.fixed)
    for clash, what in (
        (required & forbidden, "both required and forbidden"),
        (fixed & forbidden, "both fixed and forbidden"),
        (set(rules.allowed) & forbidden, "both allowed and forbidden"),
    ):
        if clash:
            yield f"Claims {what}: {', '.join(sorted(clash))}."
    for name in sorted(fixed & (ALWAYS_PRESENT | {"nbf"})):
        yield f"{name} cannot be fixed: it differs from token to token, or the issuer sets it."
    for name in sorted(forbidden & STAMPED):
        yield f"{name} cannot be forbidden: the service sets it in every token."
    if "aud" in forbidden and ANY_AUDIENCE not in rules.audiences:
        yield "aud is forbidden, but with allowed audiences it is required."
    yield from _policy_contradictions(rules, required, forbidden)
    if rules.profile:
        yield from _profile_contradictions(rules, required, forbidden)


def _policy_contradictions(
    rules: TokenRules, required: set[str], forbidden: set[str]
) -> Iterator[str]:
    for name, policy in (("nbf", rules.nbf), ("jti", rules.jti)):
        if name in forbidden and policy in ("stamped", "required"):
            yield f"{name} is a forbidden claim, but its policy is {policy!r}."
    if rules.nbf == "forbidden" and "nbf" in required:
        yield "nbf is a required claim, but its policy is 'forbidden'."


def _profile_contradictions(
    rules: TokenRules, required: set[str], forbidden: set[str]
) -> Iterator[str]:
    profile = _profile(rules)
    # RFC 7515 section 4.1.9: "application/" may be left out.
    if rules.typ.lower().removeprefix("application/") != profile.typ:
        yield (
            f"The profile {rules.profile} has typ {profile.typ!r} (RFC 9068 section 2.1), the "
            f"rules have {rules.typ!r}."
        )
    for name in profile.required:
        # exp and jti may be forbidden to the caller: the service sets them then.
        if name in forbidden and name not in ALWAYS_PRESENT:
            yield f"{name} is forbidden, but the profile {rules.profile} requires it."
        if name not in required:
            yield f"The profile {rules.profile} requires {name} ({profile.source})."


def _check_fixed(rules: TokenRules) -> None:
    """A fixed value must be one that a token may have."""
    for name, value in rules.fixed.items():
        if is_empty(value):
            raise InvalidRequest(f"The fixed claim {name} has no value; forbid it instead.")
    try:
        strictjson.loads(strictjson.dumps(dict(rules.fixed)))
        check_registered(rules.fixed)
        if rules.profile:
            check_access_token(rules.fixed)
        if "aud" in rules.fixed:
            check_audience(rules, rules.fixed["aud"])
    except ClaimRejected as error:
        raise InvalidRequest(f"The fixed claim {error.member}: {error}") from error
    except (MalformedJson, TypeError, RecursionError) as error:
        raise InvalidRequest("A fixed claim has a value that JSON does not carry.") from error


def check_audience(rules: TokenRules, audience: Any) -> None:
    """
    Raises:
        ClaimRejected: not one that is allowed, or none where one must be.
    """
    if ANY_AUDIENCE in rules.audiences:
        return
    allowed = ", ".join(rules.audiences)
    if audience is None:
        raise ClaimRejected(f"aud is required; allowed here: {allowed}.", member="aud")
    for one in audience if isinstance(audience, list) else [audience]:
        if one not in rules.audiences:
            raise ClaimRejected(
                f"The audience is not allowed; allowed here: {allowed}.", member="aud"
            )


def fingerprint(rules: TokenRules) -> str:
    """Equal for equal rules only, also where Python takes true for 1 in a fixed claim."""
    return f"{replace(rules, fixed={})!r} {json.dumps(dict(rules.fixed), sort_keys=True)}"
