"""Documents that verifiers fetch, and what can be checked of one that comes back from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.jwk import thumbprint

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.jwk import refuse_private_members

JWKS_MEDIA_TYPE = "application/jwk-set+json"  # RFC 7517 section 8.5
METADATA_MEDIA_TYPE = "application/json"
JWKS_NAME = ".well-known/jwks.json"

# RFC 7638 section 3.2; RFC 8037 section 2; RFC 9964 section 6.
_IDENTIFYING = {
    "AKP": ("alg", "kty", "pub"),
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}


@dataclass(frozen=True, slots=True)
class Document:
    """A rendered document. ``etag`` is strong and quoted (RFC 9110 section 8.8.3). ``issuer`` is
    whose it is, empty where that is not known; ``cache_control`` is for where it is public."""

    body: bytes
    media_type: str
    etag: str
    cache_control: str
    issuer: str = ""


def make_document(body: bytes, media_type: str, cache_control: str, issuer: str = "") -> Document:
    """The ETag follows from the body: the same on every replica."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Document(body, media_type, etag, cache_control, issuer)


def parse_jwks(body: bytes) -> list[dict[str, Any]]:
    """The keys of a JWK Set (RFC 7517 section 5) that was read from outside.

    Raises:
        MalformedJson: not I-JSON.
        InvalidRequest: not a JWK Set, or two keys have one kid.
        PrivateMaterialRefused: a key is symmetric or holds a private member.
    """
    content = strictjson.loads(body)
    keys = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise InvalidRequest("The document is not a JWK Set.")
    refuse_private_members(keys)
    kids = [key["kid"] for key in keys if isinstance(key.get("kid"), str)]
    if len(set(kids)) != len(kids):
        raise InvalidRequest("Two keys of the JWK Set have the same kid.")
    return keys


def is_key_of_its_kid(jwk: Mapping[str, Any]) -> bool:
    """Whether the public components are those that the kid, an RFC 7638 thumbprint, names."""
    names = _IDENTIFYING.get(str(jwk.get("kty")), ())
    components = {name: jwk.get(name) for name in names}
    if not components or not all(isinstance(value, str) for value in components.values()):
        return False
    return thumbprint(components) == jwk.get("kid")
