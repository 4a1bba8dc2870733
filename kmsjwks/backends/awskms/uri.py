"""The URI of an AWS KMS backend: ``awskms:region=...;profile=...;endpoint=...``."""

from __future__ import annotations

import re
from urllib.parse import unquote

_ATTRIBUTES = frozenset({"region", "profile", "endpoint"})
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class UriError(ValueError):
    """Not a usable URI; the text never holds an attribute's value."""


def parse_uri(uri: str) -> dict[str, str]:
    """Option names and values, percent-decoded as in PKCS#11 URIs (RFC 7512 section 2.3).

    Raises:
        UriError: wrong scheme, malformed, unknown or repeated attribute.
    """
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "awskms":
        raise UriError("must start with 'awskms:', as in awskms:region=eu-central-1")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(";")):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise UriError("every attribute needs the form name=value, separated by ';'")
        if name not in _ATTRIBUTES:
            raise UriError(f"attribute {name!r} is not used here; use {_known()}")
        if name in options:
            raise UriError(f"attribute {name!r} appears twice")
        options[name] = _decoded(name, value)
    return options


def _known() -> str:
    return ", ".join(sorted(_ATTRIBUTES))


def _decoded(name: str, value: str) -> str:
    if _BROKEN_ESCAPE.search(value):
        raise UriError(f"attribute {name!r} has a '%' that starts no percent-encoding; write %25")
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:  # its text and its object quote the value
        raise UriError(f"attribute {name!r} is not percent-encoded UTF-8") from None
