"""What verifiers fetch: JWKS and metadata documents, rendered once and served as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kmsjwks.domain import strictjson
from kmsjwks.domain.jwk import public_jwk, refuse_private_members
from kmsjwks.domain.keys import Key, Keyset, is_published

JWKS_MEDIA_TYPE = "application/jwk-set+json"  # RFC 7517 section 8.5
_STALE_WHILE_REVALIDATE = 60  # seconds, RFC 5861 section 3
_STALE_IF_ERROR = 86400  # seconds, RFC 5861 section 4


@dataclass(frozen=True, slots=True)
class Document:
    """A rendered document. ``etag`` is strong and quoted (RFC 9110 section 8.8.3)."""

    body: bytes
    media_type: str
    etag: str
    cache_control: str


def issuer_path(issuer: str) -> str:
    """The path of an issuer URL without trailing slash; empty for the root."""
    return urlsplit(issuer).path.rstrip("/")


def render(
    keysets: Sequence[Keyset], keys: Mapping[str, Sequence[Key]], *, max_age: int, now: int
) -> dict[str, Document]:
    """URL path -> document, for every issuer. ``max_age`` and ``now`` in seconds.

    Raises:
        PrivateMaterialRefused: a private member was about to be published.
    """
    documents: dict[str, Document] = {}
    for issuer, members in _by_issuer(keysets).items():
        published = [
            key for keyset in members for key in keys[keyset.name] if is_published(key, now)
        ]
        jwks = _document({"keys": _jwks(published)}, JWKS_MEDIA_TYPE, max_age)
        algorithms = sorted({key.algorithm.jose for key in published})
        metadata = _document(_metadata(issuer, algorithms), "application/json", max_age)
        path = issuer_path(issuer)
        documents[f"{path}/.well-known/jwks.json"] = jwks
        # OpenID Connect Discovery 1.0 section 4 appends; RFC 8414 section 3 inserts.
        documents[f"{path}/.well-known/openid-configuration"] = metadata
        documents[f"/.well-known/oauth-authorization-server{path}"] = metadata
    return documents


def _by_issuer(keysets: Iterable[Keyset]) -> dict[str, list[Keyset]]:
    grouped: dict[str, list[Keyset]] = {}
    for keyset in keysets:
        grouped.setdefault(keyset.rules.issuer, []).append(keyset)
    return grouped


def _jwks(keys: Iterable[Key]) -> list[dict[str, str]]:
    jwks = [public_jwk(key.spki, key.algorithm) for key in keys]
    refuse_private_members(jwks)
    return jwks


def _metadata(issuer: str, algorithms: list[str]) -> dict[str, object]:
    """OpenID Connect Discovery 1.0 section 3, as a Kubernetes service account issuer serves it."""
    return {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    }


def _document(content: object, media_type: str, max_age: int) -> Document:
    body = strictjson.dumps(content)
    cache_control = (
        f"public, max-age={max_age}, stale-while-revalidate={_STALE_WHILE_REVALIDATE}, "
        f"stale-if-error={_STALE_IF_ERROR}"
    )
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Document(body, media_type, etag, cache_control)
