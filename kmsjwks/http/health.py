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
        now = service.clock.now()
        signing_in = Tally(
            None if (active := ready.active_at(now)) is None else active.key.backend
            for ready in snapshot.keysets.values()
        )
        down = {
            name: {"since": int(health.since), "keysets_that_cannot_sign": signing_in[name]}
            for name, health in service.watch.health().items()
            if not health.available
        }
        affected = signing_in[None] + sum(signing_in[name] for name in down)
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
