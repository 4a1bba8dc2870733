"""/v1/keysets: which backend a keyset signs in: failover and migration."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from kmsjwks.domain.access import Action, require
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.domain.migration import Progress
from kmsjwks.http.acts import DRY_RUN, Members, acting, after, answer, shown, unsupported_is_invalid
from kmsjwks.http.context import HttpContext

FAILOVER_MEMBERS: Members = {"to": str, "now": bool, **DRY_RUN}
MIGRATE_MEMBERS: Members = {"to": str, "stop": bool, **DRY_RUN}


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("moves", __name__, url_prefix="/v1/keysets")
    service = context.service
    actor = partial(acting, context)

    @routes.post("/<name>/failover")
    @context.bounded
    def fail_over(name: str) -> Response:
        who, body = actor(name, Action.ROTATE, FAILOVER_MEMBERS)
        early = body.get("now", False)
        proposal = service.failover.fail_over(name, who, to=body.get("to"), early=early)
        after(context, who)
        return answer(shown(proposal, who), context)

    @routes.post("/<name>/migrate")
    @context.bounded
    def migrate(name: str) -> Response:
        who, body = actor(name, Action.MANAGE, MIGRATE_MEMBERS, optional=False)
        to, stop = body.get("to"), body.get("stop", False)
        if (to is not None) == stop:
            raise InvalidRequest("Send either 'to', the backend, or 'stop': true.")
        with unsupported_is_invalid():
            if to is None:
                proposal = service.migration.stop(name, who)
            else:
                proposal = service.migration.migrate(name, to, who)
        after(context, who)
        return answer(shown(proposal, who), context)

    @routes.get("/<name>/migration")
    @context.bounded
    def migration(name: str) -> Response:
        require(context.principal(request), Action.READ, name)
        return answer(_progress(service.migration.progress(name)), context)

    return routes


def _progress(progress: Progress) -> dict[str, Any]:
    """Times in seconds since the epoch."""
    return {
        "stage": progress.stage,
        "done": progress.done,
        "backend": progress.backend,
        "signs_in": progress.signs_in,
        "next_kid": progress.spare,
        "takes_over_at": progress.takes_over_at,
        "left_behind": [{**asdict(key), "state": key.state.value} for key in progress.left],
    }
