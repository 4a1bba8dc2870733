"""/v1/audit: records of the audit trail, newest first."""

from __future__ import annotations

import re
import threading
from datetime import datetime

from flask import Blueprint, Request, Response, request

from kmsjwks.domain import strictjson
from kmsjwks.domain.auditfilter import RecordFilter
from kmsjwks.domain.errors import InvalidRequest
from kmsjwks.http.context import HttpContext, Overloaded
from kmsjwks.services.auditsearch import MAX_LIMIT, AuditSearch

_DEFAULT_LIMIT = 100
_AT_ONCE = 2  # searches of one worker: the other threads sign
_LONGEST = 256  # characters
_INTEGER = re.compile(r"[1-9][0-9]{0,5}")
_TEXTS = ("principal", "keyset", "kid", "jti", "event")
_KNOWN = (*_TEXTS, "since", "until", "limit", "before")
# RFC 3339 section 5.6, with the offset that it demands.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


def blueprint(context: HttpContext) -> Blueprint:
    routes = Blueprint("audit", __name__)
    search = AuditSearch(context.service.trail)
    free = threading.BoundedSemaphore(_AT_ONCE)

    @routes.get("/v1/audit")
    def records() -> Response:
        principal = context.principal(request)
        given = _parameters(request)
        limit = _limit(given.pop("limit", None))
        before = given.pop("before", None)
        since, until = (_moment(name, given.pop(name, None)) for name in ("since", "until"))
        wanted = RecordFilter(
            **{name: given.get(name) for name in _TEXTS}, since=since, until=until
        )
        if not free.acquire(blocking=False):
            raise Overloaded("This worker already searches the audit trail. Try again.")
        try:
            page = search.page(principal, wanted, limit, before)
        finally:
            free.release()
        body = {"records": list(page.records), "before": page.before}
        headers = {"Cache-Control": "no-store"}
        return Response(strictjson.dumps(body), headers=headers, content_type="application/json")

    return routes


def _parameters(request: Request) -> dict[str, str]:
    """
    Raises:
        InvalidRequest: one is not known, is there twice, is empty or too long, or is not UTF-8.
    """
    try:
        sent = list(request.args.items(multi=True))
    except UnicodeDecodeError as error:
        raise InvalidRequest("Escape what is not ASCII in the query, as UTF-8.") from error
    given: dict[str, str] = {}
    for name, value in sent:
        if name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise InvalidRequest(f"The parameter {name[:64]!r} is not known; known: {known}.")
        if name in given:
            raise InvalidRequest(f"The parameter {name!r} is there twice.")
        if not 0 < len(value) <= _LONGEST:
            raise InvalidRequest(f"The parameter {name!r} needs 1 to {_LONGEST} characters.")
        given[name] = value
    return given


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not _INTEGER.fullmatch(text) or int(text) > MAX_LIMIT:
        raise InvalidRequest(f"The parameter 'limit' is a number from 1 to {MAX_LIMIT}.")
    return int(text)


def _moment(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    wrong = InvalidRequest(f"The parameter {name!r} is a time such as 2026-05-01T12:00:00Z.")
    if not _MOMENT.fullmatch(text):
        raise wrong
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise wrong from error
