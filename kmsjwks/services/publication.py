"""What verifiers fetch: JWKS and metadata documents, rendered once and served as bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from kmsjwks.domain import strictjson
from kmsjwks.domain.documents import (
    JWKS_MEDIA_TYPE,
    JWKS_NAME,
    METADATA_MEDIA_TYPE,
    Document,
    make_document,
    parse_jwks,
)
from kmsjwks.domain.jwk import public_jwk, refuse_private_members
from kmsjwks.domain.keys import Key, Keyset, is_published

__all__ = [
    "JWKS_MEDIA_TYPE",
    "Document",
    "DocumentWarnings",
    "issuer_path",
    "keyset_path",
    "left_out",
    "render",
    "warnings",
]

MAX_BYTES = 50 * 1024  # what Nimbus (Spring) takes; the smallest limit measured
WARN_BYTES = 32 * 1024
WARN_KEYS = 50
_STALE_WHILE_REVALIDATE = 60  # seconds, RFC 5861 section 3
_STALE_IF_ERROR = 86400  # seconds, RFC 5861 section 4
_log = logging.getLogger(__name__)

Jwks = dict[str, dict[str, str]]  # by kid, so that no document holds a kid twice


def issuer_path(issuer: str) -> str:
    """The path of an issuer URL, percent-decoded as servers see it, without trailing slash; empty
    for the root."""
    return unquote(urlsplit(issuer).path).rstrip("/")


def keyset_path(name: str) -> str:
    """Where one keyset's own JWKS is, before ``/.well-known/jwks.json``."""
    return f"/keysets/{name}"


def render(
    keysets: Sequence[Keyset], keys: Mapping[str, Sequence[Key]], *, max_age: int, now: int
) -> dict[str, Document]:
    """URL path -> document, for every keyset and issuer. ``max_age`` and ``now`` in seconds.

    Where an issuer has the path of a keyset's document, the issuer's is published there: a token
    names its issuer, never its keyset.

    Raises:
        PrivateMaterialRefused: a private member was about to be published.
    """
    published = {keyset.name: _published(keys[keyset.name], now) for keyset in keysets}
    cache_control = _cache_control(max_age)
    own = {
        keyset.name: _jwks_document(published[keyset.name], keyset.rules.issuer, cache_control)
        for keyset in keysets
    }
    documents = {f"{keyset_path(name)}/{JWKS_NAME}": document for name, document in own.items()}
    for issuer, members in _by_issuer(keysets).items():
        together = _compatible(members)
        jwks = {kid: jwk for keyset in together for kid, jwk in published[keyset.name].items()}
        about = _metadata(issuer, jwks)
        metadata = _document(about, METADATA_MEDIA_TYPE, issuer, cache_control)
        path = issuer_path(issuer)
        documents[f"{path}/{JWKS_NAME}"] = (
            own[together[0].name]
            if len(together) == 1
            else _jwks_document(jwks, issuer, cache_control)
        )
        # OpenID Connect Discovery 1.0 section 4 appends; RFC 8414 section 3 inserts.
        documents[f"{path}/.well-known/openid-configuration"] = metadata
        documents[f"/.well-known/oauth-authorization-server{path}"] = metadata
    return documents


def warnings(documents: Mapping[str, Document]) -> list[str]:
    """A sentence for every JWKS that clients may soon refuse, or do already. By path."""
    return [
        f"The JWKS at {path} {finding}"
        for path, document in sorted(documents.items())
        if document.media_type == JWKS_MEDIA_TYPE
        for finding in _findings(document.body)
    ]


def left_out(keysets: Sequence[Keyset]) -> list[str]:
    """A sentence for every keyset that is not in its issuer's JWKS. `check_issuer` lets none come
    to be; an upgrade that learns of another breaking algorithm could."""
    return [
        f"The {keyset.algorithm.id} keys of keyset {keyset.name} are kept out of the JWKS of "
        f"{issuer}, because they make widespread clients reject all of it. Give the keyset an "
        f"issuer of its own; until then they are only at {keyset_path(keyset.name)}/{JWKS_NAME}."
        for issuer, members in _by_issuer(keysets).items()
        for keyset in members
        if keyset not in _compatible(members)
    ]


class DocumentWarnings:
    """Logs the warnings about documents when they change. For one thread."""

    def __init__(self) -> None:
        self._seen: Mapping[str, Document] | None = None
        self.current: tuple[str, ...] = ()

    def after_refresh(self, documents: Mapping[str, Document]) -> None:
        if documents is self._seen:
            return
        known, self.current = self.current, tuple(warnings(documents))
        self._seen = documents
        for warning in self.current:
            if warning not in known:
                _log.warning("%s", warning)
        if known and not self.current:
            _log.info("No JWKS is near its limits any more.")


def _findings(body: bytes) -> Iterable[str]:
    count = len(parse_jwks(body))
    remedy = (
        "Give keysets issuers of their own, shorten token lifetimes or lengthen rotation periods."
    )
    if count == 0:
        yield "holds no key; every client fails with it. Its keysets have no published key."
    if len(body) > MAX_BYTES:
        yield f"has {len(body)} bytes; clients refuse more than {MAX_BYTES}. {remedy}"
    elif len(body) >= WARN_BYTES:
        yield f"has {len(body)} bytes and nears {MAX_BYTES}, beyond which clients refuse. {remedy}"
    if count >= WARN_KEYS:
        yield f"holds {count} keys. {remedy}"


def _by_issuer(keysets: Iterable[Keyset]) -> dict[str, list[Keyset]]:
    grouped: dict[str, list[Keyset]] = {}
    for keyset in keysets:
        grouped.setdefault(keyset.rules.issuer, []).append(keyset)
    return grouped


def _compatible(members: list[Keyset]) -> list[Keyset]:
    """Those that may be in one JWKS: none that makes clients reject the others' keys."""
    return [one for one in members if not one.algorithm.breaks_clients] or members


def _published(keys: Iterable[Key], now: int) -> Jwks:
    jwks = [public_jwk(key.spki, key.algorithm) for key in keys if is_published(key, now)]
    return {jwk["kid"]: jwk for jwk in jwks}


def _jwks_document(jwks: Jwks, issuer: str, cache_control: str) -> Document:
    refuse_private_members(jwks.values())
    return _document({"keys": list(jwks.values())}, JWKS_MEDIA_TYPE, issuer, cache_control)


def _metadata(issuer: str, jwks: Jwks) -> dict[str, object]:
    """OpenID Connect Discovery 1.0 section 3, as a Kubernetes service account issuer serves it."""
    return {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/{JWKS_NAME}",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": sorted({jwk["alg"] for jwk in jwks.values()}),
    }


def _cache_control(max_age: int) -> str:
    return (
        f"public, max-age={max_age}, stale-while-revalidate={_STALE_WHILE_REVALIDATE}, "
        f"stale-if-error={_STALE_IF_ERROR}"
    )


def _document(content: object, media_type: str, issuer: str, cache_control: str) -> Document:
    return make_document(strictjson.dumps(content), media_type, cache_control, issuer)
