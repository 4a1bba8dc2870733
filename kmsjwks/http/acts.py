"""What the views that change something share: who acts, and what is done and shown afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from flask import Response, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.access import Action, require
from kmsjwks.domain.approvals import Approval
from kmsjwks.domain.errors import InvalidRequest, KmsJwksError, UnsupportedAlgorithm
from kmsjwks.http.bodies import read_object
from kmsjwks.http.context import HttpContext
from kmsjwks.http.request_ids import request_id_of
from kmsjwks.services.acting import Actor, Proposal

Members = Mapping[str, type | tuple[type, ...]]
_log = logging.getLogger(__name__)
_PATIENCE = 2.0  # seconds that an answer waits for what the act made due
DRY_RUN: Members = {"dry_run": bool}


def acting(
    context: HttpContext,
    name: str,
    action: Action,
    members: Members = DRY_RUN,
    *,
    optional: bool = True,
) -> tuple[Actor, dict[str, Any]]:
    """Who acts on the keyset, and the body; ``optional`` as in `read_object`.

    Raises:
        Unauthenticated, Forbidden, InvalidRequest.
    """
    principal = context.principal(request)
    require(principal, action, name)
    body = read_object(request.environ, members, context.most_body_bytes, optional=optional)
    request_id = request_id_of(request.environ)
    return Actor(principal.name, body.get("dry_run", False), request_id), body


@contextmanager
def unsupported_is_invalid() -> Iterator[None]:
    """
    Raises:
        InvalidRequest: there is no such algorithm, or the backend that was named does not offer it.
    """
    try:
        yield
    except UnsupportedAlgorithm as error:
        raise InvalidRequest(str(error)) from error


def after(context: HttpContext, who: Actor) -> None:
    """Do at once what the change made due, and see it in this worker. A tick that hangs in a
    device goes on without us, and one that fails is another's business: the act is recorded, and
    the answer must say so."""
    if who.dry_run:
        return
    ticking = threading.Thread(
        target=_tick, args=(context,), name="kmsjwks-tick-after-act", daemon=True
    )
    ticking.start()
    ticking.join(_PATIENCE)
    context.service.snapshots.refresh()


def _tick(context: HttpContext) -> None:
    try:
        context.service.planner.tick()
    except KmsJwksError as error:
        _log.error("What an act made due is left to the next tick: %s", error)


def shown(proposal: Proposal, who: Actor) -> dict[str, Any]:
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
        **({"proposal": told(proposal.approval)} if proposal.approval else {}),
    }


def told(approval: Approval) -> dict[str, Any]:
    """Times in seconds since the epoch."""
    return {**asdict(approval), "act": approval.act.value, "state": approval.state.value}


def answer(value: dict[str, Any], context: HttpContext, *, waits: bool = False) -> Response:
    """``waits``: for somebody's approval, so what was asked for is not done (202)."""
    if context.service.timing.development:
        value["unsafe"] = "rotation.development is set: verifiers may lose"
    status = HTTPStatus.ACCEPTED if waits else HTTPStatus.OK
    return Response(strictjson.dumps(value), status=status, content_type="application/json")
