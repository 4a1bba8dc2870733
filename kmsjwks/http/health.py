"""/healthz and /readyz: for load balancers and people; they ask no device."""

from __future__ import annotations

from collections import Counter as Tally

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
        now, refused = service.clock.now(), service.troubles.recent()
        signing = [ready.active_at(now) for ready in snapshot.keysets.values()]
        signing_in = Tally(active.key.backend for active in signing if active is not None)
        down = {
            name: {"since": int(health.since), "keysets_that_cannot_sign": signing_in[name]}
            for name, health in service.watch.health().items()
            if not health.available
        }
        affected = sum(
            active is None or active.key.backend in down or active.key.kid in refused
            for active in signing
        )
        return _json(
            {
                "status": "degraded" if down or affected else "ok",
                "keysets": len(snapshot.keysets),
                "backends_down": down,
                "keysets_that_cannot_sign": affected,
            }
        )

    return routes


def _json(value: object) -> Response:
    return Response(strictjson.dumps(value), content_type="application/json")
