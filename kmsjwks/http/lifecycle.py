"""/v1/keysets: create, change, rotate; and what can be done to a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from flask import Blueprint, Response, g, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, require
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import InvalidRequest, KeyNotKnown, UnsupportedAlgorithm
from kmsjwks.domain.keys import Key
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.http.bodies import read_object
from kmsjwks.http.context import HttpContext
from kmsjwks.http.rulemembers import RULE_MEMBERS, rules_of
from kmsjwks.services.acting import Actor, Proposal
from kmsjwks.services.keysets import KeysetSpec

_SCHEDULE = {
    "rotation_period": "period",
    "propagation": "propagation",
    "leeway": "leeway",
    "destroy_after": "destroy_after",
    "destroy_window": "destroy_window",
}
_PUT_MEMBERS: dict[str, type] = {
    "algorithm": str,
    "backend": str,
    **RULE_MEMBERS,
    **dict.fromkeys(_SCHEDULE, int),
    "dry_run": bool,
}
# What an act takes: who rotates can neither destroy nor compromise.
_ACTS = {
    "deactivate": Action.ROTATE,
    "hold": Action.MANAGE,
    "release": Action.MANAGE,
    "compromise": Action.DESTROY,
    "destroy": Action.DESTROY,
    "cancel-destroy": Action.DESTROY,
}


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("lifecycle", __name__, url_prefix="/v1/keysets")
    service = context.service
    acts: dict[str, Callable[[str, Actor], Proposal]] = {
        "deactivate": service.keys.deactivate,
        "compromise": service.keys.compromise,
        "hold": service.keys.hold,
        "release": service.keys.release,
        "destroy": service.keys.destroy,
        "cancel-destroy": service.keys.cancel_destroy,
    }

    def actor(
        name: str, action: Action, members: dict[str, type] | None = None
    ) -> tuple[Actor, dict[str, Any]]:
        principal = context.principal(request)
        require(principal, action, name)
        allowed = members if members is not None else {"dry_run": bool}
        body = read_object(request, allowed, optional=members is None)
        return Actor(principal.name, body.get("dry_run", False), g.request_id), body

    @routes.put("/<name>")
    @context.bounded
    def put_keyset(name: str) -> Response:
        who, body = actor(name, Action.MANAGE, _PUT_MEMBERS)
        keyset = service.keysets.ensure(_spec(context, name, body), who)
        _after(context, who)
        return _answer({"name": keyset.name, "dry_run": who.dry_run}, context)

    @routes.post("/<name>/rotate")
    @context.bounded
    def rotate(name: str) -> Response:
        who, _ = actor(name, Action.ROTATE)
        proposal = service.keys.rotate(name, who)
        _after(context, who)
        return _answer(_shown(proposal, who), context)

    @routes.post(f"/<name>/keys/<kid>/<any({','.join(repr(act) for act in _ACTS)}):act>")
    @context.bounded
    def act_on_key(name: str, kid: str, act: str) -> Response:
        who, _ = actor(name, _ACTS[act])
        _key(context, name, kid)
        proposal = acts[act](kid, who)
        _after(context, who)
        return _answer(_shown(proposal, who), context)

    @routes.get("/<name>/keys/<kid>/evidence")
    @context.bounded
    def evidence(name: str, kid: str) -> Response:
        require(context.principal(request), Action.READ, name)
        key = _key(context, name, kid)
        backend = service.backends.get(key.backend)
        if backend is None:
            raise KeyNotKnown(f"The backend {key.backend} is not configured here.")
        told = backend.evidence(key.ref)
        return _answer({**asdict(told), "sound": told.sound}, context)

    return routes


def _key(context: HttpContext, name: str, kid: str) -> Key:
    """
    Raises:
        KeyNotKnown: no key of this keyset.
    """
    keys = context.service.store.keys(name)
    key = next((one for one in keys if one.kid == kid), None)
    if key is None:
        raise KeyNotKnown(f"The keyset {name} has no key {kid[:64]}.")
    return key


def _spec(context: HttpContext, name: str, body: dict[str, Any]) -> KeysetSpec:
    for member in ("algorithm", "backend"):
        if member not in body:
            raise InvalidRequest(f"The member {member!r} is missing.")
    try:
        algorithm = find_algorithm(body["algorithm"])
    except UnsupportedAlgorithm as error:
        raise InvalidRequest(str(error)) from error
    base = context.service.settings.server.base_url
    rules = rules_of(body, f"{base}/{name}" if algorithm.breaks_clients else base)
    given = {_SCHEDULE[member]: body[member] for member in _SCHEDULE if member in body}
    assert given.keys() <= {field.name for field in fields(RotationSchedule)}
    return KeysetSpec(name, algorithm, body["backend"], rules, RotationSchedule(**given))


def _after(context: HttpContext, who: Actor) -> None:
    """Do at once what the change made due, and see it in this worker."""
    if not who.dry_run:
        context.service.planner.tick()
        context.service.snapshots.refresh()


def _shown(proposal: Proposal, who: Actor) -> dict[str, Any]:
    return {
        "dry_run": who.dry_run,
        "event": proposal.event.event,
        "says": list(proposal.says),
        "changes": [
            {
                "kid": change.after.kid,
                "state": change.after.state.value,
                "hold": change.after.hold,
                "activate_at": change.after.times.activate_at,
                "withdraw_at": change.after.times.withdraw_at,
                "destroy_at": change.after.times.destroy_at,
            }
            for change in proposal.changes
        ],
    }


def _answer(value: dict[str, Any], context: HttpContext) -> Response:
    if context.service.timing.development:
        value["unsafe"] = "rotation.development is set: verifiers may lose"
    return Response(strictjson.dumps(value), content_type="application/json")
