"""/v1/keysets: create, change, rotate; and what can be done to a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from kmsjwks.domain.access import Action, require
from kmsjwks.domain.algorithms import find_algorithm
from kmsjwks.domain.errors import ApprovalNotKnown, InvalidRequest, KeyNotKnown
from kmsjwks.domain.keys import Key, Standby
from kmsjwks.domain.timing import RotationSchedule
from kmsjwks.http.acts import (
    DRY_RUN,
    Members,
    acting,
    after,
    answer,
    shown,
    told,
    unsupported_is_invalid,
)
from kmsjwks.http.bodies import check_members
from kmsjwks.http.context import HttpContext
from kmsjwks.http.rulemembers import RULE_MEMBERS, rules_of
from kmsjwks.services.acting import Actor, Proposal, find_keyset
from kmsjwks.services.keysets import KeysetSpec

_SCHEDULE = {
    "rotation_period": "period",
    "propagation": "propagation",
    "leeway": "leeway",
    "destroy_after": "destroy_after",
    "destroy_window": "destroy_window",
}
PUT_MEMBERS: Members = {
    "algorithm": str,
    "backend": str,
    **RULE_MEMBERS,
    **dict.fromkeys(_SCHEDULE, int),
    "standby": (dict, type(None)),
    **DRY_RUN,
}
STANDBY_MEMBERS: Members = {
    "backend": str,
    "failover_after": (int, type(None)),
    "failback_after": (int, type(None)),
}
# What an act takes: who rotates can neither destroy nor compromise.
ACTS = {
    "deactivate": Action.ROTATE,
    "hold": Action.MANAGE,
    "release": Action.MANAGE,
    "compromise": Action.DESTROY,
    "destroy": Action.DESTROY,
    "cancel-destroy": Action.DESTROY,
    "undo-compromise": Action.DESTROY,
}
APPROVE_MEMBERS: Members = {"proposal": str, **DRY_RUN}


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("lifecycle", __name__, url_prefix="/v1/keysets")
    service = context.service
    actor = partial(acting, context)
    acts: dict[str, Callable[[str, Actor], Proposal]] = {
        "deactivate": service.keys.deactivate,
        "compromise": service.keys.compromise,
        "hold": service.keys.hold,
        "release": service.keys.release,
        "destroy": service.keys.destroy,
        "cancel-destroy": service.keys.cancel_destroy,
        "undo-compromise": service.keys.undo_compromise,
    }

    @routes.put("/<name>")
    @context.bounded
    def put_keyset(name: str) -> Response:
        who, body = actor(name, Action.MANAGE, PUT_MEMBERS, optional=False)
        with unsupported_is_invalid():
            keyset = service.keysets.ensure(_spec(context, name, body), who)
        after(context, who)
        return answer({"name": keyset.name, "dry_run": who.dry_run}, context)

    @routes.post("/<name>/rotate")
    @context.bounded
    def rotate(name: str) -> Response:
        who, _ = actor(name, Action.ROTATE)
        proposal = service.keys.rotate(name, who)
        after(context, who)
        return answer(shown(proposal, who), context)

    @routes.post(f"/<name>/keys/<kid>/<any({','.join(repr(act) for act in ACTS)}):act>")
    @context.bounded
    def act_on_key(name: str, kid: str, act: str) -> Response:
        who, _ = actor(name, ACTS[act])
        _key(context, name, kid)
        proposal = acts[act](kid, who)
        after(context, who)
        return answer(shown(proposal, who), context, waits=proposal.waits and not who.dry_run)

    @routes.post("/<name>/keys/<kid>/approve")
    @context.bounded
    def approve(name: str, kid: str) -> Response:
        who, body = actor(name, Action.DESTROY, APPROVE_MEMBERS, optional=False)
        if "proposal" not in body:
            raise InvalidRequest("The member 'proposal' is missing.")
        _key(context, name, kid)
        found = service.keys.desk.find(body["proposal"])
        if (found.keyset, found.kid) != (name, kid):
            raise ApprovalNotKnown(f"There is no such proposal about the key {kid[:64]}.")
        proposal = service.keys.approve(found.id, who)
        after(context, who)
        return answer(shown(proposal, who), context)

    @routes.get("/<name>/proposals")
    @context.bounded
    def proposals(name: str) -> Response:
        require(context.principal(request), Action.READ, name)
        find_keyset(service.store, name)
        return answer({"proposals": [*map(told, service.keys.desk.open(name))]}, context)

    @routes.get("/<name>/keys/<kid>/evidence")
    @context.bounded
    def evidence(name: str, kid: str) -> Response:
        require(context.principal(request), Action.READ, name)
        key = _key(context, name, kid)
        backend = service.backends.get(key.backend)
        if backend is None:
            raise KeyNotKnown(f"The backend {key.backend} is not configured here.")
        found = backend.evidence(key.ref)
        return answer({**asdict(found), "sound": found.sound}, context)

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
    algorithm = find_algorithm(body["algorithm"])
    base = context.service.settings.server.base_url
    rules = rules_of(body, f"{base}/{name}" if algorithm.breaks_clients else base)
    given = {_SCHEDULE[member]: body[member] for member in _SCHEDULE if member in body}
    assert given.keys() <= {field.name for field in fields(RotationSchedule)}
    schedule = RotationSchedule(**given)
    return KeysetSpec(name, algorithm, body["backend"], rules, schedule, _standby(body))


def _standby(body: dict[str, Any]) -> Standby | None:
    """Delays in seconds; null for on command only.

    Raises:
        InvalidRequest
    """
    given = body.get("standby")
    if given is None:
        return None
    check_members(given, STANDBY_MEMBERS)
    if "backend" not in given:
        raise InvalidRequest("The member 'backend' of 'standby' is missing.")
    return Standby(**given)
