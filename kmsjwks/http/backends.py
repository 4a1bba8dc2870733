"""/v1/backends: which backend is up or down since when, and which keysets it concerns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, Principal
from kmsjwks.domain.errors import Forbidden
from kmsjwks.domain.failover import Health
from kmsjwks.domain.keys import KeyState
from kmsjwks.http.context import HttpContext
from kmsjwks.services.snapshot import ReadyKeyset


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("backends", __name__, url_prefix="/v1/backends")
    service = context.service

    @routes.get("")
    def list_backends() -> Response:
        """By what this worker noticed; asks neither a device nor the database."""
        principal = context.principal(request)
        _require_some_reading(principal)
        snapshot = service.snapshots.known()
        known = {} if snapshot is None else snapshot.keysets
        keysets = {name: ready for name, ready in known.items() if principal.may(Action.READ, name)}
        shown = [
            _shown(name, service.settings.backends[name].type, health, keysets, service.clock.now())
            for name, health in sorted(service.watch.health().items())
        ]
        if not _reads_everything(principal):
            shown = [one for one in shown if one["keysets"]]
        return Response(strictjson.dumps({"backends": shown}), content_type="application/json")

    return routes


def _require_some_reading(principal: Principal) -> None:
    """
    Raises:
        Forbidden: the principal may read no keyset, whether there is one or not.
    """
    if not any(Action.READ in grant.actions for grant in principal.grants):
        raise Forbidden(
            f"{principal.name} has no grant to {Action.READ.value}. Ask the operator for one."
        )


def _reads_everything(principal: Principal) -> bool:
    return any(Action.READ in grant.actions and "*" in grant.keysets for grant in principal.grants)


def _shown(
    name: str, kind: str, health: Health, keysets: Mapping[str, ReadyKeyset], now: float
) -> dict[str, Any]:
    signing = sorted(
        keyset
        for keyset, ready in keysets.items()
        if (active := ready.active_at(now)) is not None and active.key.backend == name
    )
    return {
        "name": name,
        "type": kind,
        "available": health.available,
        "since": int(health.since),
        "reason": health.reason,
        "keysets": sorted(keyset for keyset, ready in keysets.items() if _has_keys_in(ready, name)),
        "signing": signing,
        "cannot_sign": [] if health.available else signing,
    }


def _has_keys_in(ready: ReadyKeyset, backend: str) -> bool:
    return any(key.backend == backend and key.state is not KeyState.DESTROYED for key in ready.keys)
