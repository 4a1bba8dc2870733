"""/v1/backends: which backend is up or down since when, and which keysets it concerns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, Principal
from kmsjwks.domain.errors import Forbidden
from kmsjwks.domain.failover import Health, Trouble
from kmsjwks.domain.keys import Key, KeyState
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
        now, refused = service.clock.now(), service.troubles.recent()
        signing = {
            name: active.key
            for name, ready in keysets.items()
            if (active := ready.active_at(now)) is not None
        }
        shown = [
            {
                "name": name,
                "type": service.settings.backends[name].type,
                **_health(health),
                "keysets": sorted(one for one, it in keysets.items() if _has_keys_in(it, name)),
                **_signing(name, health, signing, refused),
            }
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


def _health(health: Health) -> dict[str, Any]:
    return {
        "available": health.available,
        "since": int(health.since),
        "reason": health.reason,
    }


def _signing(
    name: str, health: Health, signing: Mapping[str, Key], refused: Mapping[str, Trouble]
) -> dict[str, Any]:
    """Keysets whose active key is in the backend ``name``. It may be well and refuse a key."""
    here = {keyset: key.kid for keyset, key in sorted(signing.items()) if key.backend == name}
    met = {keyset: refused[kid] for keyset, kid in here.items() if kid in refused}
    return {
        "signing": list(here),
        "cannot_sign": list(met) if health.available else list(here),
        "refused_keys": [
            {
                "keyset": keyset,
                "kid": here[keyset],
                "since": int(trouble.since),
                "reason": trouble.reason,
            }
            for keyset, trouble in met.items()
        ],
    }


def _has_keys_in(ready: ReadyKeyset, backend: str) -> bool:
    return any(key.backend == backend and key.state is not KeyState.DESTROYED for key in ready.keys)
