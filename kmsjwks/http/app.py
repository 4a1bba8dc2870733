"""The Flask application over a wired service."""

from __future__ import annotations

from flask import Flask, Response, g, request

from kmsjwks.bootstrap import Service
from kmsjwks.domain.errors import NotFound
from kmsjwks.http import (
    audit,
    backends,
    batch,
    health,
    keysets,
    lifecycle,
    moves,
    problems,
    publication,
)
from kmsjwks.http.authentication import build_chain
from kmsjwks.http.context import HttpContext
from kmsjwks.http.openapi import views as openapi
from kmsjwks.http.request_ids import UNSAFE, common_headers, take_request_id


def create_app(service: Service) -> Flask:
    """Starts nothing: threads and devices come with the first request.

    Raises:
        ConfigurationError: a file that callers are authenticated with cannot be read.
    """
    app = Flask("kmsjwks", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_body_bytes
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    context = HttpContext(service, chain=build_chain(service.settings, service.clock))
    problems.register(app)
    app.before_request(_take_request_id)
    app.after_request(_finish)
    if service.timing.development:
        app.after_request(_mark_unsafe)
    app.register_blueprint(audit.blueprint(context))
    app.register_blueprint(batch.blueprint(context))
    app.register_blueprint(health.blueprint(context))
    app.register_blueprint(keysets.blueprint(context))
    app.register_blueprint(lifecycle.blueprint(context))
    app.register_blueprint(moves.blueprint(context))
    app.register_blueprint(backends.blueprint(context))
    app.register_blueprint(openapi.blueprint())
    app.register_blueprint(publication.blueprint(context))
    return app


def _take_request_id() -> None:
    g.request_id = take_request_id(request)
    # Werkzeug would strip the slashes, so that a proxy and we read different paths.
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound("There is nothing at this address.")


def _mark_unsafe(response: Response) -> Response:
    response.headers.extend(UNSAFE)
    return response


def _finish(response: Response) -> Response:
    for name, value in common_headers(g.request_id).items():
        response.headers.setdefault(name, value)
    return response
