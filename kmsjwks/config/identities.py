"""What the settings that say who somebody is must look like. As in ``values``: each check
returns its value or completes the sentence "<setting>: ..."."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from kmsjwks.config import values

UNIX_SOCKET = "unix"
# Asymmetric ones that the library verifies in their registered meaning (RFC 7518, RFC 8037).
DEFAULT_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
DEFAULT_HEADERS: Mapping[str, str] = MappingProxyType(
    {"rfc9440": "Client-Cert", "nginx": "ClientCert", "envoy": "X-Forwarded-Client-Cert"}
)
_OWN_CLAIMS = {
    "sub": "subjects",
    "aud": "audiences",
    "exp": "max_lifetime",
    "iss": None,
    "iat": None,
    "nbf": None,
}
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_DNS_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def text(value: str) -> str:
    if not value or not value.isprintable() or value != value.strip():
        raise ValueError("must be printable text, not empty, without spaces around it")
    return value


def moment(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("must say its time zone, as in 2027-01-01T00:00:00Z")
    return value.astimezone(UTC)


def written_moment(value: object) -> object:
    """Where the environment gives it, as JSON."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return value
    return value


def socket_path(value: str) -> str:
    """Empty for none. 107 bytes is what sockaddr_un takes."""
    if "\0" in value or value.startswith("~") or len(value.encode()) > 100:
        raise ValueError("must be the path of a socket, of at most 100 bytes, written in full")
    return value


def jws_algorithm(value: str) -> str:
    if value not in DEFAULT_ALGORITHMS:
        raise ValueError(f"must be an asymmetric algorithm: {', '.join(DEFAULT_ALGORITHMS)}")
    return value


def trusted_url(value: str) -> str:
    """An issuer, or where its keys are."""
    parts = urlsplit(value) if value.isascii() and value.isprintable() else None
    if parts is None or parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("must be a URL that starts with https://")
    if "@" in parts.netloc or "#" in value or " " in value:
        raise ValueError("must have neither credentials nor a fragment (#) nor spaces")
    return value


def check_fetched_url(value: str, allow_loopback_http: bool) -> None:
    parts = urlsplit(value)
    if parts.scheme == "https":
        return
    if not (allow_loopback_http and values.is_loopback(parts.hostname or "")):
        raise ValueError(
            "its keys must be fetched over https; for development on this machine, "
            "allow_loopback_http = true lets a loopback address use http"
        )


def trusted_proxy(value: str) -> str:
    if value == UNIX_SOCKET:
        return value
    try:
        network = ip_network(value)
    except ValueError:
        raise ValueError(
            'must be "unix", an address or a network such as 127.0.0.1/32 (no host bits set)'
        ) from None
    if network.prefixlen == 0:
        raise ValueError("must not be everybody")
    return str(network)


def header_name(value: str) -> str:
    if value and not _HEADER_NAME.fullmatch(value):
        raise ValueError("must be the name of a header: letters, digits and '-'")
    if value.lower() in ("authorization", "host", "cookie", "x-request-id"):
        raise ValueError("must be a header that only the proxy sets")
    return value


def check_header(name: str, proxy_drops_underscores: bool) -> None:
    """To a WSGI application ``Client_Cert`` is ``Client-Cert``; a name without a dash has no such
    other spelling."""
    if "-" in name and not proxy_drops_underscores:
        raise ValueError(
            f"a client could send the header {name} as {name.replace('-', '_')}, which a proxy "
            'may pass on. Let the proxy use a name without "-", such as header = "ClientCert", '
            "or make it drop header names with underscores and say so with "
            "proxy_drops_underscores = true"
        )


def spiffe_id(value: str) -> str:
    if not _SPIFFE_ID.fullmatch(value):
        raise ValueError("must be a SPIFFE ID such as spiffe://example.org/ns/billing/sa/api")
    return value


def dns_name(value: str) -> str:
    if not _DNS_NAME.fullmatch(value):
        raise ValueError("must be a DNS name in lower case, without wildcards")
    return value


def distinguished_name(value: str) -> str:
    """RFC 4514, in the spelling that certificates are compared in."""
    try:
        name = x509.Name.from_rfc4514_string(value)
    except ValueError:
        name = None
    if name is None or not list(name):
        raise ValueError('must be a name of RFC 4514, such as "CN=billing,O=Example"')
    return name.rfc4514_string()


def narrowed_claims(claims: dict[str, Any]) -> dict[str, Any]:
    for name, allowed in claims.items():
        if name in _OWN_CLAIMS:
            instead = _OWN_CLAIMS[name]
            hint = f"use {instead}" if instead else "the service sets or checks it"
            raise ValueError(f"{name} cannot be narrowed here: {hint}")
        if not _is_json(allowed):
            raise ValueError(f"{name} must be values that JSON has: no dates, no NaN")
        if allowed == []:
            raise ValueError(f"{name} must name at least one allowed value")
    return claims


def _is_json(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return isinstance(value, str | int)
