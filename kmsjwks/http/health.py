"""/healthz and /readyz: for load balancers and people; they ask no device."""

from __future__ import annotations

from flask import Blueprint, Response

from kmsjwks.domain import strictjson
from kmsjwks.http.context import HttpContext


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("health", __name__)
    service = context.service

    @routes.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "ok"})

    @routes.get("/readyz")
    def readyz() -> Response:
        """Ready once keys are known: then the JWKS is served, though a backend may be down.

        Raises:
            StoreUnavailable: nothing is known yet.
        """
        snapshot = service.snapshots.current()
        down = {
            name: {"since": status.since}
            for name, status in (
                (name, backend.status()) for name, backend in service.backends.items()
            )
            if not status.available
        }
        affected = sorted(
            name
            for name, ready in snapshot.keysets.items()
            if ready.active is None or ready.active.key.backend in down
        )
        return _json(
            {
                "status": "degraded" if down or affected else "ok",
                "keysets": len(snapshot.keysets),
                "backends_down": down,
                "keysets_that_cannot_sign": len(affected),
            }
        )

    return routes


def _json(value: object) -> Response:
    return Response(strictjson.dumps(value), content_type="application/json")
