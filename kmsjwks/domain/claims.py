"""What claims must look like wherever they stand: RFC 7519, and RFC 9068 for access tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kmsjwks.domain.errors import ClaimRejected

_LONGEST = 1024  # characters of a sub or jti


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_same(one: Any, other: Any) -> bool:
    """Equal as JSON: to Python true is 1, and 1 is 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def check_registered(claims: Mapping[str, Any]) -> None:
    """RFC 7519 section 4.1.

    Raises:
        ClaimRejected
    """
    for name in ("sub", "jti"):
        value = claims.get(name)
        if name in claims and not (isinstance(value, str) and 0 < len(value) <= _LONGEST):
            raise ClaimRejected(
                f"{name} must be a string of 1 to {_LONGEST} characters (RFC 7519 section 4.1).",
                member=name,
            )
    for name in ("exp", "nbf"):
        if name in claims and not is_int(claims[name]):
            raise ClaimRejected(
                f"{name} must be an integer, in seconds since the epoch.", member=name
            )
    if "aud" in claims:
        audience = claims["aud"]
        many = audience if isinstance(audience, list) else [audience]
        if not many or not all(isinstance(one, str) and one for one in many):
            raise ClaimRejected("aud must be a string or a list of strings.", member="aud")


def check_access_token(claims: Mapping[str, Any]) -> None:
    """RFC 9068 section 2.2, of the claims that are there.

    Raises:
        ClaimRejected
    """
    for name, (is_right, wanted) in _ACCESS_TOKEN.items():
        if name in claims and not is_right(claims[name]):
            raise ClaimRejected(f"{name} must be {wanted}.", member=name)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_scope(value: object) -> bool:
    """RFC 6749 section 3.3: scope-tokens of printable ASCII without '"' and '\\', one space
    between two."""
    return isinstance(value, str) and all(
        token and all("!" <= one <= "~" and one not in '"\\' for one in token)
        for token in value.split(" ")
    )


_ACCESS_TOKEN: Mapping[str, tuple[Callable[[object], bool], str]] = MappingProxyType(
    {
        "client_id": (_is_text, "a string (RFC 9068 section 2.2, RFC 8693 section 4.3)"),
        "scope": (
            _is_scope,
            "a string of scope values with one space between two (RFC 9068 section 2.2.3, "
            "RFC 6749 section 3.3)",
        ),
        "auth_time": (is_int, "an integer, in seconds since the epoch (RFC 9068 section 2.2.1)"),
        "acr": (_is_text, "a string (RFC 9068 section 2.2.1)"),
        "amr": (_is_texts, "a list of strings (RFC 9068 section 2.2.1)"),
    }
)
