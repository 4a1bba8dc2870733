"""/healthz and /readyz: for load balancers and people; they ask no device."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from kmsjwks.domain import strictjson
from kmsjwks.domain.errors import StoreUnavailable
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
            StoreUnavailable: nothing is known, or it is too old to sign from.
        """
        snapshot = service.snapshots.known()
        if snapshot is None or service.snapshots.is_stale():
            raise StoreUnavailable(
                "The database does not answer; the JWKS is the last one that was known.",
                retry_after=5,
            )
        now = time.time()
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
            if (active := ready.active_at(now)) is None or active.key.backend in down
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
