"""The Flask application over a wired service."""

from __future__ import annotations

from flask import Flask, Response, request

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
from kmsjwks.http.answers import response_of
from kmsjwks.http.authentication import build_chain
from kmsjwks.http.context import HttpContext, Refused
from kmsjwks.http.hotpath import HotPath
from kmsjwks.http.openapi import views as openapi
from kmsjwks.http.request_ids import UNSAFE, RequestIds, common_headers, request_id_of


def create_app(service: Service, refused: Refused = lambda _code, _times: None) -> Flask:
    """Starts nothing: threads and devices come with the first request. ``refused`` is told of
    requests to sign that get no token.

    Raises:
        ConfigurationError: a file that callers are authenticated with cannot be read.
    """
    app = Flask("kmsjwks", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_body_bytes
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    chain = build_chain(service.settings, service.clock)
    context = HttpContext(service, chain, refused)
    app.register_error_handler(Exception, _on_error)
    ids = RequestIds()
    app.before_request(lambda: _begin(ids))
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
    always = UNSAFE if service.timing.development else {}
    app.wsgi_app = HotPath(app.wsgi_app, context, ids, always)  # type: ignore[method-assign]
    return app


def _on_error(error: Exception) -> Response:
    return response_of(problems.answer_to(error, request_id_of(request.environ)))


def _begin(ids: RequestIds) -> None:
    ids.take(request.environ)
    # Werkzeug would strip the slashes, so that a proxy and we read different paths.
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound("There is nothing at this address.")


def _mark_unsafe(response: Response) -> Response:
    response.headers.extend(UNSAFE)
    return response


def _finish(response: Response) -> Response:
    for name, value in common_headers(request_id_of(request.environ)).items():
        response.headers.setdefault(name, value)
    return response
