"""/openapi/: the description, and Swagger UI from files of ours."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from flask import Blueprint, Response

from kmsjwks.domain import strictjson

# Nothing but our own files is loaded or asked, and no script or style is inline.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


@cache
def _description() -> bytes:
    """Made for whoever asks first: most processes are never asked, and it takes a megabyte."""
    from kmsjwks.http.openapi.description import describe  # noqa: PLC0415

    return strictjson.dumps(describe())


def blueprint() -> Blueprint:
    routes = Blueprint("openapi", __name__, url_prefix="/openapi")
    assets = files("kmsjwks.http.openapi") / "assets"

    @routes.get("")
    def to_page() -> Response:
        # Relative: neither the Host that was sent nor the path that a proxy added matters.
        return Response(status=308, headers={"Location": "openapi/"})

    @routes.get("/")
    def page() -> Response:
        body = (assets / "page.html").read_bytes()
        headers = {"Content-Security-Policy": _POLICY}
        return Response(body, headers=headers, content_type="text/html; charset=utf-8")

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(_description(), content_type="application/json")

    @routes.get(f"/<any({','.join(repr(name) for name in _ASSETS)}):name>")
    def asset(name: str) -> Response:
        headers = {"Cache-Control": "max-age=3600"}
        body = (assets / name).read_bytes()
        return Response(body, headers=headers, content_type=_ASSETS[name])

    return routes
