"""JWKS and issuer metadata: bytes from the snapshot, whatever the devices and the database do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.http import parse_etags

from kmsjwks.config import JwksSettings
from kmsjwks.domain.documents import Document
from kmsjwks.domain.errors import NotFound
from kmsjwks.http.answers import Answer, response_of
from kmsjwks.http.context import HttpContext

_CORS: Mapping[str, str] = MappingProxyType(
    {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag"}
)
_PREFLIGHT: Mapping[str, str] = MappingProxyType(
    {
        **_CORS,
        "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
        "Access-Control-Allow-Headers": "If-None-Match",
        "Access-Control-Max-Age": "86400",
    }
)

_PATTERNS = (
    "/.well-known/jwks.json",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/<path:issuer>",
    "/<path:issuer>/.well-known/jwks.json",
    "/<path:issuer>/.well-known/openid-configuration",
)


def view(context: HttpContext) -> Callable[[dict[str, Any]], Answer]:
    """Of the WSGI environ of a request for a document. What it raises is for
    ``problems.answer_to``."""
    snapshots, access = context.service.snapshots, context.service.settings.jwks
    prepared: dict[str, _Prepared] = {}  # by path; as many as were ever published

    def document(environ: dict[str, Any]) -> Answer:
        path: str = environ["PATH_INFO"]
        found, ready = snapshots.documents().get(path), prepared.get(path)
        if ready is None or ready.document is not found:
            public = _is_public(found, access)
            if not public:
                context.reader(environ)
            if found is None:
                raise NotFound("No issuer is published at this address.")
            ready = prepared[path] = _prepare(found, access.max_age, public)
        elif not ready.public:
            context.reader(environ)
        return ready.not_modified if _is_held(environ, ready.document) else ready.whole

    return document


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The answers to requests for a document, while it is the one that is published."""

    document: Document
    public: bool
    whole: Answer
    not_modified: Answer


def _prepare(document: Document, max_age: int, public: bool) -> _Prepared:
    headers = _headers(document, max_age, public)
    whole = Answer(document.body, document.media_type, 200, headers)
    return _Prepared(document, public, whole, Answer(b"", "", 304, headers))


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("publication", __name__)
    snapshots, access = context.service.snapshots, context.service.settings.jwks
    answer = view(context)

    def document(**_: str) -> Response:
        return response_of(answer(request.environ))

    def preflight(**_: str) -> Response:
        public = access.all_public or _is_public(snapshots.documents().get(request.path), access)
        return Response(status=204, headers=_PREFLIGHT if public else {})

    for number, pattern in enumerate(_PATTERNS):
        for function, method in ((document, "GET"), (preflight, "OPTIONS")):
            routes.add_url_rule(
                pattern,
                f"{method} {number}",
                function,
                methods=[method],
                provide_automatic_options=False,
            )
    return routes


def _is_held(environ: Mapping[str, Any], found: Document) -> bool:
    """RFC 9110 section 13.1.2: weak comparison, lists and '*'."""
    sent = environ.get("HTTP_IF_NONE_MATCH")
    if sent is None or sent == found.etag:  # what clients send, without parsing it
        return sent is not None
    return parse_etags(sent).contains_weak(found.etag.strip('"'))


def _is_public(found: Document | None, access: JwksSettings) -> bool:
    """Where nothing is published, as the default is: no answer tells which issuers exist."""
    return access.is_public(found.issuer) if found is not None else access.access == "public"


def _headers(found: Document, max_age: int, public: bool) -> dict[str, str]:
    """RFC 9111 section 5.2.2.7: a ``private`` answer is for its caller's own cache alone."""
    if public:
        return {**_CORS, "ETag": found.etag, "Cache-Control": found.cache_control}
    return {
        "ETag": found.etag,
        "Cache-Control": f"private, max-age={max_age}",
        "Vary": "Authorization",
    }
