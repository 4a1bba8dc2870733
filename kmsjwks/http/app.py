"""The Flask application over a wired service."""

from __future__ import annotations

import re
import secrets

from flask import Flask, Response, g, request

from kmsjwks.bootstrap import Service
from kmsjwks.http import health, keysets, problems, publication
from kmsjwks.http.authentication import BearerTokens
from kmsjwks.http.context import HttpContext

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def create_app(service: Service) -> Flask:
    """Starts nothing: threads and devices come with the first request."""
    app = Flask("kmsjwks", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_body_bytes
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    context = HttpContext(service, chain=(BearerTokens(service.principals),))
    problems.register(app)
    app.before_request(_take_request_id)
    app.after_request(_finish)
    app.register_blueprint(health.blueprint(context))
    app.register_blueprint(keysets.blueprint(context))
    app.register_blueprint(publication.blueprint(context))
    return app


def _take_request_id() -> None:
    sent = request.headers.get("X-Request-Id", "")
    g.request_id = sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)


def _finish(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    if "Cache-Control" not in response.headers:
        response.headers["Cache-Control"] = "no-store"
    return response
