"""PKCS#11 URIs (RFC 7512)."""

from __future__ import annotations

import re
from urllib.parse import unquote

# RFC 7512 sections 2.3 and 2.4: path attribute or query attribute -> option name.
_OPTIONS = {
    "token": "token_label",
    "serial": "token_serial",
    "module-path": "module_path",
    "pin-source": "pin_source",
    "pin-value": "pin_value",
}
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_IGNORED = frozenset({"manufacturer", "model", "slot-manufacturer", "slot-description"})


class UriError(ValueError):
    """Not a usable PKCS#11 URI; the text never holds an attribute's value."""


def parse_uri(uri: str) -> dict[str, str]:
    """``pkcs11:token=...;serial=...?module-path=...&pin-source=...`` as option names and values.

    Raises:
        UriError: wrong scheme, malformed, unknown or repeated attribute.
    """
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "pkcs11":
        raise UriError("must start with 'pkcs11:' (RFC 7512)")
    path, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for part in [*path.split(";"), *query.split("&")]:
        if not part:
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise UriError("every attribute needs the form name=value (RFC 7512 section 2.3)")
        if name in _IGNORED:
            continue
        if name not in _OPTIONS:
            raise UriError(
                f"attribute {name!r} is not used here; use {', '.join(sorted(_OPTIONS))}"
            )
        option = _OPTIONS[name]
        if option in options:
            raise UriError(f"attribute {name!r} appears twice")
        options[option] = _decoded(name, value)
    return options


def _decoded(name: str, value: str) -> str:
    """RFC 7512 section 2.3: percent-encoded UTF-8. ``unquote`` would let a stray '%' through."""
    if _BROKEN_ESCAPE.search(value):
        raise UriError(f"attribute {name!r} has a '%' that starts no percent-encoding; write %25")
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:  # its text and its object quote the value
        raise UriError(f"attribute {name!r} is not percent-encoded UTF-8") from None
