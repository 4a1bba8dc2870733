"""JWKS and issuer metadata: bytes from the snapshot, whatever the devices and the database do."""

from __future__ import annotations

from flask import Blueprint, Response, request

from kmsjwks.domain.errors import NotFound
from kmsjwks.http.context import HttpContext

_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag"}

_PATTERNS = (
    "/.well-known/jwks.json",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/<path:issuer>",
    "/<path:issuer>/.well-known/jwks.json",
    "/<path:issuer>/.well-known/openid-configuration",
)


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("publication", __name__)
    snapshots = context.service.snapshots

    def document(**_: str) -> Response:
        found = snapshots.documents().get(request.path)
        if found is None:
            raise NotFound("No issuer is published at this address.")
        headers = {**_CORS, "ETag": found.etag, "Cache-Control": found.cache_control}
        # RFC 9110 section 13.1.2: weak comparison, lists and '*'.
        if request.if_none_match.contains_weak(found.etag.strip('"')):
            return Response(status=304, headers=headers)
        return Response(found.body, headers=headers, content_type=found.media_type)

    def preflight(**_: str) -> Response:
        headers = {
            **_CORS,
            "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": "If-None-Match",
            "Access-Control-Max-Age": "86400",
        }
        return Response(status=204, headers=headers)

    for number, pattern in enumerate(_PATTERNS):
        for view, method in ((document, "GET"), (preflight, "OPTIONS")):
            routes.add_url_rule(
                pattern,
                f"{method} {number}",
                view,
                methods=[method],
                provide_automatic_options=False,
            )
    return routes
