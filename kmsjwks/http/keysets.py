"""/v1/keysets: sign, verify, read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import Blueprint, Response, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, require
from kmsjwks.domain.errors import InvalidRequest, KeysetNotFound
from kmsjwks.domain.jwk import public_jwk
from kmsjwks.domain.keys import Key, Standby
from kmsjwks.http.answers import response_of
from kmsjwks.http.bodies import read_object
from kmsjwks.http.context import HttpContext
from kmsjwks.http.rulemembers import shown_rules
from kmsjwks.http.signing import view as signing_view
from kmsjwks.services.snapshot import ReadyKeyset

VERIFY_MEMBERS: Mapping[str, type] = MappingProxyType({"token": str})


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("keysets", __name__, url_prefix="/v1/keysets")
    signing, snapshots = context.service.signing, context.service.snapshots
    sign = signing_view(context)

    @routes.post("/<name>/sign/jwt")
    def sign_jwt(name: str) -> Response:
        return response_of(sign(request.environ, name))

    @routes.post("/<name>/verify")
    def verify(name: str) -> Response:
        caller = context.caller(request.environ)
        require(caller.principal, Action.VERIFY, name)
        context.count_use(caller, name)
        with context.bulkhead():
            body = read_object(request.environ, VERIFY_MEMBERS, context.most_body_bytes)
            if "token" not in body:
                raise InvalidRequest("The member 'token' is missing.")
            result = signing.verify(caller, name, body["token"])
        return _json(
            {
                "valid": result.valid,
                "kid": result.kid,
                "claims": result.claims,
                "reason": result.reason,
            }
        )

    @routes.get("")
    def list_keysets() -> Response:
        principal = context.principal(request)
        keysets = snapshots.current().keysets.items()
        readable = [ready for name, ready in keysets if principal.may(Action.READ, name)]
        return _json({"keysets": [_shown(ready) for ready in readable]})

    @routes.get("/<name>")
    def show_keyset(name: str) -> Response:
        require(context.principal(request), Action.READ, name)
        ready = snapshots.keyset(name)
        if ready is None:
            raise KeysetNotFound(f"There is no keyset {name}.")
        return _json({**_shown(ready), "keys": [_shown_key(key) for key in ready.keys]})

    return routes


def _json(value: object) -> Response:
    return Response(strictjson.dumps(value), content_type="application/json")


def _shown(ready: ReadyKeyset) -> dict[str, Any]:
    keyset, rules = ready.keyset, ready.keyset.rules
    active = ready.active_at(time.time())
    return {
        "name": keyset.name,
        "algorithm": keyset.algorithm.id,
        "backend": keyset.backend,
        "standby": _standby(keyset.standby),
        "signs_in": active.key.backend if active else None,
        **shown_rules(rules),
        "jwks_uri": f"{rules.issuer}/.well-known/jwks.json",
        "active_kid": active.key.kid if active else None,
        "created_at": keyset.created_at,
    }


def _standby(standby: Standby | None) -> dict[str, Any] | None:
    """As it is given in a request."""
    if standby is None:
        return None
    return {
        "backend": standby.backend,
        "failover_after": standby.failover_after,
        "failback_after": standby.failback_after,
    }


def _shown_key(key: Key) -> dict[str, Any]:
    times = key.times
    return {
        "kid": key.kid,
        "algorithm": key.algorithm.id,
        "state": key.state.value,
        "backend": key.backend,
        "ref": key.ref,
        "jwk": public_jwk(key.spki, key.algorithm),
        "created_at": times.created_at,
        "published_at": times.published_at,
        "activate_at": times.activate_at,
        "deactivated_at": times.deactivated_at,
        "withdraw_at": times.withdraw_at,
        "destroyed_at": times.destroyed_at,
    }
